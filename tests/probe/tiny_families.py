"""A tiny network of every MoE family that transformers can build as a causal LM. Nothing is asserted here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

TINY: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "moe_intermediate_size": 32, "num_hidden_layers": 4,
    "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 8, "max_window_layers": 4,
    # experts, under the names that families give them
    "num_experts": 8, "n_routed_experts": 8, "num_local_experts": 8, "moe_num_experts": 8, "zero_expert_num": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "top_k_experts": 2, "moe_topk": 2, "moe_k": 2, "moe_top_k": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_shared_experts": 1, "n_shared_experts": 1,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "expert_ffn_hidden_size": 32, "ffn_hidden_size": 48, "enable_moe_block": True,
    # latent attention and its indexer
    "q_lora_rank": 16, "kv_lora_rank": 16, "o_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "global_head_dim": 16,
    "num_global_key_value_heads": 2, "kv_channels": 16,
    # linear mixers
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_num_heads": 8, "mamba_head_dim": 16,
    "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2, "ssm_state_size": 16, "n_groups": 2,
    # embeddings per layer
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 96, "num_kv_shared_layers": 0,
}  # fmt: skip
"""Only what a family's configuration knows is passed to it."""

LATENT: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 8}
OWN: dict[str, dict[str, Any]] = {
    "afmoe": {}, "aria_text": {}, "axk1": LATENT, "axk2": LATENT, "bailing_hybrid": {**LATENT, "layer_group_size": 2},
    "beam": {}, "cohere2_moe": {}, "deepseek_v2": {**LATENT, "topk_method": "greedy"}, "deepseek_v3": LATENT,
    "deepseek_v32": LATENT, "deepseek_v4": {}, "dots1": {}, "ernie4_5_moe": {}, "exaone_moe": {}, "flex_olmo": {},
    "flint": {}, "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"] * 2}, "glm4_moe": {},
    "glm4_moe_lite": LATENT, "glm_moe_dsa": LATENT, "gpt_oss": {}, "granitemoe": {}, "granitemoe_swa": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2}, "granitemoeshared": {}, "hunyuan_v1_moe": {},
    "hy_v3": {}, "hy_v4": {}, "inkling2_text": {}, "inkling_text": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "jetmoe": {}, "kimi_linear": {**LATENT, "layer_types": ["linear_attention", "full_attention"] * 2},
    "kolibri1": {}, "laguna": {}, "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "llama4_text": {}, "longcat_flash": LATENT, "mellum": {}, "mimo_v2_flash": {}, "minimax": {}, "minimax_m2": {},
    "minimax_m3_vl_text": {}, "mixtral": {}, "nemotron_h": {}, "olmoe": {}, "phimoe": {}, "qwen2_moe": {},
    "qwen3_5_moe_text": {}, "qwen3_moe": {}, "qwen3_next": {}, "solar_open": {}, "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Family -> what it needs beside TINY."""


def tiny(family: str) -> Any:
    """Random weights in float32."""
    kind, own = CONFIG_MAPPING[family], OWN[family]
    torch.manual_seed(0)
    config = kind(**{**{key: value for key, value in TINY.items() if _knows(kind, own, key)}, **own})
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
        for name, buffer in net.named_buffers():
            if name.endswith("tid2eid"):  # DeepSeek-V4 looks experts up by token in a table; an empty one repeats them
                buffer.copy_(torch.stack([torch.randperm(8)[: buffer.shape[1]] for _ in buffer]))
    return net


def _knows(kind: Any, own: dict[str, Any], key: str) -> bool:
    return key in kind.__dataclass_fields__ or key in kind.attribute_map or hasattr(kind, key) or key in own

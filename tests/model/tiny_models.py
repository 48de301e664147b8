"""Tiny real models of several families, for tests that run or take apart actual modules. Nothing is asserted here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "intermediate_size": 96, "moe_intermediate_size": 48, "num_experts_per_tok": 2,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 8},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 80},
    "mixtral": {"num_local_experts": 8},
    "gpt_oss": {"num_local_experts": 8, "sliding_window": 4},
    "mimo_v2_flash": {
        "n_routed_experts": 8, "v_head_dim": 16, "sliding_window_size": 4, "n_group": 1, "topk_group": 1,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "gemma4_text": {
        "num_experts": 8, "top_k_experts": 2, "enable_moe_block": True, "global_head_dim": 64, "attention_k_eq_v": True,
        "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0, "sliding_window": 4,
        "num_kv_shared_layers": 0, "num_attention_heads": 4, "vocab_size_per_layer_input": 512,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "deepseek_v3": {
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "n_shared_experts": 2, "q_lora_rank": 48, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32,
        "v_head_dim": 24, "head_dim": 16,
    },
    "deepseek_v32": {
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 48, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 24,
        "head_dim": 16, "index_topk": 3, "index_n_heads": 2, "index_head_dim": 24,
    },
    "glm_moe_dsa": {
        "num_key_value_heads": 4, "n_routed_experts": 8, "first_k_dense_replace": 1, "q_lora_rank": 48,
        "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 24, "head_dim": 16,
        "index_topk": 5, "index_n_heads": 2, "index_head_dim": 24,
        "indexer_types": ["full", "shared", "full", "shared"],
    },
    "minimax_m3_vl_text": {
        "num_local_experts": 8, "shared_intermediate_size": 48, "dense_intermediate_size": 96, "index_n_heads": 2,
        "index_head_dim": 16, "index_block_size": 4, "index_topk_blocks": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "deepseek_v4": {
        "num_key_value_heads": 1, "n_routed_experts": 8, "intermediate_size": 48, "q_lora_rank": 48, "hc_mult": 2,
        "sliding_window": 5,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}, "o_groups": 2,
        "o_lora_rank": 16, "index_topk": 2, "index_n_heads": 2, "index_head_dim": 16,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
                        "compressed_sparse_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    },
    "qwen3_next": {
        "num_experts": 8, "shared_expert_intermediate_size": 48, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 24, "linear_conv_kernel_dim": 4,
    },
    "qwen4_exp_text": {
        "num_experts": 8, "shared_expert_intermediate_size": 48, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 24, "hc_count": 2, "hc_lowrank": 8, "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 8, "indexer_compress_ratio": 4,
        "layer_types": ["indexed_attention"] * 4,
    },
    "inkling_text": {
        **(inkling := {
            "n_routed_experts": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16,
            "sliding_window_size": 4, "d_rel": 6, "rel_extent": 10, "conv_kernel_size": 4,
            "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid_sliding", "hybrid"],
        }),
        "n_shared_experts": 2, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "inkling2_text": {
        **inkling,
        "unpadded_vocab_size": 512, "n_layers_per_attn_res_block": 2,
    },
    "zaya": {
        "num_experts": 4, "num_experts_per_tok": 1, "router_hidden_size": 16, "sliding_window": 4, "cca_time0": 2,
        "cca_time1": 3, "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
    },
    "jetmoe": {"head_dim": 16, "num_local_experts": 8},
    "doge": {"is_moe": True, "num_experts": 16},
}  # fmt: skip


def tiny(model_type: str, **changes: Any) -> Any:
    """Four layers with random weights in float32; eager attention and experts, so that every product is a plain one."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**{**COMMON, **FAMILIES[model_type], **changes})
    return AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    ).eval()

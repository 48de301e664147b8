"""Every MoE family that the installed transformers builds: parameters to the last one, or a refusal that names why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from moecap.errors import UnsupportedModelError
from moecap.model import accounting
from moecap.model.build import meta_model
from moecap.model.shape import shape_of

REFUSED = {
    "deepseek_v2": "top-k",  # its default configuration names none
    "inkling2": "Inkling2SlidingAttention",
    "inkling2_text": "Inkling2SlidingAttention", "inkling_mm_model": "InklingAttention",
    "inkling_text": "InklingAttention", "zaya": "ZayaModel",
    "jetmoe": "JetMoeMoE",  # experts inside attention
    "doge": "DogeDecoderLayer",  # retrieval experts
    "ernie4_5_vl_moe": "2 groups of routed experts",
    "longcat_flash": "tensors of",  # transformers makes tensors for experts that have no weights
    "nemotron_h_omni": "lm_head",
    "gemma4": "per_layer_model_projection", "gemma4_text": "per_layer_model_projection",  # dense by default
}  # fmt: skip
"""Family -> what the refusal names."""


NOT_BUILT = {
    # the defaults of these don't fit together; published ones of dbrx, dots1, hunyuan and lfm2 have cards
    "dbrx", "deepseek_ocr2", "diffusion_gemma", "dots1", "hunyuan_v1_moe", "lfm2_moe", "qwen3_omni_moe", "qwen4_exp",
    "qwen4_exp_text",
    # no language models by themselves: text, vision and audio parts of wrappers that are built, and others
    "deepseek_ocr2_text", "diffusion_gemma_text", "dots3_note_vision_encoder", "ernie4_5_vl_moe_text",
    "ernie4_5_vl_moe_vision", "glm4v_moe_text", "glm4v_moe_vision", "glm5_next_text", "mistral_large4_text",
    "muse_spark_text", "openai_privacy_filter", "qwen3_5_moe_vision", "qwen3_omni_moe_audio_encoder",
    "qwen3_omni_moe_talker_code_predictor", "qwen3_omni_moe_talker_text", "qwen3_omni_moe_text",
    "qwen3_omni_moe_vision_encoder", "qwen3_vl_moe_text", "qwen3_vl_moe_vision", "step3p5", "unlimited_ocr_text",
    "vitpose", "vitpose_backbone",
}  # fmt: skip
"""Families whose default configuration builds no language model."""


def moe_families() -> Iterator[str]:
    """Model types whose default configuration speaks of experts and builds a language model."""
    for family in sorted(CONFIG_MAPPING.keys()):
        try:
            text = CONFIG_MAPPING[family]().get_text_config(decoder=True).to_dict()
        except Exception:  # noqa: BLE001 - configurations without usable defaults raise anything
            continue
        if any(word in key or word in str(text[key]) for word in ("expert", "moe") for key in text):
            yield family


def built(family: str) -> Any:
    """None where the defaults build no language model."""
    try:
        return meta_model({**CONFIG_MAPPING[family]().to_dict(), "model_type": family})
    except UnsupportedModelError:
        return None


@pytest.mark.slow
def test_totals_are_those_of_the_modules() -> None:
    seen, wrong, refused, not_built = 0, {}, {}, set()
    for family in moe_families():
        model = built(family)
        if model is None:
            not_built.add(family)
            continue
        seen += 1
        try:
            shape = shape_of(model, family)
        except UnsupportedModelError as error:
            refused[family] = str(error)
            continue
        found = accounting.total_params(shape) + sum(shape.other_params.values())
        held = sum(parameter.numel() for parameter in model.parameters())
        if found != held:
            wrong[family] = (found, held)
    assert wrong == {}
    assert not_built - NOT_BUILT == set()
    assert {family: why for family, why in refused.items() if REFUSED.get(family, "nothing") not in why} == {}
    assert seen - len(refused) >= 60


def built_from(family: str, **sizes: Any) -> Any:
    """The first mixer of a kind, small."""
    return shape_of(
        meta_model({"model_type": family, "vocab_size": 96, "hidden_size": 64, "pad_token_id": 0, **sizes}), family
    ).layers


def test_kimi_delta_attention() -> None:
    """Two heads of 16 x 16, and three remembered inputs of a convolution over queries, keys and values; then MLA."""
    linear, full = built_from(
        "kimi_linear", num_hidden_layers=2, linear_num_heads=2, linear_head_dim=16, linear_conv_kernel_dim=4,
        layer_types=["linear_attention", "full_attention"], num_attention_heads=4, num_key_value_heads=4,
        kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, head_dim=8, num_experts=8,
    )  # fmt: skip
    assert (linear.mixer, linear.state_elements, linear.kv_elements_per_token) == ("linear", 2 * 16**2 + 3 * 3 * 32, 0)
    assert (full.mixer, full.state_elements, full.kv_elements_per_token) == ("mla", 0, 32 + 8)


def test_lightning_attention() -> None:
    """Four heads of 16 x 16; no convolution."""
    full, linear = built_from(
        "minimax", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=32,
        layer_types=["full_attention", "linear_attention"],
    )  # fmt: skip
    assert (linear.mixer, linear.state_elements) == ("linear", 4 * 16 * 16)
    assert (full.mixer, full.kv_elements_per_token) == ("full_attention", 2 * 2 * 16)


def test_mamba() -> None:
    """128 channels of 16 states, and three remembered inputs of each."""
    first, _ = built_from(
        "jamba", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=4, attn_layer_period=2, attn_layer_offset=1,
    )  # fmt: skip
    assert (first.mixer, first.state_elements) == ("linear", 128 * 16 + 3 * 128)


def test_short_convolution() -> None:
    """Two remembered inputs of 64 channels."""
    first, second = built_from(
        "lfm2_moe", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        moe_intermediate_size=32, layer_types=["conv", "full_attention"], conv_L_cache=3, num_dense_layers=0,
        num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    assert (first.mixer, first.state_elements) == ("linear", 2 * 64)
    assert second.kv_elements_per_token == 2 * 2 * 16


def test_encoder_and_decoder() -> None:
    """T5: attention of 2 heads of 16. Only the decoder keeps keys and values: its own and the encoder's output's."""
    layers = built_from(
        "switch_transformers", num_layers=2, num_decoder_layers=2, d_model=64, d_kv=16, d_ff=32, num_heads=2,
        num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, tie_word_embeddings=True,
    )  # fmt: skip
    assert [layer.kv_elements_per_token for layer in layers] == [0, 0, 2 * 2 * 32, 2 * 2 * 32]
    assert [(layer.num_experts, layer.top_k) for layer in layers] == [(0, 0), (4, 1), (0, 0), (4, 1)]
    assert layers[1].expert_params == 2 * 64 * 32
    assert layers[2].mixer_matmul_params == 2 * 4 * 64 * 32


def test_a_wrapper_counts_its_text_model_and_names_the_rest() -> None:
    model = built("qwen3_vl_moe")
    shape = shape_of(model, "x")
    visual = sum(parameter.numel() for name, parameter in model.named_parameters() if ".visual." in name)
    assert shape.other_params == {"visual": visual}
    assert visual > 0


def test_a_wrapper_written_flat_is_not_built_from_defaults() -> None:
    flat = {"model_type": "step3p7", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32}  # fmt: skip
    shape = shape_of(meta_model(flat), "x")
    assert (shape.hidden_size, len(shape.layers), shape.vocab_size) == (64, 4, 96)

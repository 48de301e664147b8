"""Every MoE family that the installed transformers builds: parameters to the last one, or a refusal that names why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiny_models import tiny
from transformers import CONFIG_MAPPING

from moecap.errors import UnsupportedModelError
from moecap.model import accounting
from moecap.model.build import meta_model
from moecap.model.describe import Described, document
from moecap.model.shape import shape_of

QWEN4: dict[str, Any] = {
    "num_hidden_layers": 2, "layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 4,
    "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64, "indexer_compress_ratio": 16,
    "ple_layer_ids": [1], "ngram_vocab_size_base": 100, "eos_token_id": 1,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 5e5, "kv_n_heads": 8},
             "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense"] + 31 * ["sparse"], "num_experts_per_tok": 6}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] + 31 * ["sparse"], "num_experts_per_tok": 6},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "diffusion_gemma": {"text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64,
                                        "num_global_key_value_heads": 2}},
    "diffusion_gemma_text": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64,
                             "num_global_key_value_heads": 2},
    "doge": {"is_moe": True},
    "dots1": {"num_hidden_layers": 2, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2},
    "gemma4": {"text_config": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2,
                               "moe_intermediate_size": 64}},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2_moe": {"layer_types": 16 * ["conv", "full_attention"]},
    "nemotron_h_omni": {"text_config": {"layers_block_type": ["mamba", "moe", "attention", "moe"]}},
    "qwen3_omni_moe": {"talker_config": {"spatial_merge_size": 2,
                                         "text_config": {"shared_expert_intermediate_size": 64}}},
    "qwen4_exp": {"text_config": QWEN4}, "qwen4_exp_text": QWEN4,
}  # fmt: skip
"""What defaults of a family lack: they don't fit together, name no top-k or make a dense model."""

NOT_BUILT = {
    # vision, audio and speech parts of wrappers that are built, and classifiers
    "dots3_note_vision_encoder", "ernie4_5_vl_moe_vision", "glm4v_moe_vision", "openai_privacy_filter",
    "qwen3_5_moe_vision", "qwen3_omni_moe_audio_encoder", "qwen3_omni_moe_talker_code_predictor",
    "qwen3_omni_moe_talker_text", "qwen3_omni_moe_vision_encoder", "qwen3_vl_moe_vision", "vitpose", "vitpose_backbone",
}  # fmt: skip
"""Families that aren't language models by themselves."""

NEVER_USED = {"longcat_flash": 28 * 256 * 2 * 2048 * 6144}
"""Parameters that transformers allocates, but no forward pass reads and no checkpoint holds: in 28 layers, gate and up
projection of 256 experts that are identities."""


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
    """With defaults, and what `SMALL` adds to them; None where that builds no language model."""
    try:
        return meta_model({**CONFIG_MAPPING[family](**SMALL.get(family, {})).to_dict(), "model_type": family})
    except UnsupportedModelError:
        return None


@pytest.mark.slow
def test_totals_are_those_of_the_modules() -> None:
    seen, wrong, not_built = 0, {}, set()
    for family in moe_families():
        model = built(family)
        if model is None:
            not_built.add(family)
            continue
        seen += 1
        shape = shape_of(model, family)
        found = accounting.total_params(shape) + sum(shape.other_params.values())
        held = sum(parameter.numel() for parameter in model.parameters()) - NEVER_USED.get(family, 0)
        if found != held:
            wrong[family] = (found, held)
    assert wrong == {}
    assert not_built == NOT_BUILT
    assert seen >= 95


def test_of_two_models_with_the_same_layers_the_causal_one_is_the_text_model() -> None:
    """DiffusionGemma's decoder adds to its encoder's weights a gated feed-forward with one norm, for its own output."""
    model = built("diffusion_gemma")
    shape = shape_of(model, "x")
    hidden, intermediate = shape.hidden_size, model.config.text_config.intermediate_size
    assert shape.other_params["decoder"] == 3 * hidden * intermediate + hidden
    assert shape.other_params.keys() == {"vision_tower", "embed_vision", "decoder"}
    assert len(shape.layers) == model.config.text_config.num_hidden_layers
    assert shape.layers[0].kv_elements_per_token > 0


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


def test_attention_after_short_convolutions() -> None:
    """Inkling: 4 heads of 16 over 2 key heads, one layer of them within a window; each layer convolves its keys, its
    values and both sublayers' outputs, each over four tokens, and adds a bias mixed from 6 profiles of distance."""
    sliding, full = shape_of(
        tiny("inkling_text", num_hidden_layers=2, layer_types=["hybrid_sliding", "hybrid"], head_dim=16,
             mlp_layer_types=["dense", "sparse"]), "x"
    ).layers  # fmt: skip
    assert (sliding.mixer, sliding.window_tokens, sliding.kv_elements_per_token) == ("sliding_attention", 4, 2 * 4 * 16)
    assert (full.mixer, full.window_tokens, full.kv_elements_per_token) == ("full_attention", None, 2 * 2 * 16)
    assert full.state_elements == 3 * (2 * 32 + 2 * 64)
    assert full.score_flops_per_pair == 4 * 4 * 16
    projections = 64 * (64 + 2 * 32) + 64 * 4 * 6 + 64 * 64
    assert full.mixer_matmul_params == projections + 4 * 6 * 10  # the profiles, once per head
    assert full.mixer_params == projections + 6 * 10 + 4 * (2 * 32 + 2 * 64) + 2 * 16  # convolutions, two norms
    assert sliding.mixer_params == 64 * 3 * 64 + 64 * 4 * 6 + 64 * 64 + 6 * 4 + 4 * (2 * 64 + 2 * 64) + 2 * 16
    assert (sliding.dense_ffn_params, full.num_experts, full.top_k) == (3 * 64 * 96 + 1, 8, 2)
    assert (full.expert_params, full.shared_expert_params, full.num_shared_experts) == (3 * 64 * 48, 2 * 3 * 64 * 48, 2)


def test_convolutions_whose_taps_are_projected() -> None:
    """Inkling 2: full attention's taps come from the token, four per key head; sinks and gates are projected too."""
    *_, full = shape_of(tiny("inkling2_text", head_dim=16), "x").layers
    assert full.state_elements == 3 * (2 * 32 + 2 * 64)
    projections = 64 * (64 + 2 * 32) + 64 * 4 * 6 + 64 * 64 + 64 * 64 + 64 * 4 + 2 * 64 * 2 * 4
    assert full.mixer_matmul_params == projections + 4 * 6 * 10
    # profiles, static taps, two convolutions of the stream, scales of queries and relative states
    assert full.mixer_params == projections + 6 * 10 + 2 * 4 * 32 + 2 * 4 * 64 + 4 * 16 + 4 * 6
    assert full.norm_params == 4 * 64 + 3 * 64 + 64  # norms of query, key, value and experts; what they attend to


def test_compressed_convolutional_attention() -> None:
    """Zaya: 4 query and 2 key heads of 16 pass a convolution per channel over two tokens, then one per head over three;
    half of each value is the token before's. The router may choose to skip the four experts."""
    first, second = shape_of(
        tiny("zaya", num_hidden_layers=2, layer_types=["hybrid_sliding", "hybrid"], head_dim=16), "x"
    ).layers
    assert (first.window_tokens, second.window_tokens) == (4, None)
    assert (second.mixer, second.kv_elements_per_token, second.score_flops_per_pair) == (
        "full_attention", 2 * 2 * 16, 4 * 4 * 16,
    )  # fmt: skip
    assert second.state_elements == (1 + 2) * (64 + 32) + 16
    assert second.mixer_matmul_params == 64 * (64 + 32 + 16 + 16) + 64 * 64
    # taps and biases of both convolutions, one temperature per key head
    assert second.mixer_params == second.mixer_matmul_params + 96 * (2 + 1) + 96 * (16 * 3 + 1) + 2
    assert (second.num_experts, second.top_k, second.num_weightless_choices) == (4, 1, 1)
    assert second.norm_params == 2 * 64 + 2 * 4 * 64  # each sublayer scales and shifts its output and the stream


def test_experts_inside_attention() -> None:
    """JetMoe: eight experts hold queries and output for 2 heads of 16 each, two of them at a time attend."""
    shape = shape_of(tiny("jetmoe"), "x")
    layer = shape.layers[0]
    assert (layer.kv_elements_per_token, layer.score_flops_per_pair) == (2 * 2 * 16, 2 * 2 * (2 * 2 * 16))
    assert (layer.mixer_num_experts, layer.mixer_top_k, layer.mixer_expert_params) == (8, 2, 2 * 64 * 32)
    assert layer.mixer_params == 64 * 64 + 8 * 2 * 64 * 32 + 8 * 64 + 64
    assert layer.mixer_matmul_params == 64 * 64 + 2 * 2 * 64 * 32 + 8 * 64
    assert (layer.num_experts, layer.top_k, layer.expert_params) == (8, 2, 3 * 64 * 96)
    assert (layer.router_params, layer.norm_params) == (8 * 64, 2 * 64 + 64)  # two norms, the bias of the experts' sum
    used = layer.mixer_params - 6 * 2 * 64 * 32 + 2 * 3 * 64 * 96 + 8 * 64 + 3 * 64
    assert accounting.active_params(shape) == 4 * used + 64 + 512 * 64
    everything = accounting.activated_weight_bytes(shape, WIDTHS, accounting.uniform(10_000))
    assert everything == pytest.approx(accounting.total_params(shape))
    assert accounting.activated_weight_bytes(shape, WIDTHS, accounting.uniform(1)) == pytest.approx(
        accounting.active_params(shape)
    )


WIDTHS = dict.fromkeys(
    ("mixer", "router", "routed_expert", "shared_expert", "dense_ffn", "norm", "embedding", "lm_head"), 1.0
)


def test_retrieved_experts() -> None:
    """Doge: 16 experts, each a row of two tables, found by four keys for each half; a dense network beside them."""
    layer = shape_of(tiny("doge"), "x").layers[0]
    assert (layer.num_experts, layer.top_k, layer.expert_params) == (16, 2, 2 * 64)
    assert (layer.router_params, layer.shared_expert_params, layer.dense_ffn_params) == (2 * 4 * 64, 3 * 64 * 96, 0)
    assert layer.routed_matmul_params_per_token == 2 * 2 * 64
    assert layer.norm_params == 2 * 64 + 2 * 64  # two norms, two scales of the stream


def test_choices_without_weights() -> None:
    """LongCat-Flash: 512 experts and 256 identities to choose from; published 560B, 18.6B to 31.3B active, 27B on
    average (arXiv 2509.01322). Uniform routing hits experts two times out of three."""
    shape = shape_of(built("longcat_flash"), "x")
    layer = shape.layers[0]
    expert = 3 * 2048 * 6144
    assert (layer.num_experts, layer.top_k, layer.num_weightless_choices) == (512, 12, 256)
    assert layer.expert_params == expert
    assert layer.kv_elements_per_token == 2 * (512 + 64)
    assert accounting.total_params(shape) == pytest.approx(560e9, rel=0.01)
    assert accounting.active_params(shape) == pytest.approx(31.3e9, rel=0.01)
    assert accounting.active_params(shape) - 28 * 12 * expert == pytest.approx(18.6e9, rel=0.01)
    described = Described(shape=shape, stored=None, origin="modules", source="x", published=None, notes=("a",))
    first, second = document(described)["notes"]
    assert first == "a"
    assert "256 without weights" in second
    assert "12 experts" in second
    one = accounting.activated_weight_bytes(shape, WIDTHS, accounting.uniform(1))
    assert one == pytest.approx(accounting.active_params(shape) - 28 * 4 * expert)


def test_experts_of_vision_tokens_are_not_the_text_models() -> None:
    """ERNIE-4.5-VL-28B-A3B's text model is ERNIE-4.5-21B-A3B; the second group is a third as wide."""
    shape = shape_of(built("ernie4_5_vl_moe"), "x")
    assert (shape.layers[-1].num_experts, shape.layers[-1].top_k, shape.layers[-1].expert_params) == (
        64, 6, 3 * 2560 * 1536,
    )  # fmt: skip
    assert shape.other_params["vision_moe"] == 27 * (64 * 3 * 2560 * 512 + 64 * 2560 + 64)
    assert accounting.total_params(shape) == pytest.approx(21.8e9, rel=0.01)


def test_inputs_of_each_layer() -> None:
    """Gemma 4: a second table of 8 per layer, projected from the first embedding too, gated into each layer."""
    shape = shape_of(tiny("gemma4_text", hidden_size_per_layer_input=8), "x")
    assert shape.embedding_params == 512 * 64 + 512 * 4 * 8
    assert shape.further_row_elements == 4 * 8
    dense = 3 * 64 * 96 + 2 * 64 * 8
    assert [layer.dense_ffn_params for layer in shape.layers] == [dense + 64 * 4 * 8, dense, dense, dense]
    assert shape.final_norm_params == 64 + 8


def test_rows_looked_up_by_n_grams() -> None:
    """Qwen4-Exp: the first layer looks 16 rows of 4 up by the last two and three tokens, in tables of as many rows as
    the 16 primes from 100 on, padded to 128. Their keys for two streams of 64 and their value are projected; three
    norms are as wide as both streams; a convolution of both remembers three inputs, three tokens apart each."""
    linear = ["linear_attention", *["indexed_attention"] * 3]
    plain = shape_of(tiny("qwen4_exp_text", layer_types=linear), "x")
    shape = shape_of(tiny("qwen4_exp_text", layer_types=linear, ple_layer_ids=[1], ngram_vocab_size_base=100), "x")
    primes = [101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179]
    rows = -(-sum(primes) // 128) * 128
    assert shape.embedding_params - plain.embedding_params == rows * 4
    assert (plain.further_row_elements, shape.further_row_elements) == (0, 16 * 4)
    before, first = plain.layers[0], shape.layers[0]
    assert first.dense_ffn_params == first.dense_matmul_params == 64 * (2 * 64 + 64)
    assert first.norm_params - before.norm_params == 3 * 2 * 64
    assert first.mixer_params - before.mixer_params == 2 * 64 * 4
    assert first.mixer_matmul_params == before.mixer_matmul_params
    assert first.state_elements - before.state_elements == 2 * 64 * 3 * 3
    assert shape.layers[1:] == plain.layers[1:]


def test_a_head_inside_the_wrapper() -> None:
    """Nemotron Omni holds a whole causal model, Qwen3 Omni one that speaks besides."""
    shape = shape_of(built("nemotron_h_omni"), "x")
    assert shape.lm_head_params == shape.embedding_params == 131072 * 4096
    assert shape.other_params.keys() == {"vision_model", "multi_modal_projector"}
    shape = shape_of(built("qwen3_omni_moe"), "x")
    assert shape.lm_head_params == 3584 * 2048
    assert shape.other_params.keys() == {"audio_tower", "visual", "talker", "code2wav"}


def test_a_text_model_without_its_wrapper() -> None:
    """Step 3.5 is the text model of Step 3.7, which alone has a class; nothing of the wrapper stays."""
    shape = shape_of(built("step3p5"), "x")
    whole = shape_of(built("step3p7"), "x")
    assert (shape.layers, shape.other_params) == (whole.layers, {})
    assert whole.other_params.keys() == {"vision_model", "multi_modal_projector"}


def test_unknown_top_k_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="'deepseek_v2': neither its modules nor its config tell top-k"):
        shape_of(meta_model({"model_type": "deepseek_v2"}), "x")


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

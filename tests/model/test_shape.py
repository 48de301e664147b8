"""Shapes of tiny real models against what torch counts while they run, and of parts that goldens don't cover."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moecap.errors import ConfigError, UnsupportedModelError
from moecap.model import accounting
from moecap.model.shape import shape_from_config, shape_of

CONFIGS = Path(__file__).parent.parent / "data" / "hf_configs"
RUNNABLE = ["qwen3_moe", "qwen2_moe", "mixtral", "gpt_oss", "mimo_v2_flash", "gemma4_text", "inkling_text",
            "inkling2_text", "jetmoe", "doge"]  # fmt: skip


def counted_flops(model: Any, tokens: int) -> int:
    """Matrix products of one forward pass, logits for every token, as torch counts them; convolutions apart."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.full((1, tokens), 5), use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in counts.items() if operator is not torch.ops.aten.convolution)


@pytest.mark.parametrize("family", RUNNABLE)
def test_flops_are_what_torch_counts(family: str) -> None:
    """Eager attention multiplies all pairs, masked or not."""
    model = tiny(family)
    shape = shape_of(model, family)
    per_token = accounting.flops_per_token_linear(shape)
    per_pair = sum(layer.score_flops_per_pair for layer in shape.layers)
    assert counted_flops(model, 1) == per_token + per_pair
    assert counted_flops(model, 8) == 8 * per_token + 64 * per_pair


def test_mla_scores_are_absorbed() -> None:
    """transformers multiplies expanded heads (48 + 24 wide here), engines latent ones (32 + 16, then 32)."""
    model = tiny("deepseek_v3")
    shape = shape_of(model, "deepseek")
    assert counted_flops(model, 1) == accounting.flops_per_token_linear(shape) + 4 * 2 * 4 * (48 + 24)
    assert [layer.score_flops_per_pair for layer in shape.layers] == 4 * [2 * 4 * (48 + 32)]
    assert [layer.kv_elements_per_token for layer in shape.layers] == 4 * [32 + 16]
    assert [layer.num_experts for layer in shape.layers] == [0, 8, 8, 8]
    assert shape.layers[1].num_shared_experts == 2
    assert shape.layers[1].shared_expert_params == 2 * 3 * 64 * 48
    assert shape.layers[0].dense_ffn_params == 3 * 64 * 96


@pytest.mark.parametrize("family", RUNNABLE)
def test_kv_elements_are_what_the_cache_holds(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    held = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    assert held == [3 * layer.kv_elements_per_token for layer in shape_of(model, family).layers]


def test_windows_follow_layer_types() -> None:
    layers = shape_of(tiny("gpt_oss"), "x").layers
    assert [(layer.mixer, layer.window_tokens) for layer in layers] == 2 * [
        ("sliding_attention", 4),
        ("full_attention", None),
    ]
    # sliding_window_size counts the tokens before the query
    assert [layer.window_tokens for layer in shape_of(tiny("mimo_v2_flash"), "x").layers] == [None, 5, 5, None]
    assert {layer.window_tokens for layer in shape_of(tiny("mixtral", sliding_window=16), "x").layers} == {16}
    assert {layer.window_tokens for layer in shape_of(tiny("mixtral", sliding_window=None), "x").layers} == {None}


def test_linear_mixer_state() -> None:
    """Four value heads of 16 x 24, and three remembered inputs of a convolution over 2 x 2 x 16 + 4 x 24 channels."""
    *linear, full = shape_of(tiny("qwen3_next"), "x").layers
    assert [layer.state_elements for layer in linear] == 3 * [4 * 16 * 24 + 3 * (2 * 2 * 16 + 4 * 24)]
    assert {(layer.mixer, layer.kv_elements_per_token, layer.score_flops_per_pair) for layer in linear} == {
        ("linear", 0, 0)
    }
    assert (full.mixer, full.state_elements) == ("full_attention", 0)


def test_hybrid_alternates_mixers_and_experts() -> None:
    """Nemotron 3 Nano's pattern: 23 Mamba-2, 6 attention and 23 MoE layers; 64 heads of 64 x 128 in its state."""
    layers = shape_from_config(CONFIGS / "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.json").layers
    assert sorted(layer.mixer for layer in layers) == 6 * ["full_attention"] + 23 * ["linear"] + 23 * ["none"]
    assert all((layer.mixer == "none") == (layer.num_experts == 128) for layer in layers)
    assert {layer.state_elements for layer in layers if layer.mixer == "linear"} == {64 * 64 * 128 + 3 * 6144}


def test_tied_head_is_counted_once_and_read_for_logits() -> None:
    tied, untied = shape_of(tiny("qwen3_moe", tie_word_embeddings=True), "x"), shape_of(tiny("qwen3_moe"), "x")
    assert (tied.embedding_params, tied.lm_head_params, tied.lm_head_matrix_params) == (512 * 64, 0, 512 * 64)
    assert accounting.total_params(untied) - accounting.total_params(tied) == 512 * 64
    assert accounting.active_params(tied) == accounting.active_params(untied)
    assert accounting.flops_per_token_linear(tied) == accounting.flops_per_token_linear(untied)


def test_experts_as_a_list_of_modules() -> None:
    """Families that keep one module per expert weigh what fused ones do."""
    fused, listed = tiny("mixtral"), tiny("mixtral")
    for layer in listed.model.layers:
        expert = nn.ModuleDict(
            {name: nn.Linear(*size, bias=False) for name, size in {"w13": (64, 192), "w2": (96, 64)}.items()}
        )
        layer.mlp.experts = nn.ModuleList([expert, *(nn.ModuleDict(_copy(expert)) for _ in range(7))])
    assert shape_of(listed, "x") == shape_of(fused, "x")


def _copy(expert: nn.ModuleDict) -> dict[str, nn.Module]:
    return {name: nn.Linear(m.in_features, m.out_features, bias=False) for name, m in expert.items()}


def test_top_k_is_what_the_modules_route_by() -> None:
    model = tiny("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.gate.top_k = 3
    assert {layer.top_k for layer in shape_of(model, "x").layers} == {3}


def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="nonesuch"):
        shape_from_config({"model_type": "nonesuch"})
    with pytest.raises(UnsupportedModelError, match="siglip"):
        shape_from_config({"model_type": "siglip"})
    with pytest.raises(UnsupportedModelError, match="'mixtral': bad configuration"):
        shape_from_config({"model_type": "mixtral", "hidden_size": "wide"})


def test_unreadable_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="can't be read"):
        shape_from_config(tmp_path)
    with pytest.raises(ConfigError, match="no such path"):
        shape_from_config(Path("nowhere/at-all"))

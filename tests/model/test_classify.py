"""Which class a parameter belongs to, on tiny real models and on models that must be refused."""

import pytest
import torch
from tiny_models import FAMILIES, tiny
from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.accounting import params_by_class, total_params
from moecap.model.classify import classify_parameters
from moecap.model.shape import shape_of


def test_each_class_by_name() -> None:
    classes = classify_parameters(tiny("qwen2_moe"))
    layer = "model.layers.3"
    assert {name: found for name, found in classes.items() if found[1] in (3, None)} == {
        "model.embed_tokens.weight": ("embedding", None),
        "model.norm.weight": ("norm", None),
        "lm_head.weight": ("lm_head", None),
        **{f"{layer}.self_attn.{p}_proj.weight": ("mixer", 3) for p in "qkvo"},
        **{f"{layer}.self_attn.{p}_proj.bias": ("mixer", 3) for p in "qkv"},
        f"{layer}.mlp.gate.weight": ("router", 3),
        f"{layer}.mlp.experts.gate_up_proj": ("routed_expert", 3),
        f"{layer}.mlp.experts.down_proj": ("routed_expert", 3),
        **{f"{layer}.mlp.shared_expert.{p}_proj.weight": ("shared_expert", 3) for p in ("gate", "up", "down")},
        f"{layer}.mlp.shared_expert_gate.weight": ("router", 3),
        f"{layer}.input_layernorm.weight": ("norm", 3),
        f"{layer}.post_attention_layernorm.weight": ("norm", 3),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_hold_every_parameter_once(family: str) -> None:
    model = tiny(family)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    classes = classify_parameters(model)
    assert classes.keys() == sizes.keys()
    shape = shape_of(model, family)
    assert total_params(shape) == sum(sizes.values())
    for kind, params in params_by_class(shape).items():
        assert params == sum(sizes[name] for name, (found, _) in classes.items() if found == kind)


def test_a_dense_network_beside_the_experts_is_dense() -> None:
    """Gemma 4 runs both in every layer, the experts as the layer's own child."""
    layer = shape_of(tiny("gemma4_text"), "x").layers[0]
    assert (layer.dense_ffn_params, layer.expert_params, layer.num_experts) == (3 * 64 * 96, 3 * 64 * 48, 8)
    assert layer.router_params == 8 * 64 + 64 + 8  # matrix, input scale, one scale per expert


class StrangeMixer(nn.Module):
    """A mixer of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(64, 64)


def test_unknown_mixer_is_named() -> None:
    model = tiny("qwen3_moe")
    model.model.layers[2].self_attn = StrangeMixer()
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.2\.self_attn \(StrangeMixer\)"):
        shape_of(model, "x")


def test_attention_with_more_inside_is_unknown() -> None:
    """An indexer or a convolution changes what attention reads: it is not taken for plain attention."""
    model = tiny("qwen3_moe")
    model.model.layers[0].self_attn.indexer = StrangeMixer()
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.self_attn"):
        shape_of(model, "x")


def test_a_parameter_of_no_role_is_refused() -> None:
    model = tiny("qwen3_moe")
    model.model.layers[1].scale = nn.Parameter(torch.ones(64))
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1 "):
        classify_parameters(model)
    model = tiny("qwen3_moe")
    model.model.adapter = nn.Linear(4, 4)
    with pytest.raises(UnsupportedModelError, match=r"model\.adapter \(Linear\)"):
        classify_parameters(model)


def test_layers_that_share_parameters_are_refused() -> None:
    model = tiny("qwen3_moe")
    model.model.layers[3].mlp = model.model.layers[1].mlp
    with pytest.raises(UnsupportedModelError, match="shared between layers"):
        classify_parameters(model)

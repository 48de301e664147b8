"""MLA as transformers' modules compute it: latents are expanded to keys and values of every head before attention.

`mixers` counts it as serving engines compute it, over the latents themselves. An engine that runs transformers' own
modules counts what these do, which differs in FLOPs, in traffic and, where it is expanded keys that are cached, in KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moecap.model.classify import parts_of
from moecap.records import LayerShape, ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_expanded_latents(shape: ModelShape, model: PreTrainedModel) -> ModelShape:
    """The shape of `model` with its layers of latent attention as its modules compute them; others as they are."""
    found: dict[int, list[Any]] = {}
    for part in parts_of(model):
        if part.layer is not None and hasattr(part.module, "kv_lora_rank") and hasattr(part.module, "kv_b_proj"):
            found.setdefault(part.layer, []).append(part.module)
    layers = (_expanded(one, found[one.index]) if one.index in found else one for one in shape.layers)
    return replace(shape, layers=tuple(layers))


def _expanded(layer: LayerShape, attentions: Sequence[Any]) -> LayerShape:
    """One layer, whose mixers are all of latents. Elements: the expansion's product, the copy that joins each head's
    key with the rotary part, and what attention reads; the product's input is the cached latent, counted as KV."""
    products = [one.kv_b_proj for one in attentions]
    keys_and_values = sum(map(_keys_and_values, attentions))
    score = 2 * keys_and_values
    moved = layer.activation_elements_per_token + (score - layer.score_flops_per_pair) // 2  # queries and outputs
    if not hasattr(attentions[0], "expand_kv"):  # versions that cache what was expanded, once
        return replace(
            layer,
            score_flops_per_pair=score,
            kv_elements_per_token=keys_and_values,
            activation_elements_per_token=moved + keys_and_values - layer.kv_elements_per_token,
        )
    params, copied = sum(one.weight.numel() for one in products), sum(map(_copied, attentions))
    return replace(
        layer,
        score_flops_per_pair=score,
        mixer_matmul_params=layer.mixer_matmul_params - params,
        expanded_flops_per_key=2 * params,
        expanded_elements_per_key=sum(one.out_features for one in products) + copied + keys_and_values,
        activation_elements_per_token=moved - sum(one.in_features + one.out_features for one in products),
    )


def _keys_and_values(attention: Any) -> int:
    """Elements of one token's, of all heads."""
    width = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
    return int(attention.num_heads * width)


def _copied(attention: Any) -> int:
    """Elements read and written where heads' keys are put together; reading the one rotary part is left out."""
    plain, rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    return int(attention.num_heads * (plain + plain + rope))

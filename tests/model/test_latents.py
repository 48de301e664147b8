"""MLA as transformers' modules compute it, by hand on DeepSeek-V3 in small: 4 heads of 32 plain and 16 rotary key
elements and 24 value elements, from latents of 32."""

from dataclasses import replace
from typing import Any

import torch
from tiny_models import tiny

from moecap.model.latents import with_expanded_latents
from moecap.model.shape import shape_of

PRODUCT = 32 * 4 * (32 + 24)
"""Parameters of what expands a latent."""


def test_latents_that_are_expanded_in_every_pass() -> None:
    """The expansion is no longer a token's own, but every cached key's: its product's output, the copy that joins each
    head's key with the rotary part, and what attention reads of it."""
    model = tiny("deepseek_v3")
    absorbed = shape_of(model, "x")
    for before, after in zip(absorbed.layers, with_expanded_latents(absorbed, model).layers, strict=True):
        assert after.score_flops_per_pair == 2 * 4 * (32 + 16 + 24)
        assert after.mixer_matmul_params == before.mixer_matmul_params - PRODUCT
        assert after.expanded_flops_per_key == 2 * PRODUCT
        assert after.expanded_elements_per_key == 4 * (32 + 24) + 4 * (32 + 32 + 16) + 4 * (32 + 16 + 24)
        query_and_output = 4 * (32 + 16 + 24) - 4 * ((32 + 16) + 32)
        moved = after.activation_elements_per_token - before.activation_elements_per_token
        assert moved == query_and_output - (32 + 4 * (32 + 24))
        assert after.kv_elements_per_token == before.kv_elements_per_token == 32 + 16


def test_the_cache_holds_latents() -> None:
    model = tiny("deepseek_v3")
    with torch.no_grad():
        cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    held = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    shape = with_expanded_latents(shape_of(model, "x"), model)
    assert held == [3 * layer.kv_elements_per_token for layer in shape.layers]


def test_versions_that_cache_what_was_expanded(monkeypatch: Any) -> None:
    """Then keys and values of all heads are kept, and expanded once: a token's own."""
    model = tiny("deepseek_v3")
    monkeypatch.delattr(type(model.model.layers[0].self_attn), "expand_kv")
    absorbed = shape_of(model, "x")
    after, before = with_expanded_latents(absorbed, model).layers[1], absorbed.layers[1]
    kept, score = 4 * (32 + 16 + 24), 2 * 4 * (32 + 16 + 24)
    moved = before.activation_elements_per_token + 4 * (72 - 80) + kept - (32 + 16)
    assert after == replace(
        before, score_flops_per_pair=score, kv_elements_per_token=kept, activation_elements_per_token=moved
    )


def test_other_attention_stays_as_it_is() -> None:
    model = tiny("qwen3_moe")
    assert with_expanded_latents(shape_of(model, "x"), model) == shape_of(model, "x")

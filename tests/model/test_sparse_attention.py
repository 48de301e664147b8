"""Attention that selects or compresses keys: shapes against what tiny real models attend to, keep and multiply."""

from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch.utils.flop_counter import FlopCounterMode

from moecap.errors import UnsupportedModelError
from moecap.model import accounting
from moecap.model.build import meta_model
from moecap.model.keys import key_sets
from moecap.model.shape import shape_of
from moecap.records import LayerShape

SPARSE = ["deepseek_v32", "glm_moe_dsa", "minimax_m3_vl_text", "deepseek_v4", "qwen4_exp_text"]
TOKENS = 23
HEADS = 4


def run(model: Any, tokens: int) -> Any:
    with torch.no_grad():
        return model(torch.arange(5, 5 + tokens)[None], use_cache=True, output_attentions=True)


def pairs(layer: LayerShape, query: int, context: int) -> int:
    return sum(one.keys.pairs(query, context) for one in key_sets([layer]) if not one.is_index)


@pytest.mark.parametrize("family", SPARSE)
@pytest.mark.parametrize("tokens", [2, 7, TOKENS])
def test_pairs_are_those_with_a_weight(family: str, tokens: int) -> None:
    """After the softmax what isn't attended to has no weight at all."""
    model = tiny(family)
    attended = [int((weights > 0).sum()) for weights in run(model, tokens).attentions]
    assert attended == [HEADS * pairs(layer, tokens, tokens) for layer in shape_of(model, family).layers]


@pytest.mark.parametrize("family", ["deepseek_v32", "deepseek_v4", "qwen4_exp_text"])
def test_pairs_of_a_decode_step(family: str) -> None:
    model = tiny(family)
    cache = run(model, TOKENS - 1).past_key_values
    with torch.no_grad():
        step = model(torch.tensor([[7]]), past_key_values=cache, use_cache=True, output_attentions=True)
    attended = [int((weights > 0).sum()) for weights in step.attentions]
    assert attended == [HEADS * pairs(layer, 1, TOKENS) for layer in shape_of(model, family).layers]


def test_indexers_keep_a_key_per_token() -> None:
    """Where a choice is shared there is none."""
    model = tiny("glm_moe_dsa")
    kept = [layer.indexer_keys for layer in run(model, TOKENS).past_key_values.layers]
    layers = shape_of(model, "glm").layers
    assert [0 if keys is None else keys.numel() for keys in kept] == [TOKENS * 24, 0, TOKENS * 24, 0]
    assert [layer.index_elements_per_key for layer in layers] == [24, 0, 24, 0]
    assert {layer.selected_max for layer in layers} == {5}

    model = tiny("minimax_m3_vl_text")
    _, *kept = (layer for layer in run(model, TOKENS).past_key_values.layers)
    assert [layer.idx_keys.numel() for layer in kept] == 3 * [TOKENS * 16]
    assert [layer.index_elements_per_key for layer in shape_of(model, "m3").layers] == [0, 16, 16, 16]


def test_compressed_entries_are_what_the_cache_holds() -> None:
    """23 tokens: 5 entries of 4 and 2 of 8, with 3 and 7 tokens waiting, which is the most."""
    model = tiny("deepseek_v4")
    _, sparse, heavy, _ = run(model, TOKENS).past_key_values.layers
    _, by_four, by_eight, _ = shape_of(model, "v4").layers
    for cache, layer in ((sparse, by_four), (heavy, by_eight)):
        _, entries, *own = key_sets([layer])
        assert cache.compressed_kv["compressor"].numel() == entries.elements * entries.keys.kept(TOKENS)
        assert [one.elements * one.keys.kept(TOKENS) for one in own] == [
            keys.numel() for name, keys in cache.compressed_kv.items() if name == "indexer"
        ]
        waiting = [cache.buffer_kv, cache.buffer_gate]
        waiting += [getattr(cache, name) for name in ("overlap_kv", "overlap_gate") if hasattr(cache, name)]
        assert layer.waiting_elements == sum(tensor.numel() for states in waiting for tensor in states.values())
    assert by_eight.waiting_elements == 2 * 7 * 32
    assert by_four.waiting_elements == 2 * (3 * 64 + 4 * 32) + 2 * (3 * 32 + 4 * 16)
    assert (by_four.kv_elements_per_token, by_four.window_tokens, by_four.mixer) == (32, 5, "compressed_attention")


def counted_flops(model: Any, tokens: int) -> int:
    with FlopCounterMode(display=False) as counter:
        run(model, tokens)
    return counter.get_total_flops()


def test_flops_are_what_torch_counts() -> None:
    """Eager attention multiplies all pairs, and so does an indexer; MLA's heads are expanded there (48 + 24 wide)."""
    for family in ("deepseek_v32", "minimax_m3_vl_text"):
        model = tiny(family)
        shape = shape_of(model, family)
        index = sum(layer.index_flops_per_pair for layer in shape.layers)
        scores = sum(layer.score_flops_per_pair for layer in shape.layers)
        per_pair = index + (4 * 2 * HEADS * (48 + 24) if family == "deepseek_v32" else scores)
        assert counted_flops(model, 8) == 8 * accounting.flops_per_token_linear(shape) + 64 * per_pair
        assert index == {"deepseek_v32": 4 * 2 * 2 * (24 + 1), "minimax_m3_vl_text": 3 * 2 * 2 * 16}[family]


def test_flops_of_compressed_attention_are_what_torch_counts() -> None:
    """Eight tokens: 64 pairs in each layer's window, and two and one entries for each; keys and values of 32. Of the
    indexers torch counts the products of two heads of 16, not that they are weighted and summed. What mixes two streams
    of 64 by a computed matrix, twice a layer, is no weight."""
    model = tiny("deepseek_v4")
    linear = accounting.flops_per_token_linear(shape_of(model, "v4"))
    per_pair, mixing = 2 * HEADS * (32 + 32), 4 * 2 * 2 * 2 * 2 * 64
    entries = 8 * (2 + 1 + 2) * per_pair + 8 * (2 + 2) * 2 * 2 * 16
    assert counted_flops(model, 8) == 8 * (linear + mixing) + 4 * 64 * per_pair + entries


def test_pools_of_tokens() -> None:
    """GLM-5.3-Flash: pools of 4, at most 8 tokens in whole pools and up to 3 after them; one own key of 16 per pool."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
             "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8,
             "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "index_kpool": 4, "intermediate_size": 96,
             "moe_intermediate_size": 48, "vocab_size": 96, "pad_token_id": 0, "num_experts_per_tok": 2,
             "layer_types": ["full_attention"] * 2, "indexer_types": ["full", "shared"]}  # fmt: skip
    text = {"model_type": "glm5_next_text", **sizes}
    own, shared = shape_of(meta_model({"model_type": "glm5_next", "text_config": text}), "x").layers
    assert [pairs(own, 1, context) for context in (3, 11, 12, 30, 31, 32)] == [3, 11, 8, 10, 11, 8]
    assert own.index_flops_per_pair == 2 * 2 * (16 + 1)
    assert (own.tokens_per_index_key, own.index_elements_per_key, own.waiting_elements) == (4, 16, 2 * 3 * 16)
    assert (shared.selected_max, shared.selected_block, shared.index_elements_per_key) == (11, 4, 0)


def test_pools_by_their_mean_key() -> None:
    """Qwen4-Exp: at most 8 tokens in whole pools of 4 and up to 3 after them. Two heads of 32 score a pool's key; eight
    tokens are 64 pairs in eager attention and, of queries 4 to 7 and 8, four and two pairs with pools."""
    model = tiny("qwen4_exp_text")
    shape = shape_of(model, "qwen4")
    layer = shape.layers[0]
    assert [pairs(layer, 1, context) for context in (3, 11, 12, 30, 31, 32)] == [3, 11, 8, 10, 11, 8]
    assert (layer.tokens_per_index_key, layer.index_elements_per_key, layer.waiting_elements) == (4, 32, 3 * 32)
    products = 4 * (64 * 2 * HEADS * (32 + 32) + (4 + 2) * 2 * 2 * 32)
    assert counted_flops(model, 8) == 8 * accounting.flops_per_token_linear(shape) + products


def test_a_configuration_that_selects_nothing_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"selected_max is at least 1; got 0; check its configuration"):
        shape_of(tiny("deepseek_v32", index_topk=0), "x")

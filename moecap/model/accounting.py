"""Totals, bytes and FLOPs that follow from a ModelShape. Plain arithmetic: no torch, no hardware, no engine.

"Active" is what one token uses: all of it except the embedding table (of which one row is read) and the routed experts
that were not chosen; the matrix that makes logits counts, tied or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from moecap.model.keys import key_sets
from moecap.records import LayerShape, ModelShape, TensorClass

DistinctExperts = Callable[[LayerShape], float]
"""An MoE layer -> distinct experts of a pass there."""


def expected_distinct_experts(num_experts: int, top_k: int, tokens: int, *, weightless: int = 0) -> float:
    """Distinct experts that `tokens` tokens of `top_k` choices each are expected to hit under uniform routing.

    E (1 - (1 - k/E)^B): a token misses a given expert with probability 1 - k/E, independently of the others. With Z
    `weightless` choices beside the experts that probability is 1 - k/(E + Z).
    """
    return num_experts * (1.0 - (1.0 - top_k / (num_experts + weightless)) ** tokens)


def expected_distinct_under_skew(shares: Sequence[float], top_k: int, tokens: int) -> float:
    """The same when expert e takes the share `shares[e]` of all choices (they add up to 1), tokens independent.

    sum over e (1 - (1 - k s_e)^B): a token chooses e with probability k s_e. ValueError for shares that no top-k
    router can have, as no expert is chosen by more than all tokens.
    """
    if any(not 0 <= top_k * share <= 1 + SHARE_ROUNDING for share in shares) or abs(sum(shares) - 1) > SHARE_ROUNDING:
        raise ValueError(f"shares of top-{top_k} choices lie between 0 and 1/{top_k} and add up to 1; got {shares}")
    return sum(1.0 - max(0.0, 1.0 - top_k * share) ** tokens for share in shares)


SHARE_ROUNDING = 1e-9


def uniform(tokens: int) -> DistinctExperts:
    """Distinct experts per layer of a pass of `tokens` tokens under uniform routing."""
    return lambda layer: expected_distinct_experts(
        layer.num_experts, layer.top_k, tokens, weightless=layer.num_weightless_choices
    )


def params_by_class(shape: ModelShape) -> Mapping[TensorClass, int]:
    """Parameters of every tensor class, the final norm in `norm`; their sum is `total_params`."""
    layers = shape.layers
    return {
        "mixer": sum(layer.mixer_params for layer in layers),
        "router": sum(layer.router_params for layer in layers),
        "routed_expert": sum(layer.num_experts * layer.expert_params for layer in layers),
        "shared_expert": sum(layer.shared_expert_params for layer in layers),
        "dense_ffn": sum(layer.dense_ffn_params for layer in layers),
        "norm": sum(layer.norm_params for layer in layers) + shape.final_norm_params,
        "embedding": shape.embedding_params,
        "lm_head": shape.lm_head_params,
    }


def total_params(shape: ModelShape) -> int:
    """All parameters, a tied matrix once."""
    return sum(params_by_class(shape).values())


def active_params(shape: ModelShape) -> int:
    """Parameters that one token uses, with the lm_head matrix, without the embedding; at most, where a router has
    choices without weights."""
    routed = sum(layer.top_k * layer.expert_params for layer in shape.layers)
    return _always_read_params(shape) + routed - sum(map(_unchosen_mixer_params, shape.layers))


def activated_weight_bytes(
    shape: ModelShape, widths: Mapping[TensorClass, float], distinct_experts: DistinctExperts
) -> float:
    """Bytes of weights that a pass reads, with the lm_head, without embedding rows: the active parameters, with the
    distinct experts of every layer in place of top-k. `widths`: bytes per parameter of every class."""
    params = params_by_class(shape)
    always: tuple[TensorClass, ...] = ("mixer", "router", "shared_expert", "dense_ffn", "norm")
    fixed = sum(params[kind] * widths[kind] for kind in always)
    head = shape.lm_head_params * widths["lm_head"]
    tied = 0 if shape.lm_head_params else shape.lm_head_matrix_params * widths["embedding"]
    experts = sum(distinct_experts(layer) * layer.expert_params for layer in shape.layers if layer.num_experts)
    unread = sum(_unread_mixer_params(layer, distinct_experts) for layer in shape.layers)
    return fixed + head + tied + experts * widths["routed_expert"] - unread * widths["mixer"]


def kv_bytes_per_token(shape: ModelShape, bytes_per_element: float) -> float:
    """KV cache bytes that one token adds in all layers that keep KV, before windows; its share of compressed entries
    too. An indexer's keys are apart."""
    return _per_token(shape, is_index=False) * bytes_per_element


def index_bytes_per_token(shape: ModelShape, bytes_per_element: float) -> float:
    """Bytes of indexers' own keys that one token adds."""
    return _per_token(shape, is_index=True) * bytes_per_element


def kv_bytes_at_context(shape: ModelShape, context_tokens: int, bytes_per_element: float) -> float:
    """KV cache bytes that one sequence of `context_tokens` tokens needs, windows honoured. An indexer's keys are
    apart."""
    return _kept(shape, context_tokens, is_index=False) * bytes_per_element


def index_bytes_at_context(shape: ModelShape, context_tokens: int, bytes_per_element: float) -> float:
    """Bytes of indexers' own keys that one sequence of `context_tokens` tokens needs."""
    return _kept(shape, context_tokens, is_index=True) * bytes_per_element


def state_bytes_per_sequence(shape: ModelShape, bytes_per_element: float) -> float:
    """Bytes that a sequence needs at any length: recurrent state, and tokens that wait to be compressed, at most."""
    return sum(layer.state_elements + layer.waiting_elements for layer in shape.layers) * bytes_per_element


def flops_per_token_linear(shape: ModelShape) -> int:
    """FLOPs of one token's matrix products, with the lm_head: 2 x the matrix parameters that it uses. Attention scores,
    which grow with the context, and element-wise work are not in it."""
    layers = sum(layer.mixer_matmul_params + layer.ffn_matmul_params_per_token for layer in shape.layers)
    return 2 * (layers + shape.lm_head_matrix_params)


def attention_flops(shape: ModelShape, query_tokens: int, context_tokens: int) -> int:
    """FLOPs of attention scores and values of the last `query_tokens` of `context_tokens` tokens, causal, windows and
    selections honoured, with the scores of indexers: one query for a decode step, all of the context for a whole
    prefill. MLA as engines compute it, over the latent; linear mixers have none."""
    return sum(one.flops_per_pair * one.keys.pairs(query_tokens, context_tokens) for one in key_sets(shape.layers))


def _always_read_params(shape: ModelShape) -> int:
    layers = sum(
        layer.mixer_params
        + layer.router_params
        + layer.shared_expert_params
        + layer.dense_ffn_params
        + layer.norm_params
        for layer in shape.layers
    )
    # An lm_head of its own may hold a bias beside its matrix; a tied one holds nothing, but its matrix is read.
    return layers + shape.final_norm_params + max(shape.lm_head_params, shape.lm_head_matrix_params)


def _per_token(shape: ModelShape, *, is_index: bool) -> float:
    chosen = (one for one in key_sets(shape.layers) if one.is_index == is_index)
    return sum(one.elements / one.keys.tokens_per_key for one in chosen)


def _kept(shape: ModelShape, context_tokens: int, *, is_index: bool) -> int:
    """Elements."""
    chosen = (one for one in key_sets(shape.layers) if one.is_index == is_index)
    return sum(one.elements * one.keys.kept(context_tokens) for one in chosen)


def _unchosen_mixer_params(layer: LayerShape) -> int:
    return (layer.mixer_num_experts - layer.mixer_top_k) * layer.mixer_expert_params


def _unread_mixer_params(layer: LayerShape, distinct_experts: DistinctExperts) -> float:
    """Of a mixer's own experts, those that no token of a pass chooses."""
    if not layer.mixer_num_experts:
        return 0.0
    inside = replace(
        layer, num_experts=layer.mixer_num_experts, top_k=layer.mixer_top_k, num_weightless_choices=0
    )  # fmt: skip
    return (layer.mixer_num_experts - distinct_experts(inside)) * layer.mixer_expert_params

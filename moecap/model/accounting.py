"""Totals, bytes and FLOPs that follow from a ModelShape. Plain arithmetic: no torch, no hardware, no engine.

"Active" is what one token uses: all of it except the embedding table (of which one row is read) and the routed experts
that were not chosen; the matrix that makes logits counts, tied or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from moecap.records import LayerShape, ModelShape, TensorClass


def expected_distinct_experts(num_experts: int, top_k: int, tokens: int) -> float:
    """Distinct experts that `tokens` tokens of `top_k` choices each are expected to hit under uniform routing.

    E (1 - (1 - k/E)^B): a token misses a given expert with probability 1 - k/E, independently of the others.
    """
    return num_experts * (1.0 - (1.0 - top_k / num_experts) ** tokens)


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
    """Parameters that one token uses, with the lm_head matrix, without the embedding."""
    return _always_read_params(shape) + sum(layer.top_k * layer.expert_params for layer in shape.layers)


def activated_weight_bytes(shape: ModelShape, tokens: int, bytes_per_param: float) -> float:
    """Bytes of weights that a pass of `tokens` tokens is expected to read under uniform routing, with the lm_head,
    without embedding rows: the active parameters, with the expected number of distinct experts in every layer."""
    experts = sum(
        expected_distinct_experts(layer.num_experts, layer.top_k, tokens) * layer.expert_params
        for layer in shape.layers
        if layer.num_experts
    )
    return (_always_read_params(shape) + experts) * bytes_per_param


def kv_bytes_per_token(shape: ModelShape, bytes_per_element: float) -> float:
    """KV cache bytes that one token adds in all layers that keep KV, before windows."""
    return sum(layer.kv_elements_per_token for layer in shape.layers) * bytes_per_element


def kv_bytes_at_context(shape: ModelShape, context_tokens: int, bytes_per_element: float) -> float:
    """KV cache bytes that one sequence of `context_tokens` tokens needs, windows honoured."""
    return sum(_kept_tokens(layer, context_tokens) * layer.kv_elements_per_token for layer in shape.layers) * (
        bytes_per_element
    )


def flops_per_token_linear(shape: ModelShape) -> int:
    """FLOPs of one token's matrix products, with the lm_head: 2 x the matrix parameters that it uses. Attention scores,
    which grow with the context, and element-wise work are not in it."""
    layers = sum(layer.mixer_matmul_params + layer.ffn_matmul_params_per_token for layer in shape.layers)
    return 2 * (layers + shape.lm_head_matrix_params)


def score_flops_per_pair(shape: ModelShape) -> int:
    """FLOPs of attention scores and values for one (query, attended key) pair, all layers, windows apart."""
    return sum(layer.score_flops_per_pair for layer in shape.layers)


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


def _kept_tokens(layer: LayerShape, context_tokens: int) -> int:
    return context_tokens if layer.window_tokens is None else min(context_tokens, layer.window_tokens)

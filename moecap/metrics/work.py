"""What passes had to read and compute: bytes and FLOPs per pass from a model's shape and what was recorded.

Exact given the records: distinct experts are those that fired, widths are those that the engine held. Nothing here
knows time or hardware; ratios with these are in `performance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moecap.metrics.columns import Floats, Ints, Passes, Routing
from moecap.model.keys import key_sets
from moecap.records import HeldWeights, ModelShape


@dataclass(frozen=True, kw_only=True, slots=True)
class PassWork:
    """One element per pass. Names as in the definitions of S-MBU and S-MFU."""

    weight_bytes: Floats
    """A_p, scope paper: mixers, dense FFN, shared experts and each distinct routed expert, once."""
    weight_bytes_all_experts: Floats
    """The same with every expert."""
    weight_bytes_min_bk: Floats
    """The same with min(tokens x top-k, E) experts per layer."""
    kv_bytes: Floats
    """K_p: every attended key and value, and every key that an indexer scores, once per request and layer; states."""
    physical_bytes: Floats
    """A_p and K_p with `distinct_physical`, and router, norms, lm_head, embedding rows, KV and state written,
    activations."""
    physical_bytes_all_experts: Floats
    """The same with every expert."""
    physical_bytes_min_bk: Floats
    """The same with min(tokens x top-k, E) experts per layer."""
    flops: Mapping[str, Floats]
    """By compute dtype."""


def pass_work(shape: ModelShape, held: HeldWeights, passes: Passes, routing: Routing) -> PassWork:
    """Work of every pass. `routing` has a column per MoE layer of `shape`. KeyError for a class without a width."""
    experts = _expert_bytes(shape, held, routing.layers)
    fixed = _always_read_bytes(shape, held)
    num_experts, top_k = _per_moe_layer(shape, routing.layers)
    rows = passes.scheduled_tokens + passes.padded_tokens
    most = np.minimum(passes.scheduled_tokens[:, None] * top_k, num_experts)
    kv = _per_request_sum(_kv_read_elements(shape, passes), passes) * held.kv_bytes_per_element
    activations = _activation_bytes(shape, held, rows, passes.logits_tokens) + _expansion_bytes(shape, held, passes)
    beside_experts = fixed + kv + _unavoidable_bytes(shape, held, passes) + activations
    return PassWork(
        weight_bytes=fixed + routing.distinct @ experts,
        weight_bytes_all_experts=np.full(len(passes), fixed + num_experts @ experts),
        weight_bytes_min_bk=fixed + most @ experts,
        kv_bytes=kv,
        physical_bytes=beside_experts + routing.distinct_physical @ experts,
        physical_bytes_all_experts=beside_experts + num_experts @ experts,
        physical_bytes_min_bk=beside_experts + most @ experts,
        flops=pass_flops(shape, held, passes),
    )  # fmt: skip


def _expert_bytes(shape: ModelShape, held: HeldWeights, layers: Ints) -> Floats:
    """Bytes of one routed expert per MoE layer."""
    width = held.bytes_per_param["routed_expert"]
    return np.array([shape.layers[layer].expert_params * width for layer in layers], dtype=np.float64)


def _per_moe_layer(shape: ModelShape, layers: Ints) -> tuple[Ints, Ints]:
    moe = [shape.layers[layer] for layer in layers]
    return np.array([one.num_experts for one in moe]), np.array([one.top_k for one in moe])


def _always_read_bytes(shape: ModelShape, held: HeldWeights) -> float:
    """Mixers, dense FFNs and shared experts."""
    params = {
        "mixer": sum(layer.mixer_params for layer in shape.layers),
        "dense_ffn": sum(layer.dense_ffn_params for layer in shape.layers),
        "shared_expert": sum(layer.shared_expert_params for layer in shape.layers),
    }
    return sum(count * held.bytes_per_param[kind] for kind, count in params.items() if count)


def _kv_read_elements(shape: ModelShape, passes: Passes) -> Ints:
    """Per (pass, request): attended keys x elements, over the sets of keys that layers have, and states."""
    total = np.full(len(passes.row), sum(layer.state_elements for layer in shape.layers), dtype=np.int64)
    for one in key_sets(shape.layers):
        total = total + one.keys.read(passes.query, passes.context) * one.elements
    return total


def _kv_written_elements(shape: ModelShape, passes: Passes) -> Ints:
    """Per (pass, request): new keys x elements, and states."""
    total = np.full(len(passes.row), sum(layer.state_elements for layer in shape.layers), dtype=np.int64)
    for one in key_sets(shape.layers):
        total = total + one.keys.added(passes.query, passes.context) * one.elements
    return total


def _per_request_sum(values: Ints, passes: Passes) -> Floats:
    """Per (pass, request) -> per pass."""
    total = np.zeros(len(passes))
    np.add.at(total, passes.row, values)
    return total


def _unavoidable_bytes(shape: ModelShape, held: HeldWeights, passes: Passes) -> Floats:
    """Router, norms, lm_head when logits are made, rows of the embedding tables, KV and state written."""
    width = held.bytes_per_param
    router = sum(layer.router_params for layer in shape.layers) * width.get("router", 0.0)
    norms = (sum(layer.norm_params for layer in shape.layers) + shape.final_norm_params) * width.get("norm", 0.0)
    head = shape.lm_head_matrix_params * width["lm_head"]
    row_bytes = (shape.hidden_size + shape.further_row_elements) * width["embedding"]
    written = _per_request_sum(_kv_written_elements(shape, passes), passes)
    rows = passes.scheduled_tokens + passes.padded_tokens
    heads: Floats = (passes.logits_tokens > 0) * head
    moved: Floats = heads + rows * row_bytes + written * held.kv_bytes_per_element
    return router + norms + moved


def _activation_bytes(shape: ModelShape, held: HeldWeights, rows: Ints, logits_rows: Ints) -> Floats:
    """Layers by `LayerShape.activation_elements_per_token`; the embedding tables' output; final norm and lm_head of
    logits rows."""
    looked_up = shape.hidden_size + shape.further_row_elements
    per_row = looked_up + sum(layer.activation_elements_per_token for layer in shape.layers)
    per_logits_row = 2 * shape.hidden_size + shape.hidden_size + shape.vocab_size
    elements = rows * per_row + logits_rows * per_logits_row
    return (elements * held.activation_bytes_per_element).astype(np.float64)


def _expansion_bytes(shape: ModelShape, held: HeldWeights, passes: Passes) -> Floats:
    """Of latents that are expanded anew in every pass; 0 of engines that attend to the latents themselves."""
    elements = sum(layer.expanded_elements_per_key for layer in shape.layers)
    return elements * held.activation_bytes_per_element * _per_request_sum(passes.context, passes)


def pass_flops(shape: ModelShape, held: HeldWeights, passes: Passes) -> dict[str, Floats]:
    """By compute dtype: 2 x matrix parameters that each token uses, attention and indexer scores of every causal pair
    that is attended or scored, lm_head for logits rows."""
    tokens = passes.scheduled_tokens
    scores = sum(
        one.flops_per_pair * _per_request_sum(one.keys.pairs(passes.query, passes.context), passes)
        for one in key_sets(shape.layers)
    )
    per_token = {
        "mixer": sum(layer.mixer_matmul_params for layer in shape.layers),
        "routed_expert": sum(layer.routed_matmul_params_per_token for layer in shape.layers),
        "shared_expert": sum(layer.shared_matmul_params for layer in shape.layers),
        "dense_ffn": sum(layer.dense_matmul_params for layer in shape.layers),
    }
    all_ffn = sum(layer.ffn_matmul_params_per_token for layer in shape.layers)
    per_token["router"] = all_ffn + per_token["mixer"] - sum(per_token.values())
    parts: list[tuple[str, Floats]] = [
        *((kind, 2.0 * tokens * params) for kind, params in per_token.items() if params),
        ("lm_head", 2.0 * passes.logits_tokens * shape.lm_head_matrix_params),
        ("attention", np.zeros(len(passes)) + scores),
    ]
    if expanded := sum(layer.expanded_flops_per_key for layer in shape.layers):
        parts.append(("mixer", expanded * _per_request_sum(passes.context, passes)))
    found: dict[str, Floats] = {}
    for kind, flops in parts:
        dtype = held.compute_dtype[kind]
        found[dtype] = found.get(dtype, np.zeros(len(passes))) + flops
    return found


def kv_held_bytes(shape: ModelShape, held: HeldWeights, passes: Passes) -> Floats:
    """Bytes of KV, indexers' keys and state that the requests of each pass hold at its end, windows honoured."""
    per_sequence = sum(layer.state_elements + layer.waiting_elements for layer in shape.layers)
    total = np.full(len(passes.row), per_sequence, dtype=np.int64)
    for one in key_sets(shape.layers):
        total = total + one.keys.kept(passes.context) * one.elements
    return _per_request_sum(total, passes) * held.kv_bytes_per_element

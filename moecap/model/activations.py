"""Elements of activations that one token moves through a decoder layer: each operator's input and output once.

The operators, unfused, for one row of a pass: norms as wide as the hidden state; every linear layer (projections,
router, shared experts, dense FFN) and the two products of each chosen expert; the activation function between them;
attention, with its query, its own key and value, and its output (the KV cache is counted apart, by who reads it); an
indexer, with its query, its heads' weights and its own key; a compressor, with the values and gates that it is given;
the sum over chosen experts; two residual additions, or the mixing of residual streams. Rotary embedding, short
convolutions and norms narrower than the hidden state count as one with the projection before them; a linear mixer's
recurrence counts by its state, elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from moecap.model.classify import Part
from moecap.model.mixers import Mixer, is_norm

MOVED_BY_ADDITION = 3
"""Hidden states that a residual addition reads (two) and writes (one)."""


def activation_elements(parts: Sequence[Part], mixer: Mixer, hidden_size: int, *, num_experts: int, top_k: int) -> int:
    """Elements read and written per token in the layer that `parts` make up."""
    total = mixer.score_flops_per_pair // 2 + mixer.kv_elements_per_token
    total += mixer.index_flops_per_pair // 2 + (mixer.index_elements_per_key if mixer.tokens_per_index_key == 1 else 0)
    for part in parts:
        total += sum(2 * hidden_size for module in part.module.modules() if _is_wide_norm(module, hidden_size))
        total += sum(map(_given_to_compressor, part.module.modules()))
        if part.tensor_class == "routed_expert":
            outer = _outer_width(part, hidden_size)
            total += top_k * _one_expert(part, outer, num_experts) + (top_k + 1) * outer
        else:
            total += sum(map(sum, _products(part.module)))
            if part.tensor_class in ("dense_ffn", "shared_expert"):
                total += _inner(_products(part.module))
            if part.tensor_class == "mixer" and mixer.num_experts and _stacks(part):
                total += mixer.top_k * sum(map(sum, _stacks(part))) + (mixer.top_k + 1) * hidden_size
    has_mixer, has_ffn = mixer.kind != "none", any(part.tensor_class in FFNS for part in parts)
    return total + (has_mixer + has_ffn) * _moved_by_residual(parts) * hidden_size


def _moved_by_residual(parts: Sequence[Part]) -> int:
    """Hidden states that the way around a mixer or feed-forward reads and writes: an addition; with several streams
    (hyper-connections) these are brought together in one, and mixed with what comes back into as many again."""
    counts = (getattr(part.module, name, 1) for part in parts for name in ("hc_mult", "hc_count"))
    streams: int = max(counts, default=1)
    return MOVED_BY_ADDITION if streams == 1 else (streams + 1) + (streams + 1 + streams)


FFNS = ("routed_expert", "shared_expert", "dense_ffn")


def _outer_width(part: Part, hidden_size: int) -> int:
    """What an expert reads and writes: the hidden state, or of latent experts the inputs of their first matrix."""
    fused = _stacks(part)
    return fused[0][1] if fused and not any(hidden_size in sizes for sizes in fused) else hidden_size


def _one_expert(part: Part, outer: int, num_experts: int) -> int:
    """Inputs and outputs of one expert's products and of the activation function between them."""
    if isinstance(part.module, nn.ModuleList | nn.ModuleDict):
        products = _products(part.module)
        one = products[: len(products) // num_experts]
        return sum(map(sum, one)) + _inner(one)
    rows_of_all = [p.shape for p in part.parameters.values() if p.dim() == 2]  # DBRX, Doge: expert under expert
    fused = _stacks(part) or [(rows // num_experts, columns) for rows, columns in rows_of_all]
    return sum(2 * (rows + columns) - outer for rows, columns in fused)


def _stacks(part: Part) -> list[tuple[int, int]]:
    """(rows, columns) of one expert's matrices where they are kept in one tensor for all experts."""
    return [(p.shape[1], p.shape[2]) for p in part.parameters.values() if p.dim() == 3]


def _products(module: nn.Module) -> list[tuple[int, int]]:
    """(input, output) widths of the matrix products below `module`, in order; routers may hold a bare matrix, shared
    experts bare stacks of them, which count side by side: as many experts wide."""
    linears = [
        (one.in_features * getattr(one, "n_groups", 1), one.out_features)  # a matrix per group of inputs (DeepSeek-V4)
        for one in module.modules()
        if isinstance(one, nn.Linear)
    ]
    if linears:
        return linears
    stacked = [p.shape for p in module.parameters(recurse=False) if p.dim() == 3]
    wide = [(columns, count * rows) for count, rows, columns in stacked[:-1]]
    wide += [(count * columns, rows) for count, rows, columns in stacked[-1:]]
    return wide + [(p.shape[1], p.shape[0]) for p in module.parameters(recurse=False) if p.dim() == 2]


def _inner(products: Iterable[tuple[int, int]]) -> int:
    """What lies between a feed-forward's products: outputs of all but the last, and the input of the last; nothing, of
    one product alone."""
    *first, last = products
    if not first:
        return 0
    return sum(output for _, output in first) + last[0]


def _given_to_compressor(module: Any) -> int:
    """A value and its gate; 0 for what is no compressor."""
    return 2 * int(module.kv_proj.out_features) if hasattr(module, "compress_rate") else 0


def _is_wide_norm(module: nn.Module, hidden_size: int) -> bool:
    return is_norm(module) and any(parameter.numel() == hidden_size for parameter in module.parameters())

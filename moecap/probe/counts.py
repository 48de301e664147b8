"""Token-to-expert assignments of one MoE layer -> counts, and the invariants that they must hold. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCounts:
    """What one MoE layer was asked to compute in one pass."""

    counts: tuple[int, ...]
    """Real tokens per choice of the router."""
    distinct: int
    """Experts that at least one real token chose."""
    distinct_physical: int
    """The same with padding rows, as the kernels read."""


def layer_counts(
    expert_ids: NDArray[np.integer], real: NDArray[np.bool_], num_experts: int, num_choices: int | None = None
) -> LayerCounts:
    """Count `expert_ids` [rows, top_k]; `real` [rows] is False for padding.

    `num_choices` is larger than `num_experts` where a router can also choose identity experts: ids from `num_experts`
    on, which are counted as chosen but hold no weights, so they are not distinct experts. ValueError for other ids.
    """
    choices = num_experts if num_choices is None else num_choices
    if expert_ids.size and not (expert_ids.min() >= 0 and expert_ids.max() < choices):
        raise ValueError(f"expert ids {expert_ids.min()} to {expert_ids.max()} are outside 0 to {choices - 1}")
    counts = np.bincount(expert_ids[real].ravel(), minlength=choices)
    physical = np.bincount(expert_ids.ravel(), minlength=choices)
    return LayerCounts(
        counts=tuple(counts.tolist()),
        distinct=int(np.count_nonzero(counts[:num_experts])),
        distinct_physical=int(np.count_nonzero(physical[:num_experts])),
    )


def broken_invariant(
    assigned: int, distinct: int, tokens: int, top_k: int, num_experts: int, *, num_choices: int | None = None
) -> str | None:
    """Why `assigned` choices of `distinct` experts can't be those of `tokens` tokens with `top_k` choices each; None
    when they can.

    assigned = tokens x top_k, and top_k <= distinct <= min(num_experts, tokens x top_k) when there are tokens. A
    token's identity experts (`num_choices` above `num_experts`) leave no lower bound for the distinct ones.
    """
    if assigned != tokens * top_k:
        return f"{assigned} assignments were counted, {tokens} tokens x top-{top_k} make {tokens * top_k}"
    least = top_k if tokens and num_choices in (None, num_experts) else 0
    most = min(num_experts, tokens * top_k)
    if not least <= distinct <= most:
        return f"{distinct} distinct experts fired, {least} to {most} are possible"
    return None

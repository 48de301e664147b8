"""Routing to be replayed: counts per (pass, layer, expert), and each token's experts where they are known.

Arrays alone; where they come from, a store or a distribution, is in `recorded` and `synthetic`. All MoE layers have the
same number of experts and the same top-k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What the routers of a model did in a sequence of passes. A pass is one step of the whole deployment."""

    layers: tuple[int, ...]
    """Indices of the MoE layers."""
    top_k: int
    tokens: Ints
    """[passes]: real tokens."""
    counts: Ints
    """[passes, layers, experts]: tokens that chose the expert. Choices without weights are in no count."""
    token_experts: Ints | None = None
    """[tokens of all passes, layers, top_k], pass after pass: ids; from the number of experts on: a choice without
    weights. None: only the counts are known."""

    def __post_init__(self) -> None:
        passes, layers, _ = self.counts.shape
        if (passes, layers) != (len(self.tokens), len(self.layers)):
            raise ValueError(
                f"counts of shape {self.counts.shape} are not of {self.tokens.shape} passes, {self.layers}"
            )
        wanted = (int(self.tokens.sum()), layers, self.top_k)
        if self.token_experts is not None and self.token_experts.shape != wanted:
            raise ValueError(f"token_experts of shape {self.token_experts.shape} should have shape {wanted}")
        if self.counts.size and (self.counts.max(axis=(1, 2)) > self.tokens).any():
            raise ValueError("an expert was chosen by more tokens than its pass has")

    @property
    def num_passes(self) -> int:
        """Steps."""
        return len(self.tokens)

    @property
    def num_experts(self) -> int:
        """Of each layer, those with weights."""
        return int(self.counts.shape[2])

    def between(self, first: int, last: int) -> Routing:
        """The passes from `first` up to, without, `last`."""
        ends = np.concatenate(([0], np.cumsum(self.tokens)))
        ids = None if self.token_experts is None else self.token_experts[ends[first] : ends[last]]
        return Routing(
            layers=self.layers, top_k=self.top_k, tokens=self.tokens[first:last], counts=self.counts[first:last],
            token_experts=ids,
        )  # fmt: skip

    def without_ids(self) -> Routing:
        """The same, knowing the counts alone."""
        return Routing(layers=self.layers, top_k=self.top_k, tokens=self.tokens, counts=self.counts)

    def load(self) -> Floats:
        """[layers, experts]: tokens per pass, on average; what experts are placed by."""
        mean: Floats = self.counts.mean(axis=0)
        return mean


def counted(layers: tuple[int, ...], tokens: Ints, token_experts: Ints, num_experts: int) -> Routing:
    """Routing from the experts of every token ([all tokens, layers, top_k], pass after pass)."""
    row = np.repeat(np.arange(len(tokens)), tokens)
    counts = np.zeros((len(tokens), len(layers), num_experts), dtype=np.int64)
    for at in range(len(layers)):
        ids = token_experts[:, at]
        known = ids < num_experts
        flat = (row[:, None] * num_experts + ids)[known]
        counts[:, at] = np.bincount(flat, minlength=len(tokens) * num_experts).reshape(len(tokens), num_experts)
    return Routing(
        layers=layers, top_k=token_experts.shape[2], tokens=tokens, counts=counts, token_experts=token_experts
    )

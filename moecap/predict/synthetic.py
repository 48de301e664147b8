"""Routing that nobody recorded: every token draws its experts independently, evenly or by a Zipf law."""

from __future__ import annotations

import numpy as np

from moecap.errors import ConfigError
from moecap.predict.routing import Ints, Routing, counted


def synthetic_routing(
    *, layers: tuple[int, ...], num_experts: int, top_k: int, tokens: Ints, exponent: float, seed: int
) -> Routing:
    """Passes of so many `tokens` [passes], their experts drawn one by one without repetition with weights
    1 / rank^`exponent` (0: uniform). Which expert has which rank is random, and fixed for each layer."""
    draw = np.random.default_rng(seed)
    ids = np.empty((int(tokens.sum()), len(layers), top_k), dtype=np.int64)
    weights = -exponent * np.log(np.arange(1, num_experts + 1))
    for at in range(len(layers)):
        # The k largest of log(weight) + Gumbel noise are a draw without repetition by weight.
        noisy = draw.permutation(weights) + draw.gumbel(size=(len(ids), num_experts))
        ids[:, at] = np.argpartition(-noisy, top_k - 1, axis=1)[:, :top_k]
    return counted(layers, tokens, ids, num_experts)


def exponent_of(skew: str) -> float:
    """`uniform` or `zipf:S` -> the exponent. ConfigError for anything else."""
    if skew == "uniform":
        return 0.0
    name, _, text = skew.partition(":")
    try:
        exponent = float(text)
    except ValueError:
        exponent = -1.0
    if name != "zipf" or not 0 <= exponent < float("inf"):
        raise ConfigError("is no distribution of routing", "--skew", skew, "use uniform, zipf:1.2 or a store")
    return exponent

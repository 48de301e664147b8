"""Routing that nobody recorded: every token draws its experts independently, evenly or by a Zipf law."""

from __future__ import annotations

import numpy as np

from moecap.errors import ConfigError
from moecap.predict.routing import Routing, counted


def synthetic_routing(
    *, layers: tuple[int, ...], num_experts: int, top_k: int, tokens: int, num_passes: int, exponent: float, seed: int
) -> Routing:
    """`num_passes` passes of `tokens` tokens, their experts drawn one by one without repetition with weights
    1 / rank^`exponent` (0: uniform). Which expert has which rank is random, and fixed for each layer."""
    if tokens < 1 or num_passes < 1 or not 1 <= top_k <= num_experts:
        raise ConfigError("routing needs tokens, passes and top-k of experts", "--batch-size", tokens, "use 1 or more")
    draw = np.random.default_rng(seed)
    ids = np.empty((num_passes * tokens, len(layers), top_k), dtype=np.int64)
    weights = -exponent * np.log(np.arange(1, num_experts + 1))
    for at in range(len(layers)):
        # The k largest of log(weight) + Gumbel noise are a draw without repetition by weight.
        noisy = draw.permutation(weights) + draw.gumbel(size=(len(ids), num_experts))
        ids[:, at] = np.argpartition(-noisy, top_k - 1, axis=1)[:, :top_k]
    return counted(layers, np.full(num_passes, tokens), ids, num_experts)


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

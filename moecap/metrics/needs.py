"""What a run needed of its hardware: memory it held, and rates it achieved. From records alone; it knows no device.

Definitions: docs/metrics.md. Cost basis `footprint` asks for the cheapest device that offers this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moecap.metrics.columns import PHASES, Bools, Floats, Passes
from moecap.metrics.work import PassWork, kv_held_bytes
from moecap.records import HeldWeights, ModelShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Of the whole deployment."""

    memory_bytes: float
    """Weights of all tiers, the most KV and state that one pass's requests held, workspace."""
    memory_bytes_per_s: float
    """Achieved: the highest of all passes, prefill and decode."""
    flops_per_s: Mapping[str, float]
    """Achieved, by compute dtype, likewise."""


def needs_of(shape: ModelShape, held: HeldWeights, passes: Passes, work: PassWork, num_replicas: int = 1) -> Needs:
    """Needs over the counted passes, of which there must be one.

    Data-parallel replicas run side by side, and a pass is of one of them: its KV, workspace and rates count for each.
    """
    of_one = kv_held_bytes(shape, held, passes).max() + workspace_bytes(shape, held, passes)
    rates = {dtype: _highest_rate(flops, passes) for dtype, flops in work.flops.items()}
    return Needs(
        memory_bytes=float(sum(held.weight_bytes.values()) + num_replicas * of_one),
        memory_bytes_per_s=num_replicas * _highest_rate(work.physical_bytes, passes),
        flops_per_s={dtype: num_replicas * rate for dtype, rate in rates.items() if rate},
    )


def workspace_bytes(shape: ModelShape, held: HeldWeights, passes: Passes) -> float:
    """Most that one pass's activations take when those of one layer live at a time.

    Per pass: rows (padding too) x (what the largest layer's operators read and write + the hidden state), and the
    logits. It leaves out what no record shows: the runtime's context, graphs, fragmentation.
    """
    largest = max((layer.activation_elements_per_token for layer in shape.layers), default=0)
    rows = passes.scheduled_tokens + passes.padded_tokens
    elements = rows * (largest + shape.hidden_size) + passes.logits_tokens * shape.vocab_size
    return float(elements.max() * held.activation_bytes_per_element)


def _highest_rate(amount: Floats, passes: Passes) -> float:
    """Amount per second of pass time, of the phase where it is highest."""
    return max((_rate(amount, passes, where) for where in map(passes.where, PHASES) if where.any()), default=0.0)


def _rate(amount: Floats, passes: Passes, where: Bools) -> float:
    seconds = np.sum(passes.duration_s[where])
    return float(np.sum(amount[where]) / seconds) if seconds > 0 else 0.0

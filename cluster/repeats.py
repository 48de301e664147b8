"""Whether the repeats of a point agree well enough to stop. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from moecap.metrics.statistics import half_width_over_mean
from moecap.records import RepeatsSpec


def agree(rates: Sequence[float], repeats: RepeatsSpec) -> bool:
    """Whether the full width of the 95 % Student-t interval of `rates` (output_tokens_per_s, one per stored run),
    divided by their mean, is at most `ci95_rel_width`. Never with fewer than `min` or two of them."""
    return len(rates) >= repeats.min and 2 * half_width_over_mean(rates) <= repeats.ci95_rel_width

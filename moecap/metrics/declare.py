"""What a metric is: a declaration (name, unit, direction, tables it needs) and a function that observes it in one run.

A metric is added by one decorated function in a module of its axis (`performance`, `cost`, `accuracy` ...). What the
functions yield can be combined over runs; how is said here, who does it is `reduce`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from moecap.metrics.columns import Floats

if TYPE_CHECKING:
    from moecap.metrics.view import RunView

Direction = Literal["higher", "lower", "neither"]
STATS: dict[str, float] = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
"""Percentiles of pooled samples, interpolated linearly between order statistics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One metric in one run, in a form that can be combined with other runs of the point.

    Exactly one of: a ratio (numerator and denominator, combined as a ratio of sums), samples (pooled), a largest value,
    or the reason why there is none.
    """

    phase: str | None = None
    scope: Literal["paper", "physical"] | None = None
    peak_source: str | None = None
    qualifiers: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    """Published with the qualifiers, but no part of what runs are matched by: what a value rests on may differ between
    them, and then the row names each."""
    numerator: float | None = None
    denominator: float | None = None
    price_bounds: tuple[float, float] | None = None
    """The numerator at the low and at the high ends of the prices."""
    samples: Floats | None = None
    largest: float | None = None
    missing: str | None = None
    n: int = 0
    """What it rests on: passes, requests, items or samples."""
    standard_error: float | None = None
    """Where the metric knows its own, as accuracy does."""
    per_request: bool = False
    """Samples are one per request, so that requests can be resampled."""

    def __post_init__(self) -> None:
        given = [self.numerator is not None, self.samples is not None, self.largest is not None, bool(self.missing)]
        if sum(given) != 1 or (self.numerator is None) != (self.denominator is None):
            raise ValueError(f"an observation is one of ratio, samples, largest or missing: {self}")
        if self.price_bounds is not None and self.numerator is None:
            raise ValueError(f"only a ratio's numerator has price bounds: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """A metric as it is known to users."""

    name: str
    unit: str
    direction: Direction
    needs: tuple[str, ...]
    """Tables of a run that it reads, and `chunk_tokens` where it counts tokens by their own time; a run in which one of
    them is empty, or unknown, has no value, and says so."""
    kind: Literal["performance", "accuracy"]
    """Points that it belongs to."""
    observe: Callable[[RunView], Iterator[Observed]]


METRICS: dict[str, Declaration] = {}
"""Every metric by name, filled when the modules of the axes are imported."""

Observer = Callable[["RunView"], Iterator[Observed]]


def metric(
    name: str,
    *,
    unit: str,
    direction: Direction,
    needs: tuple[str, ...],
    kind: Literal["performance", "accuracy"] = "performance",
) -> Callable[[Observer], Observer]:
    """Declare the decorated function as a metric. ValueError when the name is taken."""

    def declare(observe: Observer) -> Observer:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is declared twice")
        METRICS[name] = Declaration(name=name, unit=unit, direction=direction, needs=needs, kind=kind, observe=observe)
        return observe

    return declare


def ratio(numerator: float, denominator: float, *, n: int, why_zero: str, **key: Any) -> Observed:
    """`numerator / denominator`, or missing because of `why_zero` when there is nothing to divide by."""
    if denominator <= 0:
        return Observed(missing=why_zero, **key)
    return Observed(numerator=float(numerator), denominator=float(denominator), n=n, **key)


def pooled(samples: Floats, *, why_empty: str, **key: Any) -> Observed:
    """Samples, or missing because of `why_empty`."""
    return Observed(samples=samples, n=len(samples), **key) if len(samples) else Observed(missing=why_empty, **key)

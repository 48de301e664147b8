"""Observations of runs -> metric rows of runs and points: ratios of sums, pooled samples, intervals.

It knows no axis and no table; what is observed comes from the declared metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moecap.metrics.columns import Floats
from moecap.metrics.declare import METRICS, STATS, Declaration, Observed
from moecap.metrics.statistics import bootstrap_interval, interval_of_runs
from moecap.metrics.view import RunView
from moecap.records import Metric

NORMAL_QUANTILE = 1.959963984540054
"""Two-sided 95 % of the normal distribution: for standard errors over many items."""

Interval = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One observation with the metric that it is of."""

    declaration: Declaration
    observed: Observed

    @property
    def key(self) -> tuple[str, str | None, str | None, str | None, str]:
        """What observations of several runs are matched by."""
        seen = self.observed
        return self.declaration.name, seen.phase, seen.scope, seen.peak_source, qualifiers_json([seen], told=False)


def observe_run(run: RunView) -> list[Measured]:
    """Every declared metric of the run's kind. What a metric needs and the run lacks makes it missing, and says so."""
    kind = run.manifest.spec.point.kind
    found: list[Measured] = []
    for declaration in METRICS.values():
        if declaration.kind != kind:
            continue
        absent = next(filter(None, map(run.why_absent, declaration.needs)), None)
        if absent is not None:
            observations: list[Observed] = [Observed(missing=absent)]
        else:
            observations = list(declaration.observe(run))
        found += [Measured(declaration=declaration, observed=one) for one in observations]
    return found


def run_rows(run_id: str, measured: Sequence[Measured]) -> Iterator[Metric]:
    """Rows of one run."""
    for one in measured:
        yield from _rows("run", run_id, [one])


def point_rows(point_id: str, runs: Sequence[Sequence[Measured]]) -> Iterator[Metric]:
    """Rows of a point: over all its runs, those that have a value."""
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for one in (one for run in runs for one in run):
        groups.setdefault(one.key, []).append(one)
    for group in groups.values():
        known = [one for one in group if one.observed.missing is None]
        yield from _rows("point", point_id, known or group[:1])


def _rows(level: str, id_: str, group: Sequence[Measured]) -> Iterator[Metric]:
    first = group[0].observed
    if first.missing is not None:
        yield _row(level, id_, group, None, None)
    elif first.samples is not None:
        for stat, statistic in _sample_stats():
            pooled = np.concatenate([_samples(one) for one in group])
            per_run = [statistic(_samples(one)) for one in group]
            interval = interval_of_runs(per_run)
            if interval is None and level == "point" and first.per_request:
                interval = bootstrap_interval(pooled, statistic)
            yield _row(level, id_, group, statistic(pooled), interval, stat=stat)
    elif first.largest is not None:
        yield _row(level, id_, group, max(one.observed.largest or 0.0 for one in group), None)
    else:
        observed = [one.observed for one in group]
        yield _row(level, id_, group, *_ratio_of_sums(observed), price_bounds=_price_bounds(observed))


def _ratio_of_sums(observed: Sequence[Observed]) -> tuple[float, Interval]:
    """The value, and Student t over the runs' values or, for one run, the metric's own standard error."""
    parts = [(one.numerator or 0.0, one.denominator or 1.0) for one in observed]
    value = sum(numerator for numerator, _ in parts) / sum(denominator for _, denominator in parts)
    interval = interval_of_runs([numerator / denominator for numerator, denominator in parts])
    error = observed[0].standard_error
    if interval is None and error is not None:
        interval = value - NORMAL_QUANTILE * error, value + NORMAL_QUANTILE * error
    return value, interval


def _price_bounds(observed: Sequence[Observed]) -> Interval:
    """The ratio of sums at the low and at the high ends of the prices; None where no price is in it."""
    bounds = [one.price_bounds for one in observed if one.price_bounds is not None]
    if len(bounds) < len(observed):
        return None
    denominator = sum(one.denominator or 1.0 for one in observed)
    return sum(low for low, _ in bounds) / denominator, sum(high for _, high in bounds) / denominator


def _sample_stats() -> Iterator[tuple[str, Callable[[Floats], float]]]:
    yield "mean", lambda samples: float(samples.mean())
    for name, percent in STATS.items():
        yield name, lambda samples, percent=percent: float(np.percentile(samples, percent))  # type: ignore[misc]


def _samples(one: Measured) -> Floats:
    assert one.observed.samples is not None, "a metric's observations are all of one form"
    return one.observed.samples


def _row(
    level: str, id_: str, group: Sequence[Measured], value: float | None, interval: Interval, *, stat: str = "value",
    price_bounds: Interval = None,
) -> Metric:  # fmt: skip
    declaration, seen = group[0].declaration, group[0].observed
    return Metric(
        level=level, id=id_, metric=declaration.name, phase=seen.phase, scope=seen.scope, stat=stat,  # type: ignore[arg-type]
        peak_source=seen.peak_source, qualifiers=qualifiers_json([one.observed for one in group]),
        unit=declaration.unit, value=value,
        missing_reason=seen.missing, n=sum(one.observed.n for one in group),
        ci95_low=interval[0] if interval else None, ci95_high=interval[1] if interval else None,
        price_low=price_bounds[0] if price_bounds else None, price_high=price_bounds[1] if price_bounds else None,
    )  # fmt: skip


def qualifiers_json(observed: Sequence[Observed], *, told: bool = True) -> str:
    """Qualifiers as one canonical JSON object; with what else is told, each thing that the observations tell once."""
    stated = dict(observed[0].qualifiers)
    for name in dict.fromkeys(name for one in observed for name in one.told if told):
        stated[name] = " or ".join(dict.fromkeys(one.told[name] for one in observed if name in one.told))
    return json.dumps(stated, sort_keys=True)

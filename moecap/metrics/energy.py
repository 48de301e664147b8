"""Energy of a run's window by component, by counters or by estimates from TDP, and its metrics.

Counters are those of the whole host, and count for a run without accelerators whole: it has the host to itself. With
accelerators the host's counters count by the share of devices, as its price does. Estimates are the placed share of
the TDP, all the time. What accelerators used isn't recorded: it is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moecap.metrics.declare import Observed, metric, ratio
from moecap.metrics.performance import completed, output_tokens
from moecap.metrics.view import RunView
from moecap.prices.node import Part

NO_TOKENS = "no output token in the window"
NOTHING = "no counter was readable, and no TDP is known"
MIN_SAMPLES = 3
"""Readings inside a window without which its energy is not known."""
SOURCES = ("rapl", "tdp_estimate", "missing")
"""Strongest first."""
COUNTERS = {"cpu": "package_energy_j", "dram": "dram_energy_j"}
"""Component -> column of the host's samples."""
NAMES = {"device": "placed devices", "cpu": "CPU packages", "dram": "DRAM", "ssd": "SSD", "host": "host"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentEnergy:
    """What one component used in the window."""

    component: str
    joules: float | None
    source: str
    n: int = 0
    """Readings that it rests on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """Energy of the window and where the number comes from."""

    joules: float | None
    qualifiers: Mapping[str, str]
    """energy_source, the weakest of all components; energy_scope, which they are."""
    n: int
    missing: str | None = None


def component_energies(run: RunView) -> tuple[ComponentEnergy, ...]:
    """Every component that the placement takes a share of, by its counter, else by its TDP.

    A host whose TDP is one number is split no further: with its packages counted, the rest of it stays unknown.
    """
    counted = dict(_counted(run))
    parts = run.placed.parts
    if "cpu" in counted:
        parts = tuple(part for part in parts if part.component != "host")
    elif any(part.component == "host" for part in parts):
        counted = {}  # its TDP holds the DRAM's
    estimated = [_estimate(part, run.window_s) for part in parts if part.component not in counted]
    silent = [] if "dram" in counted or "cpu" not in counted else [_unknown("dram")]
    known = {one.component for one in estimated}
    return (*counted.values(), *estimated, *(one for one in silent if one.component not in known))


def _counted(run: RunView) -> Iterator[tuple[str, ComponentEnergy]]:
    """Components whose counter was read."""
    share = run.placed.share if run.manifest.placement.device_uuids else 1.0
    for component, counter in COUNTERS.items():
        delta = _delta(run, counter)
        if delta is not None:
            yield component, ComponentEnergy(component=component, joules=delta[0] * share, source="rapl", n=delta[1])


def _estimate(part: Part, seconds: float) -> ComponentEnergy:
    if part.watts is None:
        return _unknown(part.component)
    return ComponentEnergy(component=part.component, joules=part.watts * seconds, source="tdp_estimate")


def _unknown(component: str) -> ComponentEnergy:
    return ComponentEnergy(component=component, joules=None, source="missing")


def _delta(run: RunView, counter: str) -> tuple[float, int] | None:
    """Increase of a counter over the window, interpolated between samples, and the readings inside it; None without
    enough of them."""
    table = run.run.hosts.select(["time_ns", counter]).drop_null()
    times, values = table["time_ns"].to_numpy(), table[counter].to_numpy()
    inside = int(run.inside(times).sum())
    if inside < MIN_SAMPLES:
        return None
    start, end = np.interp(np.array(run.window_ns), times, values)
    return float(end - start), inside


def filled_energy(run: RunView) -> Energy:
    """Measured components, and estimates of the others: what cost is charged by."""
    return _total(component_energies(run))


def measured_energy(run: RunView) -> Energy:
    """Measured components alone when those that compute are among them; else as `filled_energy`."""
    parts = component_energies(run)
    computing = "device" if run.manifest.placement.device_uuids else "cpu"
    if all(one.source == "rapl" for one in parts if one.component == computing) and _has(parts, computing):
        parts = tuple(one if one.source == "rapl" else _unknown(one.component) for one in parts)
    return _total(parts)


def _has(parts: Sequence[ComponentEnergy], component: str) -> bool:
    return any(one.component == component for one in parts)


def _total(parts: Sequence[ComponentEnergy]) -> Energy:
    """Sum of what is known; unknown when what computes, or a whole host, is."""
    needed = [one for one in parts if one.component in ("device", "cpu", "host")]
    if not needed or any(one.joules is None for one in needed):
        return Energy(joules=None, qualifiers={"energy_source": "missing"}, n=0, missing=NOTHING)
    known = [one for one in parts if one.joules is not None]
    weakest = max((one.source for one in known), key=SOURCES.index)
    scope = {"energy_source": weakest, "energy_scope": _scope(parts)}
    return Energy(joules=sum(one.joules or 0.0 for one in known), qualifiers=scope, n=sum(one.n for one in known))


def _scope(parts: Sequence[ComponentEnergy]) -> str:
    """`CPU packages (DRAM is not measured)`, `CPU packages and DRAM; by TDP: board and network`."""
    by_source = {source: _names(one.component for one in parts if one.source == source) for source in SOURCES}
    estimated = f"by TDP: {by_source['tdp_estimate']}" if by_source["tdp_estimate"] else ""
    told = "; ".join(filter(None, (by_source["rapl"], estimated)))
    lacks = by_source["missing"]
    return f"{told} ({lacks} {'are' if ' and ' in lacks else 'is'} not measured)" if lacks else told


def _names(components: Iterable[str]) -> str:
    names = [NAMES.get(one, one) for one in dict.fromkeys(components)]
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


@metric("energy_j_per_output_token", unit="J", direction="lower", needs=("requests", "chunk_tokens"))
def energy_j_per_output_token(run: RunView) -> Iterator[Observed]:
    """Energy of the window / output tokens of the window."""
    yield _energy_over(run, output_tokens(run), NO_TOKENS)


@metric("energy_j_per_request", unit="J", direction="lower", needs=("requests",))
def energy_j_per_request(run: RunView) -> Iterator[Observed]:
    """Energy of the window / requests that completed in it."""
    yield _energy_over(run, float(completed(run)), "no request completed in the window")


def _energy_over(run: RunView, count: float, why_zero: str) -> Observed:
    energy = measured_energy(run)
    if energy.joules is None:
        return Observed(missing=energy.missing, qualifiers=energy.qualifiers)
    return ratio(energy.joules, count, n=energy.n, why_zero=why_zero, qualifiers=energy.qualifiers)

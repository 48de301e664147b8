"""Energy of a run's window by component: by counters, by integrated power, or by estimates from TDP. Metrics of it are
in `energy`.

Devices are the placed ones, by their own counters, else by their sampled power. Counters of the host are the whole
host's, and count for a run without accelerators whole: it has the host to itself. With accelerators they count by the
share of devices, as the host's price does. Estimates are the placed share of the TDP, all the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from moecap.metrics.devices import MIN_READINGS, SLICED, Reading
from moecap.metrics.series import Stretch, series_of
from moecap.metrics.view import RunView
from moecap.prices.node import Part

NOTHING = "no counter was readable, and no TDP is known"
SOURCES = ("nvml_counter", "rapl", "nvml_power", "tdp_estimate", "missing")
"""Strongest first."""
MEASURED = SOURCES[:3]
COUNTERS = {"cpu": "package_energy_j", "dram": "dram_energy_j"}
"""Component -> column of the host's samples."""
NAMES = {"device": "placed devices", "cpu": "CPU packages", "dram": "DRAM", "ssd": "SSD", "host": "host"}
GPU = "GPU"
"""What the drivers of devices call their board as a whole, memory included."""


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


def device_energy(run: RunView, source: str, stretch: Stretch) -> Reading:
    """What the placed devices used, by `nvml_counter` or `nvml_power`."""
    if run.devices.is_sliced:
        return Reading(missing=SLICED)
    return (
        run.devices.increase("energy_j", stretch)
        if source == "nvml_counter"
        else run.devices.integral("power_w", stretch)
    )


def host_energy(run: RunView, component: str, stretch: Stretch) -> Reading:
    """What the host's CPU packages or DRAM used, by their counter; of a run with devices, their share."""
    column = COUNTERS[component]
    series = series_of(run.run.hosts, column)
    if series.inside(stretch) < MIN_READINGS or not series.covers(stretch):
        return Reading(
            missing=run.manifest.unknown.get(column, f"{column} was not read from the window's start to its end")
        )
    share = run.placed.share if run.manifest.placement.device_uuids else 1.0
    return Reading(value=series.increase(stretch) * share, n=series.inside(stretch))


def component_energies(run: RunView) -> tuple[ComponentEnergy, ...]:
    """Every component that the placement takes a share of, by its counter, its power, or else by its TDP.

    A host whose TDP is one number is split no further: with its packages counted, the rest of it stays unknown.
    """
    counted = dict(_counted(run))
    parts = run.placed.parts
    if "cpu" in counted:
        parts = tuple(part for part in parts if part.component != "host")
    elif any(part.component == "host" for part in parts):
        counted.pop("dram", None)  # the host's TDP holds it
    estimated = [_estimate(part, run.window_s) for part in parts if part.component not in counted]
    silent = [] if "dram" in counted or "cpu" not in counted else [_unknown("dram")]
    known = {one.component for one in estimated}
    return (*counted.values(), *estimated, *(one for one in silent if one.component not in known))


def _counted(run: RunView) -> Iterator[tuple[str, ComponentEnergy]]:
    """Components that were measured."""
    for source in ("nvml_power", "nvml_counter"):  # the later one stands
        found = device_energy(run, source, run.window_ns)
        if found.value is not None:
            yield "device", ComponentEnergy(component="device", joules=found.value, source=source, n=found.n)
    for component in COUNTERS:
        found = host_energy(run, component, run.window_ns)
        if found.value is not None:
            yield component, ComponentEnergy(component=component, joules=found.value, source="rapl", n=found.n)


def _estimate(part: Part, seconds: float) -> ComponentEnergy:
    if part.watts is None:
        return _unknown(part.component)
    return ComponentEnergy(component=part.component, joules=part.watts * seconds, source="tdp_estimate")


def _unknown(component: str) -> ComponentEnergy:
    return ComponentEnergy(component=component, joules=None, source="missing")


def filled_energy(run: RunView) -> Energy:
    """Measured components, and estimates of the others: what cost is charged by."""
    return _total(component_energies(run), ("device", "cpu", "host"))


def measured_energy(run: RunView) -> Energy:
    """Measured components alone when those that compute are among them; else as `filled_energy`."""
    parts = component_energies(run)
    computing = [one for one in parts if one.component == computing_component(run)]
    if not computing or any(one.source not in MEASURED for one in computing):
        return filled_energy(run)
    measured = [one if one.source in MEASURED else _unknown(one.component) for one in parts]
    return _total(measured, (computing_component(run),))


def computing_component(run: RunView) -> str:
    """Which component the passes run on."""
    return "device" if run.manifest.placement.device_uuids else "cpu"


def _total(parts: Sequence[ComponentEnergy], needed: Sequence[str]) -> Energy:
    """Sum of what is known; unknown when one of the needed components is."""
    of_these = [one for one in parts if one.component in needed]
    if not of_these or any(one.joules is None for one in of_these):
        return Energy(joules=None, qualifiers={"energy_source": "missing"}, n=0, missing=NOTHING)
    known = [one for one in parts if one.joules is not None]
    weakest = max((one.source for one in known), key=SOURCES.index)
    scope = {"energy_source": weakest, "energy_scope": _scope(parts)}
    return Energy(joules=sum(one.joules or 0.0 for one in known), qualifiers=scope, n=sum(one.n for one in known))


def _scope(parts: Sequence[ComponentEnergy]) -> str:
    """`GPU and CPU packages (DRAM is not measured)`, `CPU packages and DRAM; by TDP: board and network`."""
    measured = _names(GPU if one.component == "device" else one.component for one in parts if one.source in MEASURED)
    by_source = {source: _names(one.component for one in parts if one.source == source) for source in SOURCES[3:]}
    estimated = f"by TDP: {by_source['tdp_estimate']}" if by_source["tdp_estimate"] else ""
    told = "; ".join(filter(None, (measured, estimated)))
    lacks = by_source["missing"]
    return f"{told} ({lacks} {'are' if ' and ' in lacks else 'is'} not measured)" if lacks else told


def _names(components: Iterable[str]) -> str:
    names = [NAMES.get(one, one) for one in dict.fromkeys(components)]
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))

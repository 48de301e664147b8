"""Metrics of energy: of the window, per token, per request and per phase, each with the source and scope of its number.

What each component used is worked out in `components`. Device energy stands by the driver's counter and by integrated
power side by side; how far they lie apart, and whether the window holds enough of the counter's updates, is judged
here. Definitions: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from moecap.metrics.columns import NS
from moecap.metrics.components import (
    COUNTERS,
    GPU,
    NAMES,
    Energy,
    computing_component,
    device_energy,
    filled_energy,
    host_energy,
    measured_energy,
)
from moecap.metrics.declare import Observed, metric, ratio
from moecap.metrics.devices import Reading
from moecap.metrics.one_phase import one_phase_stretches, passes_in, within
from moecap.metrics.performance import completed, output_tokens
from moecap.metrics.series import Stretch
from moecap.metrics.view import RunView

NO_TOKENS = "no output token in the window"
MIN_UPDATES = 100
"""Of the devices' energy counter, in a window that is long enough for it."""
NVML_PERIOD_S = 0.1
"""Of the counter where it was not seen to change: an H100's changes every 100 ms."""
DISAGREEMENT_LIMIT = 0.05
"""Counter against integrated power: NVML's documentation gives its readings as accurate within 5 %."""
MIN_PHASE_READINGS = 20
"""Power readings inside a stretch of one phase: its two ends, blurred by one reading each, are then 10 % of it."""
DEVICE_SOURCES = ("nvml_counter", "nvml_power")
POWER_SCOPES = {"module": "module_power_w", "memory": "memory_power_w"}
"""Scopes beside the GPU's own -> column. The module holds the GPU, the GPU its memory: they add up to nothing."""


def counter_updates(run: RunView) -> float | None:
    """How often the slowest placed device's energy counter changed in the window; None without a counter."""
    counters = run.devices.series("energy_j")
    if not counters or not all(len(one.times_ns) for one in counters.values()):
        return None
    return run.window_s / max(run.devices.energy_period_s(uuid) or NVML_PERIOD_S for uuid in counters)


def short_energy_window(run: RunView) -> str:
    """Why the devices' energies are uncertain; empty: they are not."""
    updates = counter_updates(run)
    if updates is None or updates >= MIN_UPDATES:
        return ""
    return f"{updates:.0f} updates of the devices' energy counter in the window, fewer than {MIN_UPDATES}"


def disagreement(run: RunView) -> Observed:
    """Integrated power against the counter, over the window."""
    counter, power = (device_energy(run, source, run.window_ns) for source in DEVICE_SOURCES)
    if counter.value is None or power.value is None:
        return Observed(missing=counter.missing or power.missing)
    return ratio(power.value - counter.value, counter.value, n=power.n, why_zero="the counter did not rise")


def total_and_devices(run: RunView) -> Iterator[Energy]:
    """The total first, then the devices by either source."""
    yield measured_energy(run)
    if run.manifest.placement.device_uuids:
        for source in DEVICE_SOURCES:
            yield _component(device_energy(run, source, run.window_ns), "device", source, GPU)


def every_scope(run: RunView) -> Iterator[Energy]:
    """The same, then other scopes of the devices, the host's counters, and the whole node with its estimates."""
    yield from total_and_devices(run)
    if run.manifest.placement.device_uuids:
        for scope, column in POWER_SCOPES.items():
            yield _component(run.devices.integral(column, run.window_ns), scope, "nvml_power", scope)
    for component in COUNTERS:
        yield _component(host_energy(run, component, run.window_ns), component, "rapl", NAMES[component])
    whole = filled_energy(run)
    yield replace(whole, qualifiers={**whole.qualifiers, "component": "node"})


def _component(found: Reading, component: str, source: str, scope: str) -> Energy:
    key = {"component": component, "energy_source": source, "energy_scope": scope}
    return Energy(joules=found.value, qualifiers=key, n=found.n, missing=found.missing)


def _over(run: RunView, energy: Energy, count: float, why_zero: str) -> Observed:
    """Energy over a count; rows that rest on devices' samples say when there are too few of them."""
    short = short_energy_window(run) if str(energy.qualifiers.get("energy_source")).startswith("nvml") else ""
    told = {"short_energy_window": short} if short else {}
    if energy.joules is None:
        return Observed(missing=energy.missing, qualifiers=energy.qualifiers)
    return replace(ratio(energy.joules, count, n=energy.n, why_zero=why_zero, qualifiers=energy.qualifiers), told=told)


def _per(
    energies: Callable[[RunView], Iterator[Energy]], count: Callable[[RunView], float], why_zero: str
) -> Callable[[RunView], Iterator[Observed]]:
    def observe(run: RunView) -> Iterator[Observed]:
        for energy in energies(run):
            yield _over(run, energy, count(run), why_zero)

    return observe


metric("energy_j", unit="J", direction="lower", needs=())(_per(every_scope, lambda run: 1.0, ""))
metric("power_w", unit="W", direction="lower", needs=())(
    _per(every_scope, lambda run: run.window_s, "the window is empty")
)
metric("energy_j_per_output_token", unit="J", direction="lower", needs=("requests", "chunk_tokens"))(
    _per(total_and_devices, output_tokens, NO_TOKENS)
)
metric("energy_j_per_request", unit="J", direction="lower", needs=("requests",))(
    _per(total_and_devices, lambda run: float(completed(run)), "no request completed in the window")
)


@metric("energy_disagreement", unit="share", direction="neither", needs=("devices",))
def energy_disagreement(run: RunView) -> Iterator[Observed]:
    """Integrated power of the devices / their counter - 1, over the window."""
    yield disagreement(run)


@metric("idle_power_w", unit="W", direction="lower", needs=())
def idle_power_w(run: RunView) -> Iterator[Observed]:
    """What the placed devices draw while nothing runs on them, by counter: in every energy above, never taken off."""
    found, key = run.devices.facts("idle_power_w"), {"energy_scope": GPU}
    if isinstance(found, str):
        yield Observed(missing=found, qualifiers=key)
    else:
        yield Observed(numerator=sum(found.values()), denominator=1.0, n=len(found), qualifiers=key)


# ------------------------------------------------------------------------------------------------------- by phase


@metric("phase_energy_j_per_token", unit="J", direction="lower", needs=("passes",))
def phase_energy_j_per_token(run: RunView) -> Iterator[Observed]:
    """Energy of what computes, over the stretches of the window in which every pass is of one phase / tokens that their
    passes computed."""
    for phase in ("prefill", "decode"):
        yield _of_phase(run, phase)


def _of_phase(run: RunView, phase: str) -> Observed:
    on_device = computing_component(run) == "device"
    source, scope = ("nvml_power", GPU) if on_device else ("rapl", NAMES["cpu"])
    key = {"energy_source": source, "energy_scope": scope}
    if run.num_replicas > 1:
        return Observed(missing="passes of several replicas overlap", phase=phase, qualifiers=key)
    joules = tokens = seconds = 0.0
    n, why = 0, f"no stretch of {phase} passes alone lies in the window"
    for stretch in _stretches(run, phase):
        found = device_energy(run, source, stretch) if on_device else host_energy(run, "cpu", stretch)
        if found.value is None:
            why = found.missing
        elif found.n < MIN_PHASE_READINGS * max(1, len(run.manifest.placement.device_uuids)):
            why = f"no stretch of {phase} alone holds {MIN_PHASE_READINGS} readings"
        else:
            passes, shares = passes_in(run.run.passes, stretch)
            joules, tokens = joules + found.value, tokens + float(passes.scheduled_tokens @ shares)
            seconds, n = seconds + (stretch[1] - stretch[0]) * NS, n + found.n
    if not n:
        return Observed(missing=why, phase=phase, qualifiers=key)
    told = {"stretches": f"{seconds:.1f} s"}
    return replace(ratio(joules, tokens, n=n, why_zero=why, phase=phase, qualifiers=key), told=told)


def _stretches(run: RunView, phase: str) -> Iterator[Stretch]:
    for one in one_phase_stretches(run.run.passes):
        inside = within(one.stretch, run.window_ns)
        if one.phase == phase and inside is not None:
            yield inside

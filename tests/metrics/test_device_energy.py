"""Energy of placed devices by counter and by integrated power, worked out by hand."""

from typing import Any

import pytest
from hand_made import a_run, device, host, one_pass, placed, request, view

from moecap.metrics.components import filled_energy, measured_energy
from moecap.metrics.declare import METRICS, Observed
from moecap.metrics.energy import counter_updates, short_energy_window
from moecap.metrics.reduce import AXES
from moecap.metrics.view import RunView
from moecap.records import DeviceFacts, DeviceSample, Phase

assert AXES
TIMES = [tenths / 10 for tenths in range(-10, 130)]
"""From 1 s before the window of 10 s to 3 s after it."""


def samples(uuid: str = "GPU-a", watts: float = 300.0, counted: float | None = None) -> tuple[DeviceSample, ...]:
    """Power, and a counter that rises by `counted` a second, by default by what the power says."""
    rate = watts if counted is None else counted
    return tuple(device(t, uuid, power_w=watts, energy_j=5e6 + rate * (t + 1)) for t in TIMES)


def run_of(*devices: DeviceSample, uuids: tuple[str, ...] = ("GPU-a",), **changes: Any) -> RunView:
    made = (request(0, 1.0, (2.0, 3.0)), request(1, 1.0, (4.0, 5.0)))
    return view(a_run(devices=devices, requests=made, **{**placed(*uuids), **changes}))


def rows(name: str, run: RunView) -> dict[tuple[str | None, str], Observed]:
    """By component and source."""
    found = METRICS[name].observe(run)
    return {(one.qualifiers.get("component"), one.qualifiers["energy_source"]): one for one in found}


def value(one: Observed) -> float:
    assert one.numerator is not None and one.denominator is not None, one.missing
    return one.numerator / one.denominator


def test_both_ways_stand_side_by_side_and_the_counter_is_the_total() -> None:
    """300 W for 10 s; the counter says 309 W. Four output tokens, two requests."""
    run = run_of(*samples(counted=309.0))
    found = rows("energy_j", run)
    assert value(found["device", "nvml_counter"]) == pytest.approx(3090)
    assert value(found["device", "nvml_power"]) == pytest.approx(3000)
    assert value(found[None, "nvml_counter"]) == pytest.approx(3090)
    assert found["device", "nvml_power"].qualifiers["energy_scope"] == "GPU"
    assert found[None, "nvml_counter"].qualifiers["energy_scope"] == (
        "GPU (CPU packages, DRAM, SSD, board and network are not measured)"
    )
    per_token = rows("energy_j_per_output_token", run)
    assert value(per_token[None, "nvml_counter"]) == pytest.approx(3090 / 4)
    assert value(per_token["device", "nvml_power"]) == pytest.approx(3000 / 4)
    assert value(rows("energy_j_per_request", run)["device", "nvml_counter"]) == pytest.approx(3090 / 2)
    assert value(rows("power_w", run)["device", "nvml_counter"]) == pytest.approx(309)
    (apart,) = METRICS["energy_disagreement"].observe(run)
    assert value(apart) == pytest.approx(3000 / 3090 - 1)


def test_several_devices_add_up_and_others_are_not_counted() -> None:
    both = (*samples("GPU-a", 300.0), *samples("GPU-b", 200.0))
    assert value(rows("energy_j", run_of(*both, uuids=("GPU-a", "GPU-b")))["device", "nvml_counter"]) == 5000
    assert value(rows("energy_j", run_of(*both, uuids=("GPU-b",)))["device", "nvml_power"]) == pytest.approx(2000)


def test_a_silent_device_leaves_the_sum_unknown_and_is_named() -> None:
    run = run_of(*samples("GPU-a"), uuids=("GPU-a", "GPU-b"), unknown={"devices.energy_j": "not supported"})
    found = rows("energy_j", run)
    assert found["device", "nvml_counter"].missing == "energy_j of GPU-b: not supported"
    assert found["device", "nvml_power"].missing == "power_w of GPU-b: it was not sampled"
    assert found[None, "missing"].missing == "no counter was readable, and no TDP is known"


def test_without_a_counter_integrated_power_is_the_total_and_cost_takes_it() -> None:
    """The host's CPUs and the rest are estimates in what cost is charged by: the weakest source names it."""
    run = run_of(*(device(t, power_w=300.0) for t in TIMES), unknown={"devices.energy_j": "not supported"})
    assert measured_energy(run).joules == pytest.approx(3000)
    assert measured_energy(run).qualifiers["energy_source"] == "nvml_power"
    filled = filled_energy(run)
    assert filled.qualifiers["energy_source"] == "tdp_estimate" and filled.joules is not None and filled.joules > 3000
    assert filled.qualifiers["energy_scope"].startswith("GPU; by TDP: CPU packages")
    spent = next(METRICS["energy_usd_per_million_output_tokens"].observe(run))
    assert spent.numerator == pytest.approx(filled.joules * 1.3 / 3.6e6 * 0.12)


def test_host_counters_join_the_total() -> None:
    """One of two devices has half of the packages' 100 J/s."""
    hosts = tuple(host(t, package_energy_j=100.0 * t) for t in (-1, 2, 5, 9, 11))
    run = run_of(*samples(), hosts=hosts)
    assert measured_energy(run).joules == pytest.approx(3000 + 500)
    assert value(rows("energy_j", run)["cpu", "rapl"]) == pytest.approx(500)
    scope = measured_energy(run).qualifiers["energy_scope"]
    assert scope == "GPU and CPU packages (DRAM, SSD, board and network are not measured)"


def test_other_scopes_stand_apart() -> None:
    """Module 500 W, memory 80 W: neither is in the total."""
    run = run_of(*(device(t, power_w=300.0, module_power_w=500.0, memory_power_w=80.0) for t in TIMES))
    found = rows("energy_j", run)
    assert value(found["module", "nvml_power"]) == pytest.approx(5000)
    assert value(found["memory", "nvml_power"]) == pytest.approx(800)
    assert value(found[None, "nvml_power"]) == pytest.approx(3000)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (tuple(one for one in samples() if one.time_ns < 9 * 10**9), "don't reach from the window's start to its end"),
        (tuple(one for one in samples() if not 0 <= one.time_ns < 9.9e9), "2 readings lie in the window"),
        (tuple(device(t, power_w=1.0, energy_j=100.0 - t) for t in TIMES), "it fell"),
    ],
)
def test_what_no_counter_can_be_trusted_for(made: tuple[DeviceSample, ...], why: str) -> None:
    missing = rows("energy_j", run_of(*made))["device", "nvml_counter"].missing
    assert missing is not None and why in missing


def test_an_instance_of_a_device_has_no_energy_of_its_own() -> None:
    run = run_of(*samples(), device_facts={"GPU-a": DeviceFacts(name="card", mig=True)})
    missing = rows("energy_j", run)["device", "nvml_counter"].missing
    assert missing is not None and "MIG" in missing


def test_a_short_window_says_so() -> None:
    """10 s hold 100 updates of 100 ms; 9 s hold 90; a counter of 20 ms would do with 2 s."""
    assert counter_updates(run_of(*samples())) == pytest.approx(100)
    assert short_energy_window(run_of(*samples())) == ""
    short = run_of(*samples(), window_s=(0.0, 9.0))
    why = "90 updates of the devices' energy counter in the window, fewer than 100"
    assert short_energy_window(short) == why
    assert rows("energy_j", short)["device", "nvml_power"].told == {"short_energy_window": why}
    assert rows("energy_j", short)["cpu", "rapl"].told == {}
    quick = {"GPU-a": DeviceFacts(name="card", energy_period_s=0.02)}
    assert counter_updates(run_of(*samples(), device_facts=quick, window_s=(0.0, 2.0))) == pytest.approx(100)
    both = {"GPU-a": quick["GPU-a"], "GPU-b": DeviceFacts(name="card", energy_period_s=0.2)}
    two = run_of(*samples(), *samples("GPU-b"), uuids=("GPU-a", "GPU-b"), device_facts=both)
    assert counter_updates(two) == pytest.approx(50), "the slowest counts"
    constant = run_of(*(device(t, energy_j=5.0) for t in TIMES), window_s=(0.0, 2.0))
    assert counter_updates(constant) == pytest.approx(20), "where it never changed: what an H100's does"


def test_idle_power_stands_apart_with_its_reason() -> None:
    facts = {"GPU-a": DeviceFacts(name="card", idle_power_w=70.0), "GPU-b": DeviceFacts(name="card", idle_power_w=65.0)}
    (both,) = METRICS["idle_power_w"].observe(run_of(uuids=("GPU-a", "GPU-b"), device_facts=facts))
    assert value(both) == 135
    busy = {"GPU-a": DeviceFacts(name="card", unknown={"idle_power_w": "another process ran on it"})}
    (one,) = METRICS["idle_power_w"].observe(run_of(device_facts=busy))
    assert one.missing == "idle_power_w of GPU-a: another process ran on it"


def phased(*phases: tuple[Phase, float, int], start_s: float = 0.0) -> dict[str, Any]:
    """Passes one after the other: phase, seconds, tokens."""
    passes, now = [], start_s
    for index, (phase, seconds, tokens) in enumerate(phases):
        passes.append(one_pass(index, phase, now, seconds, (tokens,), (tokens,)))
        now += seconds
    return {"passes": tuple(passes)}


def by_phase(run: RunView) -> dict[str | None, Observed]:
    return {one.phase: one for one in METRICS["phase_energy_j_per_token"].observe(run)}


def test_phases_that_lie_apart_in_time_have_energies_of_their_own() -> None:
    """4 s of prefill at 400 W, 1000 tokens; 6 s of decode at 300 W, 600 tokens, of which the last half lies outside the
    window of 7 s. The step between lies in the 0.1 s before 4 s: 5 J of prefill's 1600."""
    drawn = tuple(device(t, power_w=400.0 if t < 4 else 300.0) for t in TIMES)
    split = phased((Phase.PREFILL, 4.0, 1000), (Phase.DECODE, 3.0, 300), (Phase.DECODE, 3.0, 300))
    found = by_phase(run_of(*drawn, window_s=(0.0, 7.0), **split))
    assert value(found["prefill"]) == pytest.approx((1600 - 5) / 1000)
    assert value(found["decode"]) == pytest.approx(900 / 300)
    assert found["decode"].told == {"stretches": "3.0 s"}


def test_a_pass_across_the_edge_counts_by_its_share() -> None:
    """Half of the pass of 200 tokens lies in the window: 300 J/s x 4 s over 200 + 100 tokens."""
    drawn = tuple(device(t, power_w=300.0) for t in TIMES)
    split = phased((Phase.DECODE, 2.0, 200), (Phase.DECODE, 4.0, 200), start_s=1.0)
    found = by_phase(run_of(*drawn, window_s=(0.0, 5.0), **split))
    assert value(found["decode"]) == pytest.approx(300 * 4 / 300)


def test_phases_that_alternate_are_not_told_apart() -> None:
    drawn = tuple(device(t, power_w=300.0) for t in TIMES)
    mixed = phased(*[(Phase.PREFILL, 0.5, 10), (Phase.DECODE, 1.5, 10)] * 5)
    found = by_phase(run_of(*drawn, **mixed))
    assert found["decode"].missing == "no stretch of decode alone holds 20 readings"
    both = run_of(*drawn, **phased((Phase.MIXED, 10.0, 5)))
    assert by_phase(both)["decode"].missing == "no stretch of decode passes alone lies in the window"


def test_phases_of_a_run_on_cpus_go_by_the_packages_counter() -> None:
    hosts = tuple(host(t, package_energy_j=20.0 * t) for t in TIMES)
    run = view(a_run(hosts=hosts, **phased((Phase.DECODE, 10.0, 100))))
    found = by_phase(run)["decode"]
    assert value(found) == pytest.approx(2.0) and found.qualifiers["energy_source"] == "rapl"

"""Tables of the devices' counters: what stands where, reasons for what is unknown, nothing without devices."""

import json
from typing import Any

from study_in_hand import performance_point, plan_of, row

from moecap.records import Metric
from moecap.report.silicon import silicon

ONE, OTHER = performance_point("vllm", 1), performance_point("vllm", 64)
PLAN = plan_of(ONE, OTHER)
SHORT = "0.0 s are the longest time of prefill passes alone"


def qualified(**qualifiers: Any) -> dict[str, str]:
    return {"qualifiers": json.dumps(qualifiers)}


def truth(phase: str, window: str, *values: float | None) -> list[Metric]:
    """Shares: counted, counter, three errors."""
    names = ("counted_dram_utilisation", "dram_utilisation", "s_mbu_error", "mbu_error", "mbu_min_bk_error")
    reason = {"missing_reason": SHORT} if None in values else {}
    return [
        row(ONE, name, value, "share", phase=phase, **qualified(window=window), **reason)
        for name, value in zip(names, values, strict=True)
    ]


def test_counted_bytes_beside_the_counter_and_the_usual_estimates() -> None:
    metrics = [
        *truth("decode", "12.3 s, 500 passes", 0.76354, 0.7621, 0.0018, 0.0135, -0.25),
        row(ONE, "tile_efficiency", 0.5, "share", phase="decode", peak_source="calibrated"),
        row(ONE, "tile_efficiency", 0.25, "share", phase="decode", peak_source="catalogue"),
        row(ONE, "dram_utilisation", 0.9, "share"),  # of the measurement window: not in this table
    ]
    title, _, table = silicon(metrics, PLAN)
    assert title == "## Counted against the silicon"
    assert table.splitlines()[2:] == [
        "| vllm concurrency=1 | decode | 12.3 s, 500 passes | 76.4 | 76.2 | +0.18 | +1.35 | -25.00 | 50.0 |"
    ]


def test_what_is_unknown_has_its_reason_once() -> None:
    metrics = [*truth("decode", "9 s", 0.5, 0.5, 0.0, 0.0, 0.0), *truth("prefill", "", *[None] * 5)]
    _, _, table, reasons = silicon(metrics, PLAN)
    assert table.splitlines()[3].startswith("| vllm concurrency=1 | prefill |  | – | – | – |")
    assert reasons.splitlines() == [
        "- –: it was not measured (vllm concurrency=1 decode, vllm concurrency=1 prefill)",
        f"- –: {SHORT} (vllm concurrency=1 prefill)",
    ]


def test_energy_by_both_sources_with_the_conditions() -> None:
    counter, power = (qualified(component="device", energy_source=source) for source in ("nvml_counter", "nvml_power"))
    metrics = [
        row(OTHER, "energy_j_per_output_token", 9.9, "J", **qualified(energy_source="rapl")),  # the total
        row(OTHER, "energy_j_per_output_token", 2.0, "J", **counter),
        row(OTHER, "energy_j_per_output_token", 2.1, "J", **power),
        row(OTHER, "energy_disagreement", 0.05, "share"),
        row(OTHER, "energy_j_per_request", 256.0, "J", **counter),
        row(OTHER, "power_w", 532.0, "W", **counter),
        row(OTHER, "idle_power_w", 70.0, "W"),
        row(OTHER, "temperature_c", 51.0, "C", stat="p50"),
        row(OTHER, "temperature_c", 60.0, "C", stat="p99"),
        row(OTHER, "sm_clock_hz", 1.98e9, "Hz", stat="p50"),
        row(OTHER, "throttled_share", 0.5, "share"),
        row(OTHER, "throttled_share", 0.25, "share", **qualified(reason="power cap")),
    ]
    title, _, table = silicon(metrics, PLAN)
    assert title == "## Energy of the devices"
    assert table.splitlines()[2:] == [
        "| vllm concurrency=64 | 2.00 | 2.10 | +5.00 | 256 | 532 | 70.0 | 51.0 | 60.0 | 1.98 | 50.0 |"
    ]


def test_a_study_without_devices_has_neither() -> None:
    metrics = [
        row(ONE, "s_mbu_error", None, "share", missing_reason="the run recorded no devices"),
        row(ONE, "energy_j_per_output_token", 2.0, "J", **qualified(energy_source="rapl")),
    ]
    assert silicon(metrics, PLAN) == []

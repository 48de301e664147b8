"""A device that the catalogue doesn't know: placed by its own name; what needs no peak and no price is still told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_made import NODE, a_run, one_pass, performance_point, request, routed

from moecap.hardware.identify import rated_peaks
from moecap.metrics.reduce import reduce_runs
from moecap.metrics.shown import asked_by
from moecap.records import DeviceInfo, Metric, Phase, Placement, RepeatsSpec, StudyPlan, SystemSpec

DEVICE = DeviceInfo(uuid="GPU-1", index=0, name="NVIDIA R100", key=None, memory_bytes=300 * 2**30)
GPU_NODE = replace(NODE, kinds=frozenset({"cpu", "cpu-offload", "gpu"}), devices=(DEVICE,))
PLACEMENT = Placement(node_id="n", hostname="h", kind="gpu", device_uuids=("GPU-1",), num_cpus=4)


@pytest.fixture
def found() -> dict[str, Metric]:
    """Metrics of a run with one request of 5 tokens in 10 s, on that device."""
    run = a_run(
        node=GPU_NODE, placement=PLACEMENT, peaks=(rated_peaks(GPU_NODE.devices),),
        requests=(request(0, 0.5, (1.0, 2.0, 3.0, 4.0, 5.0)),),
        passes=(one_pass(0, Phase.DECODE, 0, 1.0, (1,), (5,)),), routing=(routed(0, (1, 1, 0, 0)),),
    )  # fmt: skip
    plan = StudyPlan(name="s", store="store", points=(performance_point(),), repeats=RepeatsSpec(), peaks="catalogue")
    rows = [row for row in reduce_runs([run], plan).metrics if row.level == "point" and row.phase is None]
    return {row.metric: row for row in rows if asked_by(plan).holds(row)}


def test_what_needs_no_peak_is_told(found: dict[str, Metric]) -> None:
    assert found["output_tokens_per_s"].value == pytest.approx(0.5)
    assert found["tpot_s"].value == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["s_mbu", "mbu", "s_mfu"])
def test_what_needs_a_peak_is_missing_with_the_device_and_the_remedy(found: dict[str, Metric], name: str) -> None:
    row = found[name]
    assert row.value is None and row.peak_source == "catalogue"
    assert "'NVIDIA R100'" in (row.missing_reason or "") and "add a row" in (row.missing_reason or "")


def test_what_needs_a_price_is_missing_with_the_remedy(found: dict[str, Metric]) -> None:
    row = found["usd_per_million_output_tokens"]
    assert row.value is None and "price" in (row.missing_reason or "")


def _placed(device: str) -> Any:
    from cluster.place import Placer

    point = performance_point()
    system = SystemSpec(name="a", engine="fake", node="gpu", device=device)
    return Placer(nodes=[GPU_NODE]).place(replace(point, system=system))


def test_it_is_placed_by_any_and_by_the_drivers_name() -> None:
    assert _placed("any").device_uuids == ("GPU-1",)
    assert _placed("NVIDIA R100").device_uuids == ("GPU-1",)
    assert "NVIDIA R100" in _placed("nvidia-l4-24gb").remedy  # the refusal says what is there


def test_the_node_hands_over_unknown_peaks_with_the_reason(tmp_path: Path) -> None:
    from cluster.node import _peaks
    from moecap.records import Calibration, HardwarePart, Peaks, Rates

    measured = Peaks(source="calibrated", memory_bytes_per_s=1.0, flops_per_s={})
    part = HardwarePart(kind="device", name="NVIDIA R100", device_uuids=("GPU-1",))
    known = Calibration(part=part, rates=Rates(peaks=measured), measured_unix_s=0.0, took_s=1.0)
    calibrated, catalogue = _peaks(GPU_NODE, PLACEMENT, [known])
    assert calibrated == measured and catalogue.memory_bytes_per_s is None and "NVIDIA R100" in catalogue.method
    assert _peaks(GPU_NODE, replace(PLACEMENT, device_uuids=()), ()) == ()

"""`moecap-cluster calibrate`: how calibrations read, by hand; and one of this machine on a real Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner, Result
from fleet import node

from cluster.calibrate import NodeCalibration
from cluster.cli import main
from cluster.inventory import connected
from cluster.node import NodeAgent
from cluster.rates import calibration_document, calibration_text, origin
from moecap.hardware.calibrated import failed
from moecap.hardware.calibration import Known
from moecap.records import Calibration, HardwarePart, Measured, Peaks, Rates

NOW_S = 10_000_000.0
DEVICE = HardwarePart(kind="device", name="NVIDIA L4", device_uuids=("GPU-0",))


def known(rates: Rates, part: HardwarePart = DEVICE, *, age_s: float = 0.0, **where: Any) -> Known:
    one = Calibration(part=part, rates=rates, measured_unix_s=NOW_S - age_s, took_s=9.46)
    return Known(calibration=one, **({"cached": False, "file": "/c/k.json"} | where))


def of_device() -> Known:
    peaks = Peaks(
        source="calibrated", memory_bytes_per_s=2.5e11, flops_per_s={"bfloat16": 1.05e14},
        tier_bytes_per_s={"host": 2.4e10}, spread={"memory": 0.012, "bfloat16": 0.25, "host": 0.1},
    )  # fmt: skip
    measured = (
        Measured(quantity="copy_bytes_per_s", value=2.4e11, spread=0.02),
        Measured(quantity="kernel_launch_s", value=4.25e-6, spread=0.5),
        Measured(quantity="host_read_bytes_per_s", value=1.2e10, spread=0.0, at={"threads": 4}),
        Measured(
            quantity="all_reduce_bytes_per_s", value=5e9, spread=0.0, at={"devices": 2, "message_bytes": 65536}
        ),
    )  # fmt: skip
    return known(Rates(peaks=peaks, measured=measured, unknown={"float8": "no such product"}))


def test_rates_have_units_and_spreads() -> None:
    text = calibration_text([NodeCalibration(node=node("n"), known=(of_device(),))], NOW_S)
    lines = [" ".join(line.split()) for line in text.splitlines() if not line.startswith("---")]
    assert lines == [
        "n: NVIDIA L4 GPU-0",
        "measured in 9.5 s, kept in /c/k.json",
        "what reached spread",
        "peak: memory, read 250.0 GB/s 1%",
        "peak: bfloat16 105 TFLOP/s 25%",
        "peak: host, read 24.00 GB/s 10%",
        "copy 240.00 GB/s 2%",
        "kernel launch 4.25 us 50%",
        "host read, 4 threads 12.00 GB/s 0%",
        "all reduce, 2 devices, 64 KiB 5.00 GB/s 0%",
        "unknown: float8: no such product",
    ]


@pytest.mark.parametrize(
    ("age_s", "told"),
    [(30, "30 seconds"), (119, "119 seconds"), (600, "10 minutes"), (7200, "2 hours"), (864_000, "10 days")],
)
def test_the_age_of_what_is_kept_is_told(age_s: float, told: str) -> None:
    one = known(Rates(peaks=None), age_s=age_s, cached=True)
    assert origin(one, NOW_S) == f"measured {told} ago, kept in /c/k.json"


def test_why_something_is_not_kept_is_told() -> None:
    one = known(Rates(peaks=None), file=None, not_kept="it failed")
    assert origin(one, NOW_S) == "measured in 9.5 s, not kept: it failed"


def test_a_part_that_failed_makes_its_node_bad_and_is_shown() -> None:
    bad = NodeCalibration(node=node("n"), known=(of_device(), known(failed("no torch"), file=None)))
    assert not bad.good and NodeCalibration(node=node("n"), known=(of_device(),)).good
    assert "unknown: all: no torch" in calibration_text([bad], NOW_S)
    unreached = NodeCalibration(node=node("n"), error="other work holds it")
    assert not unreached.good and calibration_text([unreached], NOW_S) == "n: other work holds it"


def test_the_document_holds_everything_unrounded() -> None:
    document = json.loads(
        json.dumps(calibration_document([NodeCalibration(node=node("n"), known=(of_device(),))], NOW_S + 5))
    )
    (one,) = document["nodes"]
    (found,) = one["calibrations"]
    assert (one["hostname"], one["fingerprint"], one["error"]) == ("n", node("n").fingerprint, None)
    assert (found["cached"], found["age_s"], found["file"], found["not_kept"]) == (False, 5.0, "/c/k.json", None)
    assert found["part"]["device_uuids"] == ["GPU-0"]
    assert found["rates"]["peaks"]["memory_bytes_per_s"] == 2.5e11
    assert found["rates"]["measured"][3]["at"] == {"devices": 2, "message_bytes": 65536}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


@pytest.mark.slow
def test_this_machine_is_calibrated_and_what_is_steady_is_kept(ray_address: str) -> None:
    first = run("calibrate", "--address", ray_address, "--json")
    assert first.exit_code == 0, first.stderr
    (machine,) = json.loads(first.stdout)["nodes"]
    (cpu,) = machine["calibrations"]
    assert (cpu["part"]["kind"], cpu["part"]["num_threads"], cpu["cached"]) == ("cpu", 2, False)
    assert cpu["rates"]["peaks"]["memory_bytes_per_s"] > 1e9
    assert {one["at"].get("threads") for one in cpu["rates"]["measured"]} == {1, 2, None}
    assert (cpu["file"] is None) == (cpu["not_kept"] is not None)
    if cpu["file"] is not None:
        assert Path(cpu["file"]).is_file()
        (again,) = json.loads(run("calibrate", "--address", ray_address, "--json").stdout)["nodes"]
        assert again["calibrations"][0]["cached"]
        assert again["calibrations"][0]["rates"] == cpu["rates"]


@pytest.mark.slow
def test_a_runs_manifest_has_the_calibration_that_its_peaks_rest_on(ray_address: str, tmp_path: Path) -> None:
    study = {
        "name": "t", "models": ["reference"], "systems": [{"name": "one", "engine": "fake", "node": "cpu"}],
        "workloads": [{"type": "synthetic", "input_tokens": 8, "output_tokens": 4}], "sweep": {"concurrency": [1]},
        "repeats": {"min": 1, "max": 1}, "peaks": "calibrated",
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    store = tmp_path / "store"
    result = run("launch", str(tmp_path / "study.yaml"), "--address", ray_address, "--store", str(store))
    assert result.exit_code == 0, result.stderr
    (path,) = store.glob("t/runs/*/manifest.json")
    manifest = json.loads(path.read_text())
    (peaks,) = manifest["peaks"]
    (cpu,) = manifest["calibration"]
    assert peaks["source"] == "calibrated" and cpu["rates"]["peaks"] == peaks
    assert (cpu["part"]["kind"], cpu["part"]["num_threads"]) == ("cpu", 2)


@pytest.fixture
def taken(ray_address: str) -> Iterator[None]:
    """Somebody else holds a CPU of the node."""
    with connected(ray_address):
        options = {"num_cpus": 1, "lifetime": "detached", "namespace": "theirs", "name": "other"}
        assert ray.get(ray.remote(NodeAgent).options(**options).remote().version.remote(), timeout=60)
    yield
    with connected(ray_address):
        ray.kill(ray.get_actor("other", namespace="theirs"))


@pytest.mark.usefixtures("taken")
def test_a_node_where_others_work_is_not_measured(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.calibrate.BUSY_S", 1.0)
    result = run("calibrate", "--address", ray_address)
    assert result.exit_code == 1
    assert "other work holds its CPUs or devices" in result.stdout

"""`moecap-cluster devices`: what it says of the catalogue, and how a mistake is answered."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from cluster.cli import main
from cluster.devices import device_table, device_text
from moecap.hardware.catalogue import DeviceSpec, catalogue, find_device


def test_the_table_has_every_device_with_units_and_doubts() -> None:
    lines = CliRunner().invoke(main, ["devices"]).stdout.splitlines()
    assert len(lines) == len(catalogue()) + 3  # headers, rule and legend
    assert lines[0].split("  ")[0] == "key" and "memory GB/s" in lines[0] and "bf16 TFLOP/s" in lines[0]
    by_key = {line.split()[0]: line.split() for line in lines[2:-1]}
    assert by_key["nvidia-h100-sxm5-80gb"] == [
        "nvidia-h100-sxm5-80gb", "gpu", "79.65", "3350", "989.4", "1978.9", "700", "30000",
    ]  # fmt: skip
    assert by_key["nvidia-a100-sxm4-40gb"][-3:] == ["-", "400", "-"]  # no fp8 unit, no price
    assert by_key["nvidia-gb10-dgx-spark-128gb"][4] == "125?"
    assert by_key["ddr5-4800-channel"][-1] == "20/GB"


@pytest.mark.parametrize("name", ["nvidia-l4-24gb", "NVIDIA L4", "L4 24GB"])
def test_one_device_is_shown_in_full(name: str) -> None:
    shown = CliRunner().invoke(main, ["devices", name]).stdout
    for line in (
        "key                             nvidia-l4-24gb",
        "memory_bytes_per_s              300 GB/s",
        "dense_flops_per_s.float8        242.5 TFLOP/s, dense",
        "pcie_bytes_per_s_per_direction  32 GB/s per direction",
        "rental_usd_per_hour             0.49 USD per hour (2026)",
        "unverified                      nothing",
    ):
        assert line in shown.splitlines()
    assert "source " in shown and "note " in shown and "date " in shown


def test_doubts_stand_beside_their_value() -> None:
    shown = device_text(find_device("nvidia-h20-96gb")).splitlines()
    assert "tdp_w                           400 W  (unverified)" in shown
    assert "price_usd                       12000 USD (2024)  (unverified)" in shown
    assert "memory_bytes_per_s              4000 GB/s" in shown
    assert "unverified                      tdp_w, price_usd" in shown


def test_every_field_of_every_row_is_shown() -> None:
    fields = set(DeviceSpec.__dataclass_fields__) - {"dense_flops_per_s", "price_year", "rental_year"}
    for spec in catalogue().values():
        names = {line.split()[0].partition(".")[0] for line in device_text(spec).splitlines()}
        assert names - {"dense_flops_per_s"} == fields
    assert device_table([]).startswith("key")


def test_json_has_the_fields_of_the_record_in_full_precision() -> None:
    one = json.loads(CliRunner().invoke(main, ["devices", "NVIDIA GB10", "--json"]).stdout)
    assert set(one) == set(DeviceSpec.__dataclass_fields__)
    assert one["dense_flops_per_s"]["bfloat16"] == 125e12 and one["unverified"] == ["bfloat16", "float16"]
    assert one["memory_bytes"] == 137_438_953_472 and one["link_bytes_per_s"] is None
    every = json.loads(CliRunner().invoke(main, ["devices", "--json"]).stdout)
    assert [row["key"] for row in every] == list(catalogue())


def test_an_unknown_name_is_wrong_use_with_the_nearest_keys() -> None:
    result = CliRunner().invoke(main, ["devices", "h100-sxm"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'h100-sxm'" in result.stderr and "nvidia-h100-sxm5-80gb" in result.stderr
    assert "one row in catalogue.csv" in result.stderr


def test_it_answers_at_once() -> None:
    """The best of three whole processes: 0.15 s where this was written."""
    command = [sys.executable, "-c", "from cluster.cli import main; main(['devices', 'NVIDIA L4'])"]
    taken = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.monotonic() - start)
    assert min(taken) < 0.5

"""The catalogue against vendors' datasheets, typed in here by hand, and its rules: exact names, nothing zero."""

import csv
import pickle
import re
import subprocess
import sys
from datetime import date
from importlib.resources import files

import pytest

from moecap.errors import ConfigError, UnknownDeviceError
from moecap.hardware.catalogue import RATE_COLUMNS, DeviceSpec, catalogue, catalogue_peaks, find_device

# key: dense bf16 FLOP/s, memory bytes/s, TDP; from NVIDIA's and AMD's datasheets (their sparse figures halved)
DATASHEET = {
    "nvidia-h100-sxm5-80gb": (989.4e12, 3350e9, 700),
    "nvidia-a100-sxm4-80gb": (312e12, 2039e9, 400),
    "nvidia-h200-sxm-141gb": (989.4e12, 4800e9, 700),
    "nvidia-l40s-48gb": (362.05e12, 864e9, 350),
    "amd-mi300x-192gb": (1307.4e12, 5300e9, 750),
}


@pytest.mark.parametrize(("key", "rated"), DATASHEET.items())
def test_ratings_are_those_of_the_datasheet(key: str, rated: tuple[float, float, float]) -> None:
    spec = find_device(key)
    assert (spec.dense_flops_per_s["bfloat16"], spec.memory_bytes_per_s, spec.tdp_w) == pytest.approx(rated)


def test_h100_row_in_full() -> None:
    spec = find_device("nvidia-h100-sxm5-80gb")
    assert spec.dense_flops_per_s == pytest.approx(
        {"float32": 66.9e12, "tfloat32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12,
         "float8": 1978.9e12, "int8": 1978.9e12}
    )  # fmt: skip
    assert "float4" not in spec.dense_flops_per_s  # Hopper has no such unit: absent, not 0
    assert spec.link_bytes_per_s == 900e9
    assert spec.pcie_bytes_per_s_per_direction == 64e9
    assert (spec.price_usd, spec.price_year, spec.rental_usd_per_hour, spec.rental_year) == (30000, 2026, 3.29, 2026)


def test_memory_is_binary_and_bandwidth_decimal() -> None:
    h100 = find_device("nvidia-h100-sxm5-80gb")
    assert h100.memory_bytes == pytest.approx(81559 * 2**20, rel=1e-4)  # what its driver reports, in MiB
    assert find_device("nvidia-a100-sxm4-80gb").memory_bytes == 85_899_345_920
    assert find_device("ddr5-4800-channel").memory_bytes_per_s == 8 * 4800e6  # 8 bytes a transfer


@pytest.mark.parametrize(
    ("cpu", "channels", "bytes_per_s"),
    [
        ("amd-epyc-7763", 8, 8 * 25.6e9),
        ("amd-epyc-9654", 12, 12 * 38.4e9),
        ("intel-xeon-platinum-8480plus", 8, 8 * 38.4e9),
        ("intel-xeon-6980p", 12, 12 * 70.4e9),
        ("amd-epyc-9755", 12, 12 * 48e9),
        ("nvidia-grace-72c", None, 500e9),  # LPDDR5X has no DIMM channels
    ],
)
def test_a_socket_is_so_many_channels(cpu: str, channels: int | None, bytes_per_s: float) -> None:
    spec = find_device(cpu)
    assert spec.memory_channels == channels
    assert spec.memory_bytes_per_s == pytest.approx(bytes_per_s)
    if channels is not None and spec.memory_transfers_per_s is not None:
        assert spec.memory_bytes_per_s == pytest.approx(channels * 8 * spec.memory_transfers_per_s)


def test_components_are_priced_by_capacity_and_devices_by_piece() -> None:
    assert find_device("nvme-ssd-pcie5-x4").price_usd is None
    assert find_device("nvme-ssd-pcie5-x4").price_usd_per_gb == 0.2
    assert all(spec.price_usd_per_gb is None for spec in catalogue().values() if spec.vendor != "generic")
    assert all(spec.price_usd is None for spec in catalogue().values() if spec.vendor == "generic")


def test_every_row_of_the_file_is_a_device_and_every_full_cell_a_number() -> None:
    with files("moecap.hardware").joinpath("catalogue.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["key"] for row in rows] == list(catalogue())
    assert len(rows) == 73
    for row in rows:
        spec = catalogue()[row["key"]]
        assert None not in row and None not in row.values(), f"{row['key']}: cells and columns don't match"
        assert {dtype for dtype, column in RATE_COLUMNS.items() if row[column]} == set(spec.dense_flops_per_s)
        assert spec.source and not spec.source.startswith(";") and "; ;" not in spec.source
        assert spec.kind in ("gpu", "apu", "edge", "cpu", "system")
        assert spec.date and date(2026, 1, 1) <= date.fromisoformat(spec.date) <= date(2026, 12, 31)


def test_nothing_is_zero() -> None:
    with pytest.raises(ValueError, match="left empty, not 0"):
        _spec(memory_bytes_per_s=0.0)
    with pytest.raises(ValueError, match="left empty, not 0"):
        _spec(dense_flops_per_s={"float8": 0.0})
    assert _spec(memory_bytes_per_s=None).memory_bytes_per_s is None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-sxm5-80gb"),
        ("nvidia a100-pcie-40gb", "nvidia-a100-pcie-40gb"),  # drivers write PCIE and PCIe
        (" NVIDIA-H100-SXM5-80GB ", "nvidia-h100-sxm5-80gb"),
        ("Instinct MI300X", "amd-mi300x-192gb"),
        ("NVIDIA L4", "nvidia-l4-24gb"),
    ],
)
def test_names_are_exact_whatever_their_case(name: str, key: str) -> None:
    assert find_device(name).key == key


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA H100 64GB", "h100", "", "NVIDIA A10G"])
def test_a_name_that_only_resembles_one_is_unknown(name: str) -> None:
    with pytest.raises(UnknownDeviceError, match="is not in the hardware catalogue"):
        find_device(name)


def test_an_unknown_device_is_told_the_nearest_keys() -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        find_device("h100-sxm")
    assert "'h100-sxm'" in str(caught.value)
    assert "nvidia-h100-sxm5-80gb" in str(caught.value)
    with pytest.raises(UnknownDeviceError, match="nvidia-a100-sxm4-80gb"):
        find_device("nvidia-a100-smx4-80gb")
    assert pickle.loads(pickle.dumps(caught.value)).value == "h100-sxm"


@pytest.mark.parametrize("name", ["nvidia-rtx-4090", "NVIDIA RTX 4090", "rtx4090", "geforce 4090"])
def test_the_nearest_keys_are_of_the_same_model_number(name: str) -> None:
    with pytest.raises(UnknownDeviceError, match="nearest keys: nvidia-geforce-rtx-4090-24gb, "):
        find_device(name)


def test_a_name_that_does_not_tell_is_refused_with_the_keys() -> None:
    with pytest.raises(UnknownDeviceError, match="agx-orin-64gb, nvidia-jetson-orin-nx-16gb"):
        find_device("Orin (nvgpu)")
    with pytest.raises(UnknownDeviceError, match=r"does not tell.*nvidia-h100-sxm5-94gb"):
        find_device("NVIDIA H100")  # what the 94 GB part reports, and what people call any of them


def test_a_name_that_a_device_shares_still_means_the_one_that_owns_it() -> None:
    assert find_device("NVIDIA GeForce RTX 4090").key == "nvidia-geforce-rtx-4090-24gb"  # not the modified one


def test_no_name_belongs_to_two_devices() -> None:
    carried: dict[str, set[str]] = {}
    for spec in catalogue().values():
        for name in (spec.key, spec.product_name, *spec.aliases):
            carried.setdefault(name.lower(), set()).add(spec.key)
    assert not {name: keys for name, keys in carried.items() if len(keys) > 1}


CHECKABLE = re.compile(
    r"https?://\S|[\w.-]+/[\w.-]+:\S|arithmetic|datasheet|white paper|arXiv|PCI id|[\w.]+\.(com|net)\b"
)
WITHOUT_ADDRESS = ("RunPod gpuTypes snapshot 20", "nvidia-smi outputs that users published", "second-hand: ")


def test_every_source_can_be_looked_up_or_says_that_it_cannot() -> None:
    for spec in catalogue().values():
        for source in spec.source.split("; "):
            assert CHECKABLE.search(source) or source.startswith(WITHOUT_ADDRESS), (spec.key, source)


def test_what_is_unverified_is_stated_and_peaks_say_so() -> None:
    gb10 = find_device("nvidia-gb10-dgx-spark-128gb")
    assert gb10.unverified == ("bfloat16", "float16")
    assert catalogue_peaks(gb10, 1).method.endswith("; unverified: bfloat16, float16")
    assert find_device("amd-epyc-9755").unverified == ("price_usd",)
    assert "unverified" not in catalogue_peaks(find_device("amd-epyc-9755"), 1).method  # a price is no peak
    assert _spec(tdp_w=5.0, unverified=("tdp_w",)).unverified == ("tdp_w",)
    for nothing in ("tdp_w", "float8", "colour"):
        with pytest.raises(ValueError, match=f"doesn't state: {nothing}"):
            _spec(unverified=(nothing,))


def test_a_row_that_the_note_calls_unverified_says_so_in_the_column_too() -> None:
    """And the other way round nothing: many cells are doubtful without a note."""
    for spec in catalogue().values():
        if "unverified" in spec.note.lower():
            assert spec.unverified, spec.key


def test_peaks_are_sums_over_the_devices() -> None:
    peaks = catalogue_peaks(find_device("nvidia-h100-sxm5-80gb"), 8)
    assert peaks.source == "catalogue"
    assert peaks.memory_bytes_per_s == pytest.approx(26.8e12)  # as on the DGX H100's own row
    assert peaks.flops_per_s["bfloat16"] == pytest.approx(7915.2e12)
    assert peaks.tier_bytes_per_s == {} and peaks.spread == {}
    assert "8 x nvidia-h100-sxm5-80gb" in peaks.method


def test_peaks_that_are_not_rated_stay_unknown() -> None:
    assert catalogue_peaks(find_device("pcie5-x16"), 1).memory_bytes_per_s is None
    assert catalogue_peaks(find_device("amd-epyc-9654"), 2).flops_per_s == {}
    assert catalogue_peaks(find_device("amd-epyc-9654"), 2).memory_bytes_per_s == 921.6e9


def test_peaks_need_a_device() -> None:
    with pytest.raises(ConfigError, match="count = 0"):
        catalogue_peaks(find_device("nvidia-l4-24gb"), 0)


def test_specs_cross_process_borders() -> None:
    spec = find_device("nvidia-h100-sxm5-80gb")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_looking_a_device_up_loads_nothing_heavy() -> None:
    code = (
        "import sys; from moecap.hardware.catalogue import find_device; import moecap.hardware.calibrate; "
        "find_device('nvidia l4'); print([m for m in ('torch', 'numpy', 'pandas', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _spec(**changes: object) -> DeviceSpec:
    fields: dict[str, object] = {
        "key": "k", "vendor": "v", "product_name": "p", "aliases": (), "kind": "gpu", "memory_bytes": 1,
        "memory_bytes_per_s": 1.0, "dense_flops_per_s": {}, "tdp_w": None, "link_bytes_per_s": None,
        "pcie_bytes_per_s_per_direction": None, "price_usd": None, "price_usd_per_gb": None, "price_year": None,
        "rental_usd_per_hour": None, "rental_year": None, "source": "s", "note": "",
    }  # fmt: skip
    return DeviceSpec(**(fields | changes))  # type: ignore[arg-type]

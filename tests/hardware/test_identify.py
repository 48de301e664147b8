"""Which row a device is: names and memory as real drivers reported them, and what happens when no row fits."""

from dataclasses import replace

import pytest

from moecap.hardware import identify as module
from moecap.hardware.catalogue import catalogue
from moecap.hardware.identify import MEMORY_TOLERANCE, identify, rated_peaks
from moecap.records import DeviceInfo

MIB = 2**20
REPORTED = [  # name, MiB, key: from nvidia-smi outputs in public places
    ("NVIDIA H100 80GB HBM3", 81559, "nvidia-h100-sxm5-80gb"),
    ("NVIDIA A100-SXM4-80GB", 81920, "nvidia-a100-sxm4-80gb"),
    ("NVIDIA A100-SXM4-80GB", 81251, "nvidia-a100-sxm4-80gb"),  # what newer drivers reserve isn't counted
    ("NVIDIA A100-SXM4-40GB", 40960, "nvidia-a100-sxm4-40gb"),
    ("NVIDIA A10", 23028, "nvidia-a10-24gb"),
    ("NVIDIA A10", 24564, "nvidia-a10-24gb"),  # error correction switched off
    ("NVIDIA RTX A6000", 46068, "nvidia-rtx-a6000-48gb"),  # ... and on
    ("NVIDIA RTX A6000", 49140, "nvidia-rtx-a6000-48gb"),
    ("NVIDIA GeForce RTX 4090", 24564, "nvidia-geforce-rtx-4090-24gb"),
    ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 97887, "nvidia-rtx-pro-6000-blackwell-max-q-96gb"),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "nvidia-rtx-pro-6000-blackwell-workstation-96gb"),
    ("NVIDIA GH200 480GB", 97871, "nvidia-gh200-96gb"),  # 480 GB are the CPU's
    ("NVIDIA GH200 144G HBM3e", 146831, "nvidia-gh200-144gb"),
    ("NVIDIA H20-3e", 143771, "nvidia-h20-3e-141gb"),
    ("Tesla V100-SXM2-16GB", 16384, "nvidia-v100-sxm2-16gb"),
    ("Tesla V100-SXM2-32GB", 32768, "nvidia-v100-sxm2-32gb"),
    ("AMD Instinct MI250X", 65536, "amd-mi250x-gcd-64gb"),  # one of two that the system shows
]


@pytest.mark.parametrize(("name", "mib", "key"), REPORTED)
def test_devices_are_known_by_name_and_memory(name: str, mib: int, key: str) -> None:
    assert identify(name, mib * MIB).key == key


def test_where_name_and_memory_leave_a_choice_the_pci_id_decides() -> None:
    twins = ("NVIDIA GeForce RTX 4090", 49140 * MIB)
    assert identify(*twins).key is None  # a modified board must say its PCI id, too
    assert identify(*twins, "10de:2684").key == "nvidia-geforce-rtx-4090-48gb"
    assert identify(*twins, "10DE:2684").key == "nvidia-geforce-rtx-4090-48gb"
    assert identify("NVIDIA H100", 95830 * MIB, "10de:2339").key == "nvidia-h100-sxm5-94gb"
    other = identify("NVIDIA H100", 97871 * MIB, "10de:2338")
    assert other.key is None and other.candidates == ("nvidia-h100-sxm5-94gb",)
    assert "PCI id 10de:2338" in other.reason and "add a row" in other.reason and "calibrate" in other.reason


def test_a_name_with_the_wrong_memory_is_unknown_with_both_numbers() -> None:
    found = identify("NVIDIA H100 80GB HBM3", 65536 * MIB)
    assert found.key is None
    assert "reports 64.0 GiB" in found.reason and "nvidia-h100-sxm5-80gb 79.7 GiB" in found.reason
    assert "add a row" in found.reason


def test_an_unheard_of_name_is_unknown_with_the_remedy() -> None:
    found = identify("NVIDIA R100", 300000 * MIB)
    assert (found.key, found.candidates) == (None, ())
    assert found.reason == (
        "no row carries the name 'NVIDIA R100'; add a row to the hardware catalogue (docs/hardware.md), or calibrate"
    )


def test_a_shared_name_alone_tells_nothing_and_an_own_name_is_enough() -> None:
    assert identify("Orin (nvgpu)").key is None
    assert identify("NVIDIA H100").key is None
    assert identify("NVIDIA GeForce RTX 4090").key is None  # of either memory
    assert identify("NVIDIA GB10").key == "nvidia-gb10-dgx-spark-128gb"  # reports no memory


def test_the_tolerance_covers_error_correction_and_separates_variants() -> None:
    assert 1 / 16 < MEMORY_TOLERANCE < 80 / 64 - 1
    for spec in catalogue().values():
        others = [
            other for other in catalogue().values()
            if other.key != spec.key and {*spec.aliases, *spec.shared_names} & {*other.aliases, *other.shared_names}
        ]  # fmt: skip
        for other in others:
            assert spec.memory_bytes and other.memory_bytes
            low, high = sorted((spec.memory_bytes, other.memory_bytes))
            assert high * (1 - MEMORY_TOLERANCE) > low * (1 + MEMORY_TOLERANCE), (spec.key, other.key)


def _device(key: str | None, name: str = "NVIDIA R100") -> DeviceInfo:
    return DeviceInfo(uuid="GPU-1", index=0, name=name, key=key, memory_bytes=300000 * MIB)


def test_peaks_of_devices_are_those_of_their_row_or_unknown_with_the_reason() -> None:
    l4 = _device("nvidia-l4-24gb")
    assert rated_peaks([l4, replace(l4, uuid="GPU-2")]).memory_bytes_per_s == 600e9
    unknown = rated_peaks([_device(None), l4])
    assert (unknown.source, unknown.memory_bytes_per_s, unknown.flops_per_s) == ("catalogue", None, {})
    assert "'NVIDIA R100'" in unknown.method and "add a row" in unknown.method
    mixed = rated_peaks([l4, _device("nvidia-l40s-48gb")])
    assert mixed.memory_bytes_per_s is None and "nvidia-l4-24gb, nvidia-l40s-48gb" in mixed.method


def test_of_two_rows_with_one_name_and_alike_memory_the_pci_id_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the 96 GB part of that name had a row, too: 2 % more memory, another PCI id."""
    part = catalogue()["nvidia-h100-sxm5-94gb"]
    assert part.memory_bytes is not None
    larger = replace(part, key="larger", memory_bytes=round(part.memory_bytes * 1.02), pci_ids=("10de:2338",))
    monkeypatch.setattr(module, "catalogue", lambda: {part.key: part, larger.key: larger})
    monkeypatch.setattr(module, "keys_named", lambda name: ((), (part.key, larger.key)))
    assert identify("NVIDIA H100", larger.memory_bytes, "10de:2338").key == "larger"
    assert identify("NVIDIA H100", larger.memory_bytes, "10de:2339").key == part.key
    neither = identify("NVIDIA H100", larger.memory_bytes)
    assert neither.key is None and "may be nvidia-h100-sxm5-94gb, larger or none of them" in neither.reason

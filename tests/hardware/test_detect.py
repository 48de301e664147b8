"""Node kinds by their rules; devices from a made-up NVML; CPUs and memory from made-up control groups."""

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from moecap.errors import ConfigError, DetectionError
from moecap.hardware.cgroup import cpu_quota, memory_limit_bytes
from moecap.hardware.detect import (
    KIND_LABEL,
    cpu_model,
    detect_node,
    node_kinds,
    nvidia_devices,
    usable_cpus,
    usable_memory_bytes,
)

HOST_KINDS = {"cpu", "cpu-offload"}
MIB = 2**20


@pytest.mark.parametrize(
    ("devices_by_model", "more"),
    [
        ({}, set()),
        ({"NVIDIA L4": 1}, {"gpu"}),
        ({"NVIDIA L4": 1, "NVIDIA A10": 1}, {"gpu"}),  # two devices, but of different models
        ({"NVIDIA L4": 2}, {"gpu", "expert-parallel"}),
        ({"NVIDIA L4": 1, "NVIDIA H200": 8}, {"gpu", "expert-parallel"}),
    ],
)
def test_kinds_follow_from_the_devices(devices_by_model: dict[str, int], more: set[str]) -> None:
    assert node_kinds(devices_by_model, {}) == HOST_KINDS | more


def test_the_label_adds_kinds() -> None:
    assert node_kinds({}, {KIND_LABEL: "expert-parallel"}) == HOST_KINDS | {"expert-parallel"}
    assert node_kinds({}, {KIND_LABEL: " gpu , expert-parallel,"}) == HOST_KINDS | {"gpu", "expert-parallel"}
    assert node_kinds({}, {KIND_LABEL: "", "other": "gpu"}) == HOST_KINDS


def test_a_label_with_an_unknown_kind_is_an_error_with_the_kinds_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        node_kinds({}, {KIND_LABEL: "gpu,tpu"})
    assert str(caught.value) == (
        "moecap.io/kind = 'gpu,tpu': holds unknown node kinds: tpu; "
        "use cpu, cpu-offload, gpu, expert-parallel, separated by commas"
    )


class FakeNvml:
    """NVML of a machine with the given (name, uuid, memory in bytes or None where it isn't told), all of one PCI id."""

    def __init__(
        self, *devices: tuple[str, str, int | None], on_init: type[Exception] | None = None, pci: int | None = None
    ) -> None:
        self.devices, self.on_init, self.open, self.pci = devices, on_init, 0, pci

    def nvmlInit(self) -> None:
        if self.on_init is not None:
            raise self.on_init
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.devices[handle][0]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.devices[handle][1]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        total = self.devices[handle][2]
        if total is None:
            raise pynvml.NVMLError_NotSupported
        return SimpleNamespace(total=total)

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:
        if self.pci is None:
            raise pynvml.NVMLError_NotSupported
        return SimpleNamespace(pciDeviceId=self.pci)


def test_devices_carry_the_drivers_facts_and_their_catalogue_key() -> None:
    nvml = FakeNvml(("NVIDIA H100 80GB HBM3", "GPU-a", 85520809984), ("NVIDIA Unheard-of 1", "GPU-b", 7))
    h100, unheard_of = nvidia_devices(nvml)
    assert (h100.uuid, h100.index, h100.key, h100.memory_bytes) == ("GPU-a", 0, "nvidia-h100-sxm5-80gb", 85520809984)
    assert (unheard_of.uuid, unheard_of.index, unheard_of.key) == ("GPU-b", 1, None)
    assert nvml.open == 0


def test_a_device_without_memory_of_its_own_has_the_hosts() -> None:
    (device,) = nvidia_devices(FakeNvml(("NVIDIA GB10", "GPU-c", None)))
    assert device.key == "nvidia-gb10-dgx-spark-128gb"
    assert device.memory_bytes == usable_memory_bytes()


def test_a_name_that_devices_share_is_told_by_memory_or_pci_id() -> None:
    modified, plain, odd = nvidia_devices(
        FakeNvml(
            ("NVIDIA GeForce RTX 4090", "GPU-a", 49140 * MIB), ("NVIDIA GeForce RTX 4090", "GPU-b", 24564 * MIB),
            ("NVIDIA GeForce RTX 4090", "GPU-c", 98304 * MIB), pci=0x268410DE,
        )
    )  # fmt: skip
    assert (modified.key, plain.key) == ("nvidia-geforce-rtx-4090-48gb", "nvidia-geforce-rtx-4090-24gb")
    assert (odd.key, odd.name, odd.memory_bytes) == (None, "NVIDIA GeForce RTX 4090", 98304 * MIB)
    h100 = ("NVIDIA H100", "GPU-d", 95830 * MIB)
    assert nvidia_devices(FakeNvml(h100, pci=0x233910DE))[0].key == "nvidia-h100-sxm5-94gb"
    assert nvidia_devices(FakeNvml(h100, pci=0x233810DE))[0].key is None  # the 96 GB part: no row
    assert nvidia_devices(FakeNvml(h100))[0].key is None


@pytest.mark.parametrize(
    ("host_gib", "key"),
    [(61.4, "nvidia-jetson-agx-orin-64gb"), (15.3, "nvidia-jetson-orin-nx-16gb"), (30.0, None)],
)
def test_a_chip_that_shares_the_hosts_memory_is_told_by_it(
    host_gib: float, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=int(host_gib * 2**30)))
    (device,) = nvidia_devices(FakeNvml(("Orin (nvgpu)", "GPU-o", None)))
    assert device.key == key


@pytest.mark.parametrize("absent", [pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded])
def test_no_driver_means_no_devices(absent: type[Exception]) -> None:
    assert nvidia_devices(FakeNvml(on_init=absent)) == ()


def test_a_driver_that_fails_is_an_error() -> None:
    with pytest.raises(DetectionError, match="driver does not answer"):
        nvidia_devices(FakeNvml(on_init=pynvml.NVMLError_LibRmVersionMismatch))


def test_cpu_model_is_the_kernels_name_for_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654 96-Core Processor\n")
    assert cpu_model(cpuinfo) == "AMD EPYC 9654 96-Core Processor"
    cpuinfo.write_text("processor\t: 0\nCPU part\t: 0xd4f\n")  # ARM names none
    assert cpu_model(cpuinfo)


def test_this_machine() -> None:
    node = detect_node("node-1", {KIND_LABEL: "expert-parallel", "zone": "a"})
    assert node.node_id == "node-1"
    assert node.kinds >= {"cpu", "cpu-offload", "expert-parallel"}
    assert node.labels == {KIND_LABEL: "expert-parallel", "zone": "a"}
    assert 1 <= node.num_cpus <= (os.cpu_count() or 1)
    assert 0 < node.memory_bytes <= psutil.virtual_memory().total


def test_affinity_narrows_the_cpus() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def _write(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def test_cgroup_2_limits_count_from_any_level(tmp_path: Path) -> None:
    _write(tmp_path, {"self": "0::/pod/box", "pod/cpu.max": "350000 100000", "pod/box/cpu.max": "max 100000"})
    _write(tmp_path, {"pod/memory.max": "8589934592", "pod/box/memory.max": "max"})
    assert cpu_quota(tmp_path, tmp_path / "self") == 3.5
    assert memory_limit_bytes(tmp_path, tmp_path / "self") == 8 * 2**30


def test_cgroup_1_limits(tmp_path: Path) -> None:
    _write(tmp_path, {"self": "4:memory:/box\n3:cpu,cpuacct:/box\n0::/"})
    _write(
        tmp_path, {f"cpu,cpuacct/box/cpu.cfs_{name}_us": us for name, us in [("quota", "150000"), ("period", "100000")]}
    )
    _write(tmp_path, {"memory/memory.limit_in_bytes": "1073741824"})  # a container sees its own group as the root
    assert cpu_quota(tmp_path, tmp_path / "self") == 1.5
    assert memory_limit_bytes(tmp_path, tmp_path / "self") == 2**30


def test_without_limits_there_are_none(tmp_path: Path) -> None:
    _write(tmp_path, {"self": "0::/", "cpu.max": "max 100000", "memory.max": "max"})
    assert cpu_quota(tmp_path, tmp_path / "self") is None
    assert memory_limit_bytes(tmp_path, tmp_path / "self") is None
    assert cpu_quota(tmp_path, tmp_path / "absent") is None

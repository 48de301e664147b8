"""What this node is: CPUs and memory that this process may use, NVIDIA devices by NVML, and the node kinds that follow.

It measures no rate and knows nothing of other nodes. NVML is asked for every device: CUDA_VISIBLE_DEVICES says what one
process sees, not what the node has.
"""

from __future__ import annotations

import os
import platform
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import pynvml

from moecap.errors import ConfigError, DetectionError
from moecap.hardware.cgroup import cpu_quota, memory_limit_bytes
from moecap.hardware.identify import identify
from moecap.hardware.numa import numa_nodes
from moecap.records import DeviceInfo, NodeInfo, NodeKind

KIND_LABEL = "moecap.io/kind"
"""Node label that adds kinds, separated by commas."""

NODE_KINDS: dict[NodeKind, Callable[[Mapping[str, int]], bool]] = {
    "cpu": lambda _: True,
    "cpu-offload": lambda _: True,
    "gpu": bool,
    "expert-parallel": lambda devices_by_model: max(devices_by_model.values(), default=0) >= 2,
}
"""Kind -> how it is recognised, from the number of devices of each model.

cpu: weights in host memory, CPUs compute. cpu-offload: weights outside the memory that computes (host memory for a
GPU, a local disk for CPUs), so every node can. gpu: engines on one or more devices. expert-parallel: experts spread
over several devices of one model.
"""


def detect_node(node_id: str, labels: Mapping[str, str]) -> NodeInfo:
    """This machine. ConfigError for a bad label, DetectionError when NVML is there and fails."""
    devices = nvidia_devices()
    return NodeInfo(
        node_id=node_id,
        hostname=socket.gethostname(),
        kinds=node_kinds(Counter(device.key or device.name for device in devices), labels),
        cpu_model=cpu_model(),
        num_cpus=usable_cpus(),
        memory_bytes=usable_memory_bytes(),
        devices=tuple(devices),
        labels=dict(labels),
        numa_nodes=numa_nodes(),
    )


def node_kinds(devices_by_model: Mapping[str, int], labels: Mapping[str, str]) -> frozenset[NodeKind]:
    """Kinds of a node with so many devices of each model; the label adds to them. ConfigError for an unknown kind."""
    labelled = {kind.strip() for kind in labels.get(KIND_LABEL, "").split(",")} - {""}
    unknown = sorted(labelled - NODE_KINDS.keys())
    if unknown:
        raise ConfigError(
            f"holds unknown node kinds: {', '.join(unknown)}",
            KIND_LABEL,
            labels[KIND_LABEL],
            f"use {', '.join(NODE_KINDS)}, separated by commas",
        )
    recognised = {kind for kind, recognise in NODE_KINDS.items() if recognise(devices_by_model)}
    return frozenset(recognised | {cast(NodeKind, kind) for kind in labelled})


def nvidia_devices(nvml: Any = pynvml) -> Sequence[DeviceInfo]:
    """Every NVIDIA device of this machine in NVML's order; none without a driver.

    Raises DetectionError when there is a driver that doesn't answer.
    """
    try:
        nvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        raise DetectionError(f"the NVIDIA driver does not answer: {error}; `nvidia-smi` must work first") from error
    try:
        return tuple(_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        raise DetectionError(f"the NVIDIA driver can't describe its devices: {error}") from error
    finally:
        nvml.nvmlShutdown()


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """As the kernel names it; where it names none (ARM, other systems), the architecture."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """CPUs that this process may run on, cut to the whole CPUs that its control group's quota pays for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, cpu_quota() or allowed)))


def usable_memory_bytes() -> int:
    """Host memory, or the control group's limit if that is less."""
    total = psutil.virtual_memory().total
    return min(total, memory_limit_bytes() or total)


def _device(nvml: Any, index: int) -> DeviceInfo:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name, own_bytes = str(nvml.nvmlDeviceGetName(handle)), _own_memory_bytes(nvml, handle)
    return DeviceInfo(
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        name=name,
        key=_catalogue_key(nvml, handle, name, own_bytes),
        memory_bytes=own_bytes or usable_memory_bytes(),
    )


def _catalogue_key(nvml: Any, handle: Any, name: str, own_bytes: int | None) -> str | None:
    """By name and memory; where these leave a choice, by PCI id and by the memory that is shared with the host, too."""
    found = identify(name, own_bytes)
    if found.key is None and found.candidates:
        found = identify(name, own_bytes or psutil.virtual_memory().total, _pci_id(nvml, handle))
    return found.key


def _own_memory_bytes(nvml: Any, handle: Any) -> int | None:
    """None for devices that share the host's memory: they report none of their own."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError_NotSupported:
        return None


def _pci_id(nvml: Any, handle: Any) -> str | None:
    """`vendor:device`; None for devices on no PCI bus."""
    try:
        both = int(nvml.nvmlDeviceGetPciInfo(handle).pciDeviceId)
    except pynvml.NVMLError_NotSupported:
        return None
    return f"{both & 0xFFFF:04x}:{both >> 16:04x}"

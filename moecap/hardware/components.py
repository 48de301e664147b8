"""The parts of a host in the catalogue: DRAM channels, SSDs, PCIe links, and what a gigabyte of each costs.

It sums up no host; prices and predictions do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from moecap.hardware.catalogue import DeviceSpec, catalogue

ComponentClass = Literal["dram", "ssd", "link"]


def component_class(spec: DeviceSpec) -> ComponentClass | None:
    """What part of a host the row is; None for devices and whole systems."""
    if spec.vendor != "generic":
        return None
    if spec.memory_channels is not None:
        return "dram"
    return "link" if spec.memory_bytes_per_s is None else "ssd"


def components(wanted: ComponentClass) -> Mapping[str, DeviceSpec]:
    """All rows of a class by their key, in the order of the file: `dram` per channel, `ssd` per drive, `link` x16."""
    return {key: spec for key, spec in catalogue().items() if component_class(spec) == wanted}


def dram_of(cpu: DeviceSpec) -> DeviceSpec | None:
    """The channel that a CPU socket has `memory_channels` of, by its transfer rate; None where no row has that rate."""
    rate = cpu.memory_transfers_per_s
    return next((row for row in components("dram").values() if row.memory_transfers_per_s == rate), None)


def price_per_gb(wanted: ComponentClass, memory_bytes_per_s: float | None = None) -> tuple[float, DeviceSpec] | None:
    """USD per decimal GB of the slowest priced part of a class that reaches a rate, and its row, which has the year.

    Without a rate: of the slowest priced part. None where no priced part reaches it.
    """
    priced = [
        (spec.memory_bytes_per_s, spec.price_usd_per_gb, spec)
        for spec in components(wanted).values()
        if spec.price_usd_per_gb is not None and spec.memory_bytes_per_s is not None
    ]
    reaching = [(rate, usd, spec) for rate, usd, spec in priced if rate >= (memory_bytes_per_s or 0.0)]
    if not reaching:
        return None
    _, usd, spec = min(reaching, key=lambda one: one[0])
    return usd, spec

"""The cheapest catalogue device that could have held and served a run as fast as it ran. Pure: no prices, no run.

Cost basis `footprint`. A device qualifies by ratings, so it is modelled, not measured, and a lower bound: a real system
reaches only part of its ratings. Candidates have memory and compute of their own: accelerators and machines built
around one. CPU sockets and whole servers of several devices are none: a socket's memory is its host's, and a server's
is not one memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from moecap.hardware.catalogue import DeviceSpec
from moecap.metrics.needs import Needs
from moecap.prices.uncertain import Uncertain

CANDIDATE_KINDS = ("gpu", "apu", "edge")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What would have been enough."""

    spec: DeviceSpec
    count: int
    price: Uncertain
    """Of all `count`, in the unit that the devices were priced in."""

    @property
    def label(self) -> str:
        """`2 x nvidia-l4-24gb`."""
        return f"{self.count} x {self.spec.key}"


def cheapest_device(
    needs: Needs,
    specs: Iterable[DeviceSpec],
    price_of: Callable[[DeviceSpec], Uncertain | None],
    *,
    num_devices: int = 1,
    link_bytes_per_s: float | None = None,
) -> Chosen | None:
    """The cheapest single device or, for a run on several, as many equal ones with a link as fast as needed.

    `num_devices` is what the run used and `link_bytes_per_s` what its devices exchanged at; None: unknown, and then
    only a single device, which needs no link, can be shown to be enough. None when no priced device is. Of equal
    prices the fewer devices, then the first of `specs`.
    """
    chosen = [
        Chosen(spec=spec, count=count, price=price * count)
        for count in sorted({1, num_devices})
        for spec in specs
        if (price := price_of(spec)) is not None and is_enough(spec, count, needs, link_bytes_per_s)
    ]
    return min(chosen, key=lambda one: one.price.value, default=None)


def is_enough(spec: DeviceSpec, count: int, needs: Needs, link_bytes_per_s: float | None) -> bool:
    """Whether `count` of a device offer what was needed, split evenly. A rating that is unknown is not enough."""
    if spec.kind not in CANDIDATE_KINDS:
        return False
    return all(rated is not None and rated >= needed for rated, needed in _compared(spec, count, needs)) and (
        count == 1 or _reaches(spec.link_bytes_per_s, link_bytes_per_s)
    )


def _compared(spec: DeviceSpec, count: int, needs: Needs) -> Iterator[tuple[float | None, float]]:
    """Rated and needed, of every quantity of one device."""
    yield spec.memory_bytes, needs.memory_bytes / count
    yield spec.memory_bytes_per_s, needs.memory_bytes_per_s / count
    for dtype, flops_per_s in needs.flops_per_s.items():
        yield spec.dense_flops_per_s.get(dtype), flops_per_s / count


def _reaches(rated: float | None, needed: float | None) -> bool:
    return rated is not None and needed is not None and rated >= needed

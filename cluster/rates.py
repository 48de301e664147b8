"""Calibrations as text and as JSON: what was measured, how well it repeats, how old it is and where it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cluster.console import table
from moecap.records import HardwarePart, Measured, to_jsonable

if TYPE_CHECKING:  # both load Ray or pydantic, which a table needs not
    from cluster.calibrate import NodeCalibration
    from moecap.hardware.calibration import Known

UNITS = (("_bytes_per_s", 1e-9, "GB/s"), ("_s", 1e6, "us"))
"""Ending of a quantity's name, what its value is multiplied by for reading, and the unit of the product."""


def calibration_text(nodes: Sequence[NodeCalibration], now_unix_s: float) -> str:
    """A table for every part of every node."""
    return "\n\n".join(block for node in nodes for block in _blocks(node, now_unix_s))


def calibration_document(nodes: Sequence[NodeCalibration], now_unix_s: float) -> dict[str, Any]:
    """All of it, unrounded."""
    return {
        "nodes": [
            {
                "hostname": node.node.hostname, "node_id": node.node.node_id, "fingerprint": node.node.fingerprint,
                "error": node.error,
                "calibrations": [
                    {
                        **to_jsonable(one.calibration), "cached": one.cached, "age_s": _age_s(one, now_unix_s),
                        "file": one.file, "not_kept": one.not_kept or None,
                    }
                    for one in node.known
                ],
            }
            for node in nodes
        ]
    }  # fmt: skip


def origin(known: Known, now_unix_s: float) -> str:
    """When it was measured, and where it is kept."""
    one = known.calibration
    age = f"measured {_duration(_age_s(known, now_unix_s))} ago" if known.cached else f"measured in {one.took_s:.1f} s"
    return f"{age}, {f'kept in {known.file}' if known.file else f'not kept: {known.not_kept}'}"


def part_name(part: HardwarePart) -> str:
    """What was measured, for people."""
    match part.kind:
        case "cpu":
            return f"{part.name}, {part.num_threads} threads"
        case "device":
            return f"{part.name} {part.device_uuids[0]}"
        case "collectives":
            return f"collectives of {len(part.device_uuids)} x {part.name}"


def _blocks(node: NodeCalibration, now_unix_s: float) -> Iterator[str]:
    if node.error:
        yield f"{node.node.hostname}: {node.error}"
    for known in node.known:
        head = f"{node.node.hostname}: {part_name(known.calibration.part)}\n  {origin(known, now_unix_s)}"
        rows = list(_rows(known))
        rest = [f"  unknown: {name}: {why}" for name, why in known.calibration.rates.unknown.items()]
        yield "\n".join([head, *([table(("what", "reached", "spread"), rows)] if rows else []), *rest])


def _rows(known: Known) -> Iterator[tuple[str, str, str]]:
    rates = known.calibration.rates
    if (peaks := rates.peaks) is not None and peaks.memory_bytes_per_s is not None:
        yield "peak: memory, read", f"{peaks.memory_bytes_per_s / 1e9:,.1f} GB/s", _spread(peaks.spread["memory"])
        for dtype, flops in peaks.flops_per_s.items():
            yield f"peak: {dtype}", f"{flops / 1e12:,.3g} TFLOP/s", _spread(peaks.spread[dtype])
        for tier, rate in peaks.tier_bytes_per_s.items():
            yield f"peak: {tier}, read", f"{rate / 1e9:,.2f} GB/s", _spread(peaks.spread[tier])
    for one in rates.measured:
        yield _what(one), _value(one), _spread(one.spread)


def _what(one: Measured) -> str:
    shown = one.quantity
    for ending, _, _ in UNITS:
        shown = shown.removesuffix(ending)
    at = {"KiB" if name == "message_bytes" else name: value for name, value in one.at.items()}
    units = [
        f"{value // 1024 if name == 'KiB' else value} {name.removesuffix('s') if value == 1 else name}"
        for name, value in at.items()
    ]
    return ", ".join([shown.replace("_", " "), *units])


def _value(one: Measured) -> str:
    for ending, factor, unit in UNITS:
        if one.quantity.endswith(ending):
            return f"{one.value * factor:,.3g} {unit}" if unit == "us" else f"{one.value * factor:,.2f} {unit}"
    return f"{one.value:.4g}"


def _spread(spread: float) -> str:
    return f"{spread:.0%}"


def _age_s(known: Known, now_unix_s: float) -> float:
    return max(0.0, now_unix_s - known.calibration.measured_unix_s)


def _duration(seconds: float) -> str:
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:.0f} seconds"

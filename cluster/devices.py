"""The hardware catalogue as text: all devices as a table, one device in full. It looks nothing up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.console import table
from moecap.hardware.catalogue import DeviceSpec

UNKNOWN = "-"
DOUBT = "?"
"""Behind a value that is unverified."""
SCALES: dict[str, tuple[float, str]] = {
    "memory_bytes": (2**30, "GiB"),
    "memory_bytes_per_s": (1e9, "GB/s"),
    "memory_transfers_per_s": (1e6, "MT/s"),
    "dense_flops_per_s": (1e12, "TFLOP/s, dense"),
    "tdp_w": (1, "W"),
    "link_bytes_per_s": (1e9, "GB/s, both directions"),
    "pcie_bytes_per_s_per_direction": (1e9, "GB/s per direction"),
    "price_usd": (1, "USD"),
    "price_usd_per_gb": (1, "USD per GB"),
    "rental_usd_per_hour": (1, "USD per hour"),
}
"""Field -> what its value is divided by for reading, and the unit of the quotient."""
YEARS = {"price_usd": "price_year", "price_usd_per_gb": "price_year", "rental_usd_per_hour": "rental_year"}


def device_table(specs: Sequence[DeviceSpec]) -> str:
    """One line per device: key, kind, and the numbers that compare devices; a legend below."""
    headers = ("key", "kind", "memory GiB", "memory GB/s", "bf16 TFLOP/s", "fp8 TFLOP/s", "TDP W", "USD")
    rows = [
        (
            spec.key, spec.kind, _cell(spec, "memory_bytes"), _cell(spec, "memory_bytes_per_s"),
            _rate_cell(spec, "bfloat16"), _rate_cell(spec, "float8"), _cell(spec, "tdp_w"), _price_cell(spec),
        )
        for spec in specs
    ]  # fmt: skip
    legend = f"peaks are dense; {UNKNOWN} unknown or no such unit, {DOUBT} unverified; `devices NAME` shows all of one"
    return f"{table(headers, rows)}\n{legend}"


def device_text(spec: DeviceSpec) -> str:
    """Every field with its unit, what is unverified, the source and the note."""
    lines = list(_lines(spec))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def _lines(spec: DeviceSpec) -> Iterator[tuple[str, str]]:
    for name in ("key", "vendor", "product_name"):
        yield name, _marked(spec, name, str(getattr(spec, name)))
    for name in ("aliases", "shared_names", "pci_ids"):
        yield name, _marked(spec, name, " | ".join(getattr(spec, name)) or UNKNOWN)
    yield "kind", spec.kind
    for name in ("memory_bytes", "memory_bytes_per_s", "memory_channels", "memory_transfers_per_s"):
        yield name, _value(spec, name)
    for dtype, rate in spec.dense_flops_per_s.items():
        scale, unit = SCALES["dense_flops_per_s"]
        yield f"dense_flops_per_s.{dtype}", _marked(spec, dtype, f"{rate / scale:g} {unit}")
    if not spec.dense_flops_per_s:
        yield "dense_flops_per_s", UNKNOWN
    for name in ("tdp_w", "link_bytes_per_s", "pcie_gen", "pcie_bytes_per_s_per_direction", *YEARS):
        yield name, _value(spec, name)
    yield "unverified", ", ".join(spec.unverified) or "nothing"
    yield "date", spec.date or UNKNOWN
    yield "source", spec.source
    yield "note", spec.note or UNKNOWN


def _value(spec: DeviceSpec, name: str) -> str:
    value = getattr(spec, name)
    if value is None:
        return UNKNOWN
    scale, unit = SCALES.get(name, (1, ""))
    year = getattr(spec, YEARS[name]) if name in YEARS else None
    return _marked(spec, name, f"{value / scale:.10g} {unit}".rstrip() + (f" ({year})" if year else ""))


def _marked(spec: DeviceSpec, name: str, shown: str) -> str:
    return f"{shown}  (unverified)" if name in spec.unverified else shown


def _cell(spec: DeviceSpec, name: str) -> str:
    value = getattr(spec, name)
    return _short(None if value is None else value / SCALES[name][0], name in spec.unverified)


def _rate_cell(spec: DeviceSpec, dtype: str) -> str:
    rate = spec.dense_flops_per_s.get(dtype)
    return _short(None if rate is None else rate / SCALES["dense_flops_per_s"][0], dtype in spec.unverified)


def _price_cell(spec: DeviceSpec) -> str:
    if spec.price_usd_per_gb is not None:
        return f"{_cell(spec, 'price_usd_per_gb')}/GB"
    return _cell(spec, "price_usd")


def _short(value: float | None, doubtful: bool) -> str:
    return UNKNOWN if value is None else f"{value:.6g}{DOUBT if doubtful else ''}"

"""What devices are rated for: `catalogue.csv` as typed records, looked up by exact name. It detects nothing.

All rates are dense. A cell that is empty is unknown and stays absent, never 0. A device is added by a row in the CSV;
docs/hardware.md describes its columns. Which row a detected device is, `identify` decides.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, cast

from moecap.errors import ConfigError, UnknownDeviceError
from moecap.records import Peaks

DeviceKind = Literal["gpu", "apu", "edge", "cpu", "system"]

RATE_COLUMNS = {
    "float32": "dense_tflops_fp32", "tfloat32": "dense_tflops_tf32", "bfloat16": "dense_tflops_bf16",
    "float16": "dense_tflops_fp16", "float8": "dense_tflops_fp8", "int8": "dense_tops_int8",
    "float4": "dense_tflops_fp4",
}  # fmt: skip
"""Compute dtype -> column."""
BYTES_PER_TRANSFER = 8
"""Of one DDR channel: 64 bits, without those for error correction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSpec:
    """One row: an accelerator, a CPU socket, a whole server, or a component (a memory channel, a disk, a link)."""

    key: str
    vendor: str
    product_name: str
    aliases: tuple[str, ...]
    """Names that drivers report, and that no other device has."""
    shared_names: tuple[str, ...] = ()
    """Names that drivers report for other devices, too: memory or PCI id must tell which one it is."""
    pci_ids: tuple[str, ...] = ()
    """`vendor:device`, hexadecimal, as pci.ids has them."""
    kind: DeviceKind
    memory_bytes: int | None
    """As the driver reports it, where known: less than the label says."""
    memory_bytes_per_s: float | None
    memory_channels: int | None = None
    """CPUs: DDR channels of one socket, all of them populated."""
    memory_transfers_per_s: float | None = None
    """Of one DDR channel."""
    dense_flops_per_s: Mapping[str, float]
    """By compute dtype (`float32`, `tfloat32`, `bfloat16`, ...); a dtype that is absent is unsupported or unknown."""
    tdp_w: float | None
    link_bytes_per_s: float | None
    """Scale-up link (NVLink, xGMI) of one device, both directions together, as vendors print it."""
    pcie_gen: int | None = None
    pcie_bytes_per_s_per_direction: float | None
    """As vendors print it, before the encoding's one or two percent."""
    price_usd: float | None
    price_usd_per_gb: float | None
    """Memory and disk components are priced by capacity."""
    price_year: int | None
    rental_usd_per_hour: float | None
    rental_year: int | None
    date: str | None = None
    """When the sources were read, ISO 8601."""
    source: str
    unverified: tuple[str, ...] = ()
    """Fields above, and dtypes of `dense_flops_per_s`, that no datasheet and no second source confirms."""
    note: str

    def __post_init__(self) -> None:
        numbers = (
            self.memory_bytes, self.memory_bytes_per_s, *self.dense_flops_per_s.values(), self.tdp_w,
            self.link_bytes_per_s, self.pcie_bytes_per_s_per_direction, self.price_usd, self.price_usd_per_gb,
            self.rental_usd_per_hour,
        )  # fmt: skip
        if any(number is not None and number <= 0 for number in numbers):
            raise ValueError(f"{self.key}: an unknown quantity is left empty, not 0 or less: {numbers}")
        stated = {field.name for field in fields(self) if getattr(self, field.name) not in (None, ())}
        unstated = [name for name in self.unverified if name not in stated | self.dense_flops_per_s.keys()]
        if unstated:
            raise ValueError(f"{self.key}: unverified names what the row doesn't state: {', '.join(unstated)}")


@cache
def catalogue() -> Mapping[str, DeviceSpec]:
    """Every device by its key, in the order of the file."""
    with files("moecap.hardware").joinpath("catalogue.csv").open(encoding="utf-8") as lines:
        return MappingProxyType({row["key"]: _spec(row) for row in csv.DictReader(lines)})


def find_device(name: str) -> DeviceSpec:
    """The device with exactly this key, alias or product name, whatever its case.

    Raises UnknownDeviceError for a name that no device carries, or that doesn't tell which of several it is.
    """
    own, shared = keys_named(name)
    if len(own) == 1:
        return catalogue()[own[0]]
    if own or shared:
        remedy = f"use a key: {', '.join(own or shared)}"
        raise UnknownDeviceError("does not tell which of the devices that report it is meant", "device", name, remedy)
    raise UnknownDeviceError("is not in the hardware catalogue", "device", name, _suggestion(name))


def catalogue_peaks(spec: DeviceSpec, count: int) -> Peaks:
    """Rated peaks of `count` devices together."""
    if count < 1:
        raise ConfigError("a deployment has at least one device", "count", count, "give 1 or more")
    rate = spec.memory_bytes_per_s
    doubtful = [name for name in spec.unverified if name == "memory_bytes_per_s" or name in spec.dense_flops_per_s]
    caveat = f"; unverified: {', '.join(doubtful)}" if doubtful else ""
    return Peaks(
        source="catalogue",
        memory_bytes_per_s=None if rate is None else count * rate,
        flops_per_s={dtype: count * flops for dtype, flops in spec.dense_flops_per_s.items()},
        method=f"{count} x {spec.key}: dense ratings of the hardware catalogue{caveat}",
    )


def keys_named(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys of the devices that have this name to themselves, and of those that share it; whatever its case."""
    own, shared = _keys_by_name()
    wanted = name.strip().lower()
    return own.get(wanted, ()), shared.get(wanted, ())


@cache
def _keys_by_name() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Lower-case key, alias or product name -> keys of the devices that carry it; and the same of shared names."""
    own: dict[str, tuple[str, ...]] = {}
    shared: dict[str, tuple[str, ...]] = {}
    for spec in catalogue().values():
        for names, found in (((spec.key, spec.product_name, *spec.aliases), own), (spec.shared_names, shared)):
            for name in {name.lower() for name in names}:
                found[name] = (*found.get(name, ()), spec.key)
    return own, shared


def _suggestion(name: str) -> str:
    wanted, (own, _) = name.strip().lower(), _keys_by_name()
    containing = [key for key in catalogue() if wanted and wanted in key]
    alike = [own[match][0] for match in difflib.get_close_matches(wanted, own, n=5, cutoff=0.5)]
    nearest = list(dict.fromkeys(containing + _sharing_model(wanted) + alike))[:5]
    did_you_mean = f"nearest keys: {', '.join(nearest)}; " if nearest else ""
    return f"{did_you_mean}`moecap-cluster devices` lists all; a new device is one row in catalogue.csv"


def _sharing_model(wanted: str) -> list[str]:
    """Keys that share a word with a digit (4090, h100), those with the most words in common first. A size alone (80gb)
    tells no model."""
    words = set(re.split(r"[^a-z0-9]+", wanted))
    models = {word for word in words if re.search(r"\d", word) and not word.endswith("gb")}
    keys = [key for key in catalogue() if models & set(key.split("-"))]
    return sorted(keys, key=lambda key: -len(words & set(key.split("-"))))


def _spec(row: Mapping[str, str]) -> DeviceSpec:
    memory_gib = _number(row["mem_gib"])
    tera = {dtype: _number(row[column]) for dtype, column in RATE_COLUMNS.items()}
    price, price_year = _dated(row["list_or_street_price_usd"])
    rental, rental_year = _dated(row["rental_usd_per_hour"])
    per_gb = row["vendor"] == "generic"  # components: the file says in their notes that they are priced by capacity
    return DeviceSpec(
        key=row["key"],
        vendor=row["vendor"],
        product_name=row["product_name"],
        aliases=_list(row["aliases"]),
        shared_names=_list(row["shared_names"]),
        pci_ids=_list(row["pci_ids"]),
        kind=cast(DeviceKind, row["kind"]),
        memory_bytes=None if memory_gib is None else round(memory_gib * 2**30),
        memory_bytes_per_s=_giga(row["mem_bw_gb_per_s"]),
        memory_channels=_whole(row["memory_channels"]),
        memory_transfers_per_s=_scaled(row["memory_mt_per_s"], 1e6),
        dense_flops_per_s={dtype: rate * 1e12 for dtype, rate in tera.items() if rate is not None},
        tdp_w=_number(row["tdp_w"]),
        link_bytes_per_s=_giga(row["scale_up_link_gb_per_s"]),
        pcie_gen=_whole(row["pcie_gen"]),
        pcie_bytes_per_s_per_direction=_giga(row["pcie_gb_per_s_per_direction"]),
        price_usd=None if per_gb else price,
        price_usd_per_gb=price if per_gb else None,
        price_year=price_year,
        rental_usd_per_hour=rental,
        rental_year=rental_year,
        date=row["date"] or None,
        source=row["source"],
        unverified=_list(row["unverified"]),
        note=row["note"],
    )


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _whole(cell: str) -> int | None:
    return int(cell) if cell else None


def _scaled(cell: str, unit: float) -> float | None:
    return float(cell) * unit if cell else None


def _giga(cell: str) -> float | None:
    """A decimal giga, as bandwidths are given."""
    return _scaled(cell, 1e9)


def _list(cell: str) -> tuple[str, ...]:
    """`a|b` -> (a, b)."""
    return tuple(filter(None, cell.split("|")))


def _dated(cell: str) -> tuple[float | None, int | None]:
    """`30000@2026` -> (30000.0, 2026)."""
    value, _, year = cell.partition("@")
    return _number(value), int(year) if year else None

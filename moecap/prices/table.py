"""`configs/prices.yaml` and a study's `prices:` as one typed table. It prices no node and no run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from moecap.errors import ConfigError, UnknownDeviceError
from moecap.hardware.catalogue import DeviceSpec, find_device
from moecap.packaged import config_path
from moecap.prices.names import UNKNOWN_HOST, device_name, entry_for, host_name, row_named
from moecap.prices.uncertain import AtLeastOne, NotNegative, Price, Uncertain

Positive = Annotated[float, Field(gt=0)]
ComponentName = Literal["cpu", "dram", "ssd", "board", "network"]
ALTERNATIVES = {
    "price_usd": ("components", "price_usd_per_gb", "num_cpus"), "price_usd_per_gb": ("price_usd",),
    "components": ("price_usd", "tdp_w"),
}  # fmt: skip
"""Keys of a host or component: what a study writes replaces what it can't stand beside."""


OF_A_NAME = "[key]"
"""How pydantic marks that a mapping's key is wrong, not its value."""


def _factors(given: tuple[float, float]) -> tuple[float, float]:
    if not 0 < given[0] <= 1 <= given[1]:
        raise ValueError("does not enclose 1; write the lowest and the highest price as factors of the price")
    return given


def _in_catalogue(key: str) -> str:
    try:
        return find_device(key).key
    except UnknownDeviceError as error:
        raise ValueError(f"{error.message}; {error.remedy}") from error


Factors = Annotated[tuple[float, float], AfterValidator(_factors)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Energy(_Strict):
    """Electricity."""

    usd_per_kwh: NotNegative
    pue: AtLeastOne
    """Power usage effectiveness: energy of the site / energy of its computers."""
    label: str


class Ownership(_Strict):
    """How a purchase is spread over its use."""

    lifetime_years: Positive
    duty_cycle: Annotated[float, Field(gt=0, le=1)]
    label: str


class CatalogueRanges(_Strict):
    """How far the hardware catalogue's prices may be off, as factors."""

    price_range: Factors
    rental_range: Factors
    label: str


class Component(_Strict):
    """A part of a host, priced apiece or per GB, here or by a row of the hardware catalogue."""

    catalogue: Annotated[str, AfterValidator(_in_catalogue)] | None = None
    price_usd: Price | None = None
    price_usd_per_gb: Price | None = None
    price_range: Factors | None = None
    """Of the catalogue's price; None: as for all of the catalogue."""
    count: Annotated[int, Field(ge=1)] = 1
    gb: Positive | None = None
    """Capacity where it is priced per GB; None: DRAM as large as the node's."""
    tdp_w: Positive | None = None
    """Of one piece; None: the catalogue's."""
    w_per_gb: Positive | None = None

    @model_validator(mode="after")
    def _one_price(self) -> Component:
        if self.price_usd is not None and self.price_usd_per_gb is not None:
            raise ValueError("has price_usd and price_usd_per_gb; write one of them")
        return self


class Host(_Strict):
    """A machine without its accelerators: one price, or components whose sum it is."""

    price_usd: Price | None = None
    components: dict[ComponentName, Component] = {}
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs that the price is for; None: the machine's own."""
    tdp_w: Positive | None = None
    """Of the whole host; components have their own."""
    rental_usd_per_hour: Price | None = None
    label: str

    @model_validator(mode="after")
    def _one_way(self) -> Host:
        if self.components and (self.price_usd is not None or self.tdp_w is not None):
            raise ValueError(
                "has components and a price_usd or tdp_w; write these for the components, or no components"
            )
        if not self.components and self.price_usd is None and self.rental_usd_per_hour is None:
            raise ValueError("has no price; write price_usd, components or rental_usd_per_hour")
        for name, one in self.components.items():
            kind = None if one.catalogue is None else find_device(one.catalogue).kind
            if kind not in (None, "cpu" if name == "cpu" else "system"):
                where = "CPUs are priced as cpu" if kind == "cpu" else "accelerators are priced under prices.devices"
                wrong = where if kind != "system" else "write the row of a CPU"
                raise ValueError(f"{name} is priced by {one.catalogue}, whose kind is {kind}; {wrong}")
        unsized = [name for name, one in self.components.items() if one.gb is None and _per_gb(one) and name != "dram"]
        if unsized:
            raise ValueError(f"{', '.join(unsized)} is priced per GB and has no size; write gb")
        return self


class Device(_Strict):
    """An accelerator."""

    price_usd: Price | None = None
    rental_usd_per_hour: Price | None = None
    rental_includes_host: bool = False
    """The hourly price is that of an instance, so no share of the host is added to it."""
    tdp_w: Positive | None = None
    label: str = "the study's own price"


class Prices(_Strict):
    """Everything that cost rests on."""

    energy: Energy
    ownership: Ownership
    catalogue: CatalogueRanges
    hosts: dict[Annotated[str, AfterValidator(host_name)], Host]
    devices: dict[Annotated[str, AfterValidator(device_name)], Device] = {}

    @field_validator("hosts", "devices")
    @classmethod
    def _named_once(cls, entries: dict[str, Any]) -> dict[str, Any]:
        rows: dict[str, list[str]] = {}
        for name in entries:
            rows.setdefault(row_named(name) or name, []).append(name)
        for row, names in rows.items():
            if len(names) > 1:
                raise ValueError(f"prices {row} as {' and '.join(map(repr, names))}; write one of them")
        return entries

    def host(self, hostname: str, cpu_model: str) -> Host:
        """By host name, else by CPU model, whichever name of the catalogue's, else the labelled default."""
        return self.hosts[entry_for(hostname, self.hosts) or entry_for(cpu_model, self.hosts) or UNKNOWN_HOST]

    def device(self, key: str) -> Device | None:
        """By catalogue key, or name where there is none: as priced here, and by the catalogue what is not; None when
        neither knows the device."""
        mine = self._own(key)
        try:
            rated = self.rated(find_device(key))
        except UnknownDeviceError:
            return mine
        return rated if mine is None else _filled(mine, rated)

    def ranges_told(self, key: str) -> str:
        """The label of the catalogue's ranges, if a price of this device may be the catalogue's; else nothing."""
        mine = self._own(key)
        own = mine is not None and None not in (mine.price_usd, mine.rental_usd_per_hour)
        return "" if own else self.catalogue.label

    def _own(self, key: str) -> Device | None:
        entry = entry_for(key, self.devices)
        return None if entry is None else self.devices[entry]

    def rated(self, spec: DeviceSpec) -> Device:
        """As the hardware catalogue has it. Its hourly prices are those of cloud instances, host and all."""
        return Device(
            price_usd=ranged(spec.price_usd, self.catalogue.price_range),
            rental_usd_per_hour=ranged(spec.rental_usd_per_hour, self.catalogue.rental_range),
            rental_includes_host=True, tdp_w=spec.tdp_w, label=f"hardware catalogue: {spec.key}",
        )  # fmt: skip


def ranged(price: float | None, factors: Factors) -> Uncertain | None:
    """A bare price with its range."""
    return None if price is None else Uncertain(price, price * factors[0], price * factors[1])


def _per_gb(one: Component) -> bool:
    if one.price_usd is not None or one.price_usd_per_gb is not None:
        return one.price_usd_per_gb is not None
    return one.catalogue is not None and find_device(one.catalogue).price_usd_per_gb is not None


def _filled(mine: Device, rated: Device) -> Device:
    """A study's device with the catalogue's values where the study has none."""
    lacks = [name for name in ("price_usd", "rental_usd_per_hour", "tdp_w") if getattr(mine, name) is None]
    filled: dict[str, Any] = {name: getattr(rated, name) for name in lacks}
    if "rental_usd_per_hour" in lacks:
        filled["rental_includes_host"] = rated.rental_includes_host
    if lacks:
        filled["label"] = f"{mine.label}; {' and '.join(lacks)}: {rated.label}"
    return mine.model_copy(update=filled)


def merged_prices(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The packaged prices with a study's overrides, merged key by key, not yet checked.

    An overridden section without a label of its own is labelled by what the study wrote, and what holds else.
    """
    return _merge(_packaged(), overrides)


def load_prices(overrides: Mapping[str, Any]) -> Prices:
    """The packaged prices with a study's overrides. ConfigError for the first wrong key or value."""
    try:
        return Prices.model_validate(merged_prices(overrides))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("prices", *first["loc"]) if part != OF_A_NAME)
        remedy = "see configs/prices.yaml for the keys and their units"
        raise ConfigError(first["msg"].removeprefix("Value error, "), key, first["input"], remedy) from error


@cache
def _packaged() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(config_path("prices.yaml").read_text(encoding="utf-8"))
    return raw


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, key by key; what is changed without a label of its own says that the study changed it."""
    dropped = {other for key in changes for other in ALTERNATIVES.get(key, ())} - changes.keys()
    merged = {key: value for key, value in base.items() if key not in dropped}
    for key, value in changes.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(inner, value) if both and "value" not in value else value  # type: ignore[arg-type]
    if changes.keys() - {"label"} and "label" not in changes and isinstance(merged.get("label"), str):
        written = ", ".join(f"{key} {value}" for key, value in changes.items() if not isinstance(value, Mapping))
        merged["label"] = f"{f'{written} ' if written else ''}by the study; else {merged['label']}"
    return merged

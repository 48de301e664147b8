"""`configs/prices.yaml` and a study's `prices:` as one typed table. It prices no run; `cost` does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moecap.errors import ConfigError, UnknownDeviceError
from moecap.hardware.catalogue import find_device
from moecap.packaged import config_path

UNKNOWN_HOST = "unknown-host-default"
Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Energy(_Strict):
    """Electricity."""

    usd_per_kwh: Annotated[float, Field(ge=0)]
    pue: Annotated[float, Field(ge=1)]
    """Power usage effectiveness: energy of the site / energy of its computers."""
    label: str


class Ownership(_Strict):
    """How a purchase is spread over its use."""

    lifetime_years: Positive
    duty_cycle: Annotated[float, Field(gt=0, le=1)]
    label: str


class Host(_Strict):
    """A machine without its accelerators."""

    price_usd: Positive
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs that the price is for; None: the machine's own."""
    tdp_w: Positive | None = None
    rental_usd_per_hour: Positive | None = None
    label: str


class Device(_Strict):
    """An accelerator."""

    price_usd: Positive | None = None
    rental_usd_per_hour: Positive | None = None
    tdp_w: Positive | None = None
    label: str


class Prices(_Strict):
    """Everything that cost rests on."""

    energy: Energy
    ownership: Ownership
    hosts: dict[str, Host]
    devices: dict[str, Device] = {}

    def host(self, hostname: str, cpu_model: str) -> Host:
        """By host name, else by CPU model, else the labelled default."""
        return self.hosts.get(hostname) or self.hosts.get(cpu_model) or self.hosts[UNKNOWN_HOST]

    def device(self, key: str) -> Device | None:
        """By catalogue key: as priced here, else as in the hardware catalogue; None when neither knows it."""
        if key in self.devices:
            return self.devices[key]
        try:
            spec = find_device(key)
        except UnknownDeviceError:
            return None
        return Device(
            price_usd=spec.price_usd, rental_usd_per_hour=spec.rental_usd_per_hour, tdp_w=spec.tdp_w,
            label=f"hardware catalogue: {spec.key}",
        )  # fmt: skip


def merged_prices(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The packaged prices with a study's overrides, merged key by key, not yet checked.

    An overridden section that keeps its label is labelled as changed by the study.
    """
    return _merge(_packaged(), overrides)


def load_prices(overrides: Mapping[str, Any]) -> Prices:
    """The packaged prices with a study's overrides. ConfigError for the first wrong key or value."""
    try:
        return Prices.model_validate(merged_prices(overrides))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("prices", *first["loc"]))
        remedy = "see configs/prices.yaml for the keys and their units"
        raise ConfigError(first["msg"].lower(), key, first["input"], remedy) from error


@cache
def _packaged() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(config_path("prices.yaml").read_text(encoding="utf-8"))
    return raw


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, key by key; what is changed without a label of its own says that the study changed it."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    if changes.keys() - {"label"} and "label" not in changes and isinstance(merged.get("label"), str):
        merged["label"] = f"{merged['label']}, changed by the study"
    return merged

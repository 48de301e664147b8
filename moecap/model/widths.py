"""Bytes of one element of a dtype, under the names that users write. No scales: formats add theirs elsewhere."""

from __future__ import annotations

from moecap.dtypes import BITS, HELD, canonical
from moecap.errors import ConfigError


def width_of(dtype: str, key: str) -> float:
    """Bytes per element, whatever the case. ConfigError names `key` for a dtype that isn't known."""
    name = canonical(dtype.lower())
    if name not in HELD:
        raise ConfigError("is no dtype", key, dtype, f"use one of {', '.join(HELD)}")
    return BITS[name] / 8

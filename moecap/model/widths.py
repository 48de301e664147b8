"""Bytes of one element of a dtype, under the names that users write. No scales: formats add theirs elsewhere."""

from __future__ import annotations

from moecap.dtypes import BITS, canonical
from moecap.errors import ConfigError

HELD = tuple(name for name in BITS if name != "tfloat32")
"""What tensors are held in; tfloat32 is a way to multiply."""


def width_of(dtype: str, key: str) -> float:
    """Bytes per element. ConfigError names `key` for a dtype that isn't known."""
    name = canonical(dtype)
    if name not in HELD:
        raise ConfigError("is no dtype", key, dtype, f"use one of {', '.join(HELD)}")
    return BITS[name] / 8

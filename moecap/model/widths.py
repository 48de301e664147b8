"""Bytes of one element of a dtype, under the names that users write. No scales: formats add theirs elsewhere."""

from __future__ import annotations

from moecap.errors import ConfigError

WIDTHS = {
    "float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8": 1.0, "int8": 1.0, "float4": 0.5, "int4": 0.5,
}  # fmt: skip
ALIASES = {
    "fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp8": "float8",
    "float8_e4m3fn": "float8", "float8_e5m2": "float8", "fp8_e4m3": "float8", "fp8_e5m2": "float8", "fp4": "float4",
}  # fmt: skip


def width_of(dtype: str, key: str) -> float:
    """Bytes per element. ConfigError names `key` for a dtype that isn't known."""
    found = WIDTHS.get(ALIASES.get(dtype, dtype))
    if found is None:
        raise ConfigError("is no dtype", key, dtype, f"use one of {', '.join(WIDTHS)}")
    return found

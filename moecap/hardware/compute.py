"""In which dtype a matrix product is computed, given what its operands are held in. It knows no device and no engine.

Silicon multiplies operands of one type. Weights that are narrower than the activations are widened first: they save
bytes, not FLOPs, so their product runs at the activations' peak. Weight-only int4 therefore computes in bfloat16.
"""

from __future__ import annotations

from moecap.dtypes import BITS, canonical
from moecap.errors import ConfigError
from moecap.hardware.catalogue import RATE_COLUMNS

FORMATS = {"mxfp4": "float4", "nvfp4": "float4", "gptq": "int4", "awq": "int4"}
"""Formats of weights with scales of their own, by the type of their elements; gptq and awq as they are usually held."""


def compute_dtype_of(weight_format: str, activations: str = "bfloat16") -> str:
    """Dtype of the products of weights in this format with activations in that one: the wider of the two.

    `int4` with `bfloat16` -> `bfloat16`; `float8` with `float8` -> `float8`; `mxfp4` with `float8` -> `float8`. Of
    equal widths the activations' counts. Raises ConfigError for an unknown format and for products that no catalogued
    device has a unit for (`int4` with `int4`).
    """
    weights, others = (_known(name, key) for name, key in ((weight_format, "weights"), (activations, "activations")))
    wider = weights if BITS[weights] > BITS[others] else others
    if wider not in RATE_COLUMNS:
        remedy = f"name what the kernel widens to: {', '.join(RATE_COLUMNS)}"
        raise ConfigError("is a format of weights, no compute dtype", "activations", activations, remedy)
    return wider


def _known(name: str, key: str) -> str:
    known = canonical(FORMATS.get(name, name))
    if known not in BITS:
        raise ConfigError("is no known number format", key, name, f"use one of {', '.join((*BITS, *FORMATS))}")
    return known

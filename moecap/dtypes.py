"""Number types by the names that users and engines write: the one table of what they are called and how wide they are.

It knows no format's scales, no model and no device.
"""

from __future__ import annotations

BITS = {
    "float32": 32, "tfloat32": 32, "bfloat16": 16, "float16": 16, "float8": 8, "int8": 8, "float4": 4, "int4": 4,
}  # fmt: skip
"""Of one element in memory; `tfloat32` is float32 there, and narrower only in products."""
HELD = tuple(name for name in BITS if name != "tfloat32")
"""What tensors are held in; tfloat32 is a way to multiply."""
ALIASES = {
    "fp32": "float32", "tf32": "tfloat32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp8": "float8",
    "float8_e4m3fn": "float8", "float8_e5m2": "float8", "fp8_e4m3": "float8", "fp8_e5m2": "float8", "fp4": "float4",
}  # fmt: skip


def canonical(name: str) -> str:
    """The name in `BITS` that an alias stands for; any other name as it is."""
    return ALIASES.get(name, name)

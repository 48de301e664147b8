"""What a checkpoint's `quantization_config` says: which matrices are packed, and how many bytes each then takes.

Bytes are those of the files, scales, zero points and their like included. It knows names and sizes of matrices, no
model and no module. Layouts: transformers' fp8 and mxfp4 integrations, compressed-tensors, modelopt, GPTQ, AWQ and
bitsandbytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from math import ceil
from typing import Any

from moecap.errors import UnsupportedModelError

MatrixBytes = Callable[[int, int], int]
"""(outputs, inputs) of a matrix -> bytes that it takes."""
MX_GROUP, NV_GROUP = 32, 16
"""Weights that share a scale in the MX formats and in NVFP4 (OCP MX specification 1.0; NVIDIA's NVFP4)."""
FLOAT32, INT32, INT64 = 4, 4, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How one matrix is stored."""

    name: str
    """Short, for people: `fp8 128x128`, `int4 group 32`."""
    bytes_of: MatrixBytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How a checkpoint stores its matrices."""

    method: str
    """As it calls itself: `fp8`, `mxfp4`, `gptq` ..."""
    packing_of: Callable[[str], Packing | None]
    """Dotted name of a matrix's module -> its packing; None: it is left as it was."""
    experts_only: bool = False
    kv_dtype: str | None = None
    """Where the checkpoint says how its KV cache is to be kept."""


def read_quantization(config: Mapping[str, Any] | None, scale_bytes: int) -> Quantization | None:
    """`quantization_config` of a config.json; None: there is none. `scale_bytes`: width of an unquantised element, in
    which several formats keep their scales. UnsupportedModelError for a method that isn't known, by its name."""
    if not config:
        return None
    method = str(config.get("quant_method") or _method_of_bare(config))
    if method not in READERS:
        raise UnsupportedModelError(
            f"quant_method {method!r} is none of {', '.join(READERS)}: what its files hold is unknown; "
            "--dtype gives bytes as if all weights had one width"
        )
    return READERS[method](config, scale_bytes)


def _method_of_bare(config: Mapping[str, Any]) -> str:
    """Some blocks don't name their method."""
    return "modelopt" if "quant_algo" in config else "compressed-tensors" if "config_groups" in config else "unnamed"


# ------------------------------------------------------------------------------------------------------------ packings


def fp8_block(rows: int, columns: int, scale_bytes: int = FLOAT32) -> Packing:
    """One scale per block of rows x columns (DeepSeek-V3)."""
    return Packing(
        name=f"fp8 {rows}x{columns}",
        bytes_of=lambda out, inp: out * inp + ceil(out / rows) * ceil(inp / columns) * scale_bytes,
    )


def per_tensor(element_bytes: int, scales: int) -> Packing:
    """One float32 scale per matrix; two with a static one for its input."""
    return Packing(name="fp8 tensor", bytes_of=lambda out, inp: out * inp * element_bytes + scales * FLOAT32)


def mxfp4() -> Packing:
    """Four bits a weight, one byte of exponent per group of 32."""
    return Packing(name="mxfp4", bytes_of=lambda out, inp: out * inp // 2 + out * ceil(inp / MX_GROUP))


def mxfp8() -> Packing:
    """A byte a weight, one byte of exponent per group of 32."""
    return Packing(name="mxfp8", bytes_of=lambda out, inp: out * inp + out * ceil(inp / MX_GROUP))


def nvfp4(static_input: bool = True) -> Packing:
    """Four bits a weight, an fp8 scale per group of 16, a float32 scale per matrix and one for its input."""
    fixed = FLOAT32 * (2 if static_input else 1)
    return Packing(name="nvfp4", bytes_of=lambda out, inp: out * inp // 2 + out * ceil(inp / NV_GROUP) + fixed)


def gptq(bits: int, group: int) -> Packing:
    """Columns packed into int32, packed zero points and float16 scales per group, an int32 group index per input."""

    def bytes_of(out: int, inp: int) -> int:
        groups = 1 if group == -1 else ceil(inp / group)
        packed_zeros = groups * ceil(out * bits / 32) * INT32
        return ceil(inp * bits / 32) * out * INT32 + packed_zeros + groups * out * 2 + inp * INT32

    return Packing(name=f"gptq int{bits} group {group}", bytes_of=bytes_of)


def awq(bits: int, group: int) -> Packing:
    """Rows packed into int32, packed zero points and float16 scales per group."""

    def bytes_of(out: int, inp: int) -> int:
        groups = 1 if group == -1 else ceil(inp / group)
        packed_row = ceil(out * bits / 32) * INT32
        return inp * packed_row + groups * packed_row + groups * out * 2

    return Packing(name=f"awq int{bits} group {group}", bytes_of=bytes_of)


def llm_int8() -> Packing:
    """A byte a weight, a float32 scale per output, one byte that tells the order of the weights (bitsandbytes)."""
    return Packing(name="int8 channel", bytes_of=lambda out, inp: out * inp + out * FLOAT32 + 1)


# ------------------------------------------------------------------------------------------------------------- methods


def _fp8(config: Mapping[str, Any], _: int) -> Quantization:
    block, skipped = config.get("weight_block_size"), config.get("modules_to_not_convert") or []
    if "quantized_layers" in config:  # a mixture that modelopt wrote under this name
        return _modelopt(config, _)
    scales = 2 if config.get("activation_scheme") == "static" else 1
    packing = fp8_block(*block) if block else per_tensor(1, scales)
    plain = _unless(_any_of(skipped), packing)
    if config.get("expert_dtype") != "fp4":
        return Quantization(method="fp8", packing_of=plain)
    is_routed = re.compile(r"(^|\.)experts\.")

    def packing_of(name: str) -> Packing | None:
        """DeepSeek-V4's routed experts: by 4 bits, as in mxfp4."""
        found = plain(name)
        return mxfp4() if found and is_routed.search(name) else found

    return Quantization(method="fp8", packing_of=packing_of)


def _mxfp4(config: Mapping[str, Any], _: int) -> Quantization:
    return Quantization(
        method="mxfp4", packing_of=_unless(_any_of(config.get("modules_to_not_convert") or []), mxfp4()),
        experts_only=True,
    )  # fmt: skip


def _gptq(config: Mapping[str, Any], _: int) -> Quantization:
    """`dynamic` leaves out what matches a pattern that starts with `-:`."""
    packing = gptq(int(config["bits"]), int(config.get("group_size", 128)))
    without = [re.compile(rule[2:]) for rule in config.get("dynamic") or {} if rule.startswith("-:")]
    return Quantization(method="gptq", packing_of=_unless(lambda name: any(r.search(name) for r in without), packing))


def _bitsandbytes(config: Mapping[str, Any], _: int) -> Quantization:
    """Eight bits alone: the layout of four depends on more than the block says."""
    if not config.get("load_in_8bit"):
        raise UnsupportedModelError(
            "quant_method 'bitsandbytes' with 4 bits: what its files hold is unknown; "
            "--dtype gives bytes as if all weights had one width"
        )
    skipped = config.get("llm_int8_skip_modules") or []
    return Quantization(method="bitsandbytes", packing_of=_unless(_any_of(skipped), llm_int8()))


def _awq(config: Mapping[str, Any], _: int) -> Quantization:
    skipped = config.get("modules_to_not_convert") or []
    packing = awq(int(config["bits"]), int(config.get("group_size", 128)))
    return Quantization(method="awq", packing_of=_unless(_any_of(skipped), packing))


def _modelopt(config: Mapping[str, Any], _: int) -> Quantization:
    """One algorithm for all but the excluded modules, or one per module."""
    skipped = [*(config.get("ignore") or []), *(config.get("exclude_modules") or [])]
    layers: Mapping[str, Any] = config.get("quantized_layers") or {}
    algorithms = {"NVFP4": nvfp4(), "W4A16_NVFP4": nvfp4(static_input=False), "FP8": per_tensor(1, 2), "MXFP8": mxfp8()}
    wanted = {str(one["quant_algo"]) for one in layers.values()} or {str(config.get("quant_algo"))}
    if wanted - algorithms.keys():
        raise UnsupportedModelError(f"quant_algo {', '.join(sorted(wanted - algorithms.keys()))} is not known")
    kv_dtype = "float8" if _has_fp8_kv(config) else None
    if not layers:
        packing = algorithms[str(config["quant_algo"])]
        return Quantization(method="modelopt", packing_of=_unless(_any_of(skipped), packing), kv_dtype=kv_dtype)
    by_name = {name: algorithms[str(one["quant_algo"])] for name, one in layers.items()}

    def packing_of(name: str) -> Packing | None:
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((by_name[prefix] for prefix in prefixes if prefix in by_name), None)

    return Quantization(method="modelopt", packing_of=packing_of, kv_dtype=kv_dtype)


def _compressed_tensors(config: Mapping[str, Any], scale_bytes: int) -> Quantization:
    layout = str(config.get("format"))
    groups = [
        (list(group.get("targets") or []), _compressed(group, str(group.get("format") or layout), scale_bytes))
        for group in config["config_groups"].values()
        if group.get("weights")
    ]
    ignored = _any_of(config.get("ignore") or [])

    def packing_of(name: str) -> Packing | None:
        if ignored(name):
            return None
        return next((packing for targets, packing in groups if "Linear" in targets or _any_of(targets)(name)), None)

    kv_dtype = "float8" if _has_fp8_kv(config) else None
    return Quantization(method="compressed-tensors", packing_of=packing_of, kv_dtype=kv_dtype)


def _compressed(group: Mapping[str, Any], layout: str, scale_bytes: int) -> Packing:
    """One group of compressed-tensors. Scales are as wide as unquantised weights, but for the 4-bit float formats."""
    weights: Mapping[str, Any] = group["weights"]
    bits, kind, strategy = int(weights["num_bits"]), str(weights["type"]), str(weights.get("strategy"))
    if (kind, bits) == ("float", 4):
        return mxfp4() if "mxfp4" in layout else nvfp4(static_input=bool(group.get("input_activations")))
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return fp8_block(rows, columns, scale_bytes)
    size = int(weights.get("group_size") or 0)
    is_packed, has_zeros = layout == "pack-quantized", not weights.get("symmetric", True)

    def scales_of(out: int, inp: int) -> int:
        return {"tensor": 1, "channel": out}.get(strategy, out * ceil(inp / size) if size else 1)

    def bytes_of(out: int, inp: int) -> int:
        values = out * ceil(inp * bits / 32) * INT32 + 2 * INT64 if is_packed else out * inp * ceil(bits / 8)
        scales = scales_of(out, inp)
        packed_zeros = ceil(scales * bits / 32) * INT32 if is_packed else scales
        return values + scales * scale_bytes + (packed_zeros if has_zeros else 0)

    return Packing(name=f"{kind}{bits} {strategy}{f' {size}' if size else ''}", bytes_of=bytes_of)


READERS: dict[str, Callable[[Mapping[str, Any], int], Quantization]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "awq": _awq,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
}


def _has_fp8_kv(config: Mapping[str, Any]) -> bool:
    scheme = config.get("kv_cache_scheme") or {}
    named = str(config.get("kv_cache_quant_algo") or "").upper() == "FP8"
    return named or (scheme.get("num_bits") == 8 and scheme.get("type") == "float")


def _unless(skipped: Callable[[str], bool], packing: Packing) -> Callable[[str], Packing | None]:
    return lambda name: None if skipped(name) else packing


def _any_of(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name matches one of the patterns that configurations use: `re:...` from the start of the name; globs
    over all of it; plain names as whole components anywhere in it (`lm_head`, `mlp.gate`)."""
    regular = [re.compile(one[3:]) for one in patterns if one.startswith("re:")]
    plain = [one for one in patterns if not one.startswith("re:")]
    globs = [re.compile(translate(one)) for one in plain if "*" in one]
    inner = [re.escape(one).replace(r"\*", "[^.]+") for one in plain]
    parts = [re.compile(rf"(^|\.){one}(\.|$)") for one in inner]

    def matches(name: str) -> bool:
        return (
            any(one.match(name) for one in regular)
            or any(one.match(name) for one in globs)
            or any(one.search(name) for one in parts)
        )

    return matches

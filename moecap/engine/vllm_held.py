"""How a vLLM engine holds a model's weights: from the parameters that its workers report. Pure.

vLLM fuses tensors and names them its own way; here their names are told apart by tensor class. A tensor of no known
class raises.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from moecap.errors import UnsupportedModelError
from moecap.hardware.compute import compute_dtype_of
from moecap.model.accounting import params_by_class
from moecap.records import HeldWeights, ModelShape, TensorClass

CLASSES: tuple[tuple[str, TensorClass], ...] = (
    (r"lm_head", "lm_head"),
    (r"embed|wte", "embedding"),
    (r"shared_expert_gate|\.router\b|\.gate\.|e_score_correction_bias|expert_bias", "router"),
    (r"shared", "shared_expert"),
    (r"experts|\.w13_|\.w2_", "routed_expert"),
    (r"attn|attention|mixer|mamba|\.conv\.|indexer", "mixer"),
    (r"norm", "norm"),
    (r"mlp|feed_forward|ffn", "dense_ffn"),
)
"""The first pattern that a name holds tells its class."""
PLAIN = {"float32": 4, "bfloat16": 2, "float16": 2}
FP8_CAPABILITY = (8, 9)
"""From which compute capability on products of fp8 exist; before it vLLM widens fp8 weights."""


def class_of(name: str) -> TensorClass:
    """Of a parameter by vLLM's name for it. UnsupportedModelError for a name of no known class."""
    for pattern, kind in CLASSES:
        if re.search(pattern, name):
            return kind
    raise UnsupportedModelError(f"vLLM holds a parameter of no known class: {name}")


def held_weights(workers: Sequence[Mapping[str, Any]], shape: ModelShape) -> HeldWeights:
    """Of one data-parallel replica's workers.

    Classes that no format packs have their dtype's width, whatever layout a backend repacks them to; of packed ones the
    bytes, scales included, are divided by the parameters that they stand for.
    """
    settings = workers[0]["settings"]
    params = {kind: count for kind, count in params_by_class(shape).items() if count}
    found: dict[TensorClass, list[Mapping[str, Any]]] = defaultdict(list)
    for worker in workers:
        for one in worker["parameters"]:
            found[class_of(one["name"])].append(one)
    default = PLAIN[settings["dtype"]]
    sharing = settings["data_parallel_size"] if settings["expert_parallel"] else 1  # replicas, among them the experts
    here = {kind: count / (sharing if kind == "routed_expert" else 1) for kind, count in params.items()}
    widths = {kind: _width(found.get(kind, ()), here[kind], default) for kind in params}
    weight_bytes = {kind: round(widths[kind] * count) for kind, count in params.items()}
    on_host = settings["device"] == "cpu"
    shares = {kind: 0.0 if on_host else _host_share(found.get(kind, ())) for kind in params}
    if "lm_head" not in widths and "embedding" in widths:  # tied
        widths["lm_head"] = widths["embedding"]
    return HeldWeights(
        bytes_per_param=cast("Mapping[str, float]", widths),
        compute_dtype={
            **{kind: _compute_dtype(found.get(kind, ()), settings) for kind in widths}, "attention": settings["dtype"],
        },
        kv_bytes_per_element=1 if "fp8" in settings["kv_dtype"] else PLAIN.get(settings["kv_dtype"], default),
        activation_bytes_per_element=default,
        weight_bytes=cast("Mapping[str, int]", weight_bytes),
        resident_weight_bytes=round(sum(count * (1 - shares[kind]) for kind, count in weight_bytes.items())),
    )  # fmt: skip


def _width(parameters: Iterable[Mapping[str, Any]], params: float, default: int) -> float:
    """Bytes per parameter of a class, of which `params` are held here."""
    held = [one for one in parameters if one["numel"]]
    if not held:
        return default  # repacked out of sight
    if all(one["dtype"] in PLAIN for one in held):
        return float(sum(one["bytes"] for one in held) / sum(one["numel"] for one in held))
    return float(sum(one["bytes"] for one in held) / params)


def _host_share(parameters: Iterable[Mapping[str, Any]]) -> float:
    """Share of the bytes of a class that an accelerator left in host memory."""
    held = list(parameters)
    total = sum(one["bytes"] for one in held)
    return sum(one["bytes"] for one in held if one["on_host"]) / total if total else 0.0


def _compute_dtype(parameters: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """vLLM multiplies fp8 weights by fp8 activations where the device can, int8 ones by int8 ones; what it packs into
    other integers (int4 of gptq, awq ...) it widens to the model's dtype."""
    held = {one["dtype"] for one in parameters if one["numel"]}
    model = str(settings["dtype"])
    if any(name.startswith("float8") for name in held):
        can = tuple(settings.get("device_capability") or ()) >= FP8_CAPABILITY
        return compute_dtype_of("float8", "float8" if can else model)
    return compute_dtype_of("int8", "int8") if "int8" in held else model

"""What a checkpoint's files hold of each tensor class: the model's own parameters, packed as its configuration says.

From modules and configuration alone, without the files. What an engine then holds may differ; it says so itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.classify import parts_of
from moecap.model.quantization import FLOAT32, Quantization, read_quantization
from moecap.model.widths import width_of
from moecap.records import StoredWeights, TensorClass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTISED: frozenset[TensorClass] = frozenset({"mixer", "routed_expert", "shared_expert", "dense_ffn"})
"""Classes whose matrices quantisers pack; routers, norms, embeddings and heads stay as they were."""
ASSUMED_DTYPE = "bfloat16"
STATE_DTYPES = ("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
"""What Qwen3.5 and Nemotron-H call the dtype of their recurrent states."""
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Modules hold both in one tensor, checkpoints one by one."""


def stored_weights(model: PreTrainedModel, raw: Mapping[str, Any]) -> StoredWeights:
    """Bytes by tensor class of the checkpoint that `raw`, its config.json, describes; `model` on any device.

    UnsupportedModelError for a quantisation that isn't known.
    """
    declared = declared_dtype(raw)
    dtype = declared or ASSUMED_DTYPE
    width = width_of(dtype, "the checkpoint's dtype")
    quantization = _quantization(raw, int(width))
    found = Counter[TensorClass]()
    packings = set[str]()
    for part in parts_of(model):
        for name, parameter in part.parameters.items():
            packed = None
            if quantization:
                owner = model.get_submodule(name.rpartition(".")[0])
                packed = _packed(owner, part.tensor_class, name, parameter, quantization)
            if packed:
                packings.add(packed[0])
            found[part.tensor_class] += packed[1] if packed else int(parameter.numel() * width)
    if quantization and not packings:
        raise UnsupportedModelError(
            f"quantization_config ({quantization.method}) names no matrix of the model as it is built: what its files "
            "hold is unknown; --dtype gives bytes as if all weights had one width"
        )
    return StoredWeights(
        dtype=dtype,
        quantization=f"{quantization.method} ({', '.join(sorted(packings))})" if quantization else None,
        kv_dtype=(quantization and quantization.kv_dtype) or dtype,
        state_dtype=declared_state_dtype(raw),
        bytes=dict(found),
        notes=() if declared else (f"the configuration names no dtype: {ASSUMED_DTYPE} is assumed",),
    )


def declared_dtype(raw: Mapping[str, Any]) -> str | None:
    """Of what isn't quantised, as the configuration says; None: it doesn't."""
    return _declared(raw, ("dtype", "torch_dtype"))


def declared_state_dtype(raw: Mapping[str, Any]) -> str | None:
    """Of recurrent states, where the configuration says so."""
    found = _declared(raw, STATE_DTYPES)
    return None if found == "auto" else found


def declared_kv_dtype(raw: Mapping[str, Any]) -> str | None:
    """Of the KV cache, whether or not it is known how the weights are packed; None: the configuration doesn't tell."""
    try:
        quantization = _quantization(raw, FLOAT32)
    except UnsupportedModelError:
        quantization = None
    return (quantization and quantization.kv_dtype) or declared_dtype(raw)


def _declared(raw: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    text = raw.get("text_config") or {}
    found = next((value for one in (text, raw) for key in keys if (value := one.get(key))), None)
    return None if found is None else str(found).removeprefix("torch.")


def _quantization(raw: Mapping[str, Any], scale_bytes: int) -> Quantization | None:
    packed_as = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if packed_as and "expert_dtype" in raw:  # DeepSeek-V4 says so beside the block
        packed_as = {"expert_dtype": raw["expert_dtype"], **packed_as}
    return read_quantization(packed_as, scale_bytes)


def _packed(
    owner: nn.Module, kind: TensorClass, name: str, parameter: nn.Parameter, quantization: Quantization
) -> tuple[str, int] | None:
    """Packing and bytes of a parameter; None where it is left as it was."""
    if kind not in QUANTISED or (quantization.experts_only and kind != "routed_expert"):
        return None
    total, packings = 0, set[str]()
    for module, outputs, inputs, count in _matrices(owner, kind, name, parameter):
        packing = quantization.packing_of(module)
        if packing is None:
            return None
        packings.add(packing.name)
        total += count * packing.bytes_of(outputs, inputs)
    return (", ".join(sorted(packings)), total) if packings else None


def _matrices(
    owner: nn.Module, kind: TensorClass, name: str, parameter: nn.Parameter
) -> Iterator[tuple[str, int, int, int]]:
    """(module's name in the checkpoint, outputs, inputs, how many alike) of the matrices that a parameter holds."""
    path, _, leaf = name.rpartition(".")
    if isinstance(owner, nn.Linear) and leaf == "weight":
        yield path, owner.out_features, owner.in_features, 1
    elif kind == "routed_expert" and parameter.dim() == 3 and not leaf.endswith("bias"):
        experts, *sizes = parameter.shape
        outputs, inputs = reversed(sizes) if _is_transposed(owner) else sizes
        pieces = FUSED.get(leaf, (leaf,))
        for piece in pieces:
            yield f"{path}.0.{piece}", outputs // len(pieces), inputs, experts


def _is_transposed(experts: Any) -> bool:
    """Whether fused experts are kept as [inputs, outputs]: as the module says, else by which side is the hidden one."""
    said: bool | None = getattr(experts, "is_transposed", None)
    if said is not None:
        return said
    first = getattr(experts, "gate_up_proj", None)
    return first is not None and getattr(experts, "hidden_size", None) == first.shape[1] != first.shape[2]

"""What a checkpoint's files hold of each tensor class: the model's own parameters, packed as its configuration says.

From modules and configuration alone, without the files. What an engine then holds may differ; it says so itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.classify import parts_of
from moecap.model.quantization import Quantization, read_quantization
from moecap.model.widths import width_of
from moecap.records import StoredWeights, TensorClass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTISED: frozenset[TensorClass] = frozenset({"mixer", "routed_expert", "shared_expert", "dense_ffn"})
"""Classes whose matrices quantisers pack; routers, norms, embeddings and heads stay as they were."""
ASSUMED_DTYPE = "bfloat16"
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Modules hold both in one tensor, checkpoints one by one."""


def stored_weights(model: PreTrainedModel, raw: Mapping[str, Any]) -> StoredWeights:
    """Bytes by tensor class of the checkpoint that `raw`, its config.json, describes; `model` on any device.

    UnsupportedModelError for a quantisation that isn't known.
    """
    text = raw.get("text_config") or {}
    declared = next((d for one in (text, raw) for d in (one.get("dtype"), one.get("torch_dtype")) if d), None)
    dtype = str(declared or ASSUMED_DTYPE).removeprefix("torch.")
    width = width_of(dtype, "the checkpoint's dtype")
    packed_as = raw.get("quantization_config") or text.get("quantization_config")
    if packed_as and "expert_dtype" in raw:  # DeepSeek-V4 says so beside the block
        packed_as = {"expert_dtype": raw["expert_dtype"], **packed_as}
    quantization = read_quantization(packed_as, int(width))
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
        bytes=dict(found),
        notes=() if declared else (f"the configuration names no dtype: {ASSUMED_DTYPE} is assumed",),
    )


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

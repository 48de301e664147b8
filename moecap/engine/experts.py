"""Routed experts computed one by one, from rows that need not be parameters: quantised, or read when they fire.

Plugs into transformers' own dispatch of experts (`ALL_EXPERTS_FUNCTIONS`), so every family that dispatches through it
is served without code of its own; with plain resident rows it computes exactly what `eager` does. How rows are
quantised is in `int8`, how they come from disk in `disk`. Families that don't dispatch (Llama 4, DBRX, JetMoe) are
refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moecap.errors import UnsupportedModelError

IMPLEMENTATION = "moecap_expert_by_expert"
INT8, SCALES = "_int8", "_scales"
"""Suffixes of what a quantised tensor is held as: int8 [..., rows, columns] and float32 [..., rows]."""


class ExpertRows(Protocol):
    """Where the experts of one layer come from."""

    def fetch(self, experts: Sequence[int]) -> None:
        """These experts fired; their rows will be asked for once each, in this order."""

    def row(self, expert: int) -> Mapping[str, torch.Tensor]:
        """The tensors of one expert by parameter name, without the experts' dimension; valid until the next call."""

    def bytes_by_tensor(self) -> Mapping[str, int]:
        """Bytes held in all tiers, by parameter name."""


class ResidentRows:
    """All experts in the memory that computes."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)
        """By parameter name, each [num_experts, ...]."""

    @property
    def num_experts(self) -> int:
        """In this layer."""
        return len(next(iter(self.tensors.values())))

    def fetch(self, experts: Sequence[int]) -> None:
        """They are there."""

    def row(self, expert: int) -> Mapping[str, torch.Tensor]:
        """Views."""
        return {name: tensor[expert] for name, tensor in self.tensors.items()}

    def bytes_by_tensor(self) -> Mapping[str, int]:
        """All of them resident."""
        return {name: tensor.nbytes for name, tensor in self.tensors.items()}


def take_over_experts(net: Any) -> dict[str, ResidentRows]:
    """Move the routed experts' tensors out of their modules' parameters; compute them expert by expert from then on.

    Path of every experts module -> its rows, also kept as the module's `expert_rows`. Doing it again finds the same
    rows. UnsupportedModelError when the model's experts don't go through transformers' dispatch.
    """
    found: dict[str, ResidentRows] = {}
    for path, module in net.named_modules():
        if not hasattr(module, "has_gate") or not hasattr(module, "_apply_gate"):
            continue
        if not isinstance(getattr(module, "expert_rows", None), ResidentRows):
            tensors = {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}
            for name in tensors:
                delattr(module, name)
            module.expert_rows = ResidentRows(tensors)
        found[path] = module.expert_rows
    if not found:
        raise UnsupportedModelError(
            f"{net.config.model_type}: its experts are not dispatched by transformers; they can be neither quantised "
            "nor offloaded here; serve this model resident"
        )
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, expert_by_expert)
    net.set_experts_implementation(IMPLEMENTATION)
    return found


def expert_by_expert(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of the chosen experts: hidden_states [tokens, hidden], ids and weights [tokens, top_k]."""
    total = torch.zeros_like(hidden_states)
    experts: list[int] = torch.unique(top_k_index).tolist()
    module.expert_rows.fetch(experts)
    by_choice = top_k_index.T  # as eager does it, so that sums are added in the same order
    for expert in experts:
        choice, token = torch.where(by_choice == expert)
        row = module.expert_rows.row(expert)
        inner = _project(module, row, "gate_up_proj" if module.has_gate else "up_proj", hidden_states[token])
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        outer = _project(module, row, "down_proj", inner)
        if getattr(module, "has_post_expert_norm", False):  # older transformers have none
            outer = module.post_expert_norm(outer)
        outer = outer * top_k_weights[token, choice, None]
        total.index_add_(0, token, outer.to(total.dtype))
    return total


def _project(module: Any, row: Mapping[str, torch.Tensor], name: str, inputs: torch.Tensor) -> torch.Tensor:
    if name + INT8 in row:
        outputs = int8_linear(inputs, row[name + INT8], row[name + SCALES])
    else:
        outputs = linear(inputs, row[name].T if module.is_transposed else row[name])
    return outputs + row[f"{name}_bias"] if module.has_bias else outputs


def int8_linear(inputs: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """inputs [tokens, in] x (weight int8 [out, in] x scales float32 [out]).T, computed in the inputs' dtype."""
    if inputs.device.type == "cpu":
        # The kernel wants scales of the inputs' dtype; bfloat16 ones would blur every weight of a row alike.
        if inputs.dtype == torch.float32:
            return torch._weight_int8pack_mm(inputs, weight, scales)
        unscaled = torch._weight_int8pack_mm(inputs, weight, torch.ones_like(scales, dtype=inputs.dtype))
        return (unscaled * scales).to(inputs.dtype)
    return (linear(inputs, weight.to(inputs.dtype)) * scales).to(inputs.dtype)


def weight_storage_bytes(net: nn.Module) -> dict[str, int]:
    """Bytes held in all tiers by every parameter that the model was loaded with, scales included, a tied one once."""
    held: Counter[str] = Counter()
    for name, parameter in net.named_parameters():
        held[name] += parameter.nbytes
    for name, buffer in net.named_buffers():
        if name.endswith((INT8, SCALES)):
            held[parameter_of(name)] += buffer.nbytes
    for path, module in net.named_modules():
        if hasattr(module, "expert_rows"):
            for name, held_bytes in module.expert_rows.bytes_by_tensor().items():
                held[f"{path}.{parameter_of(name)}"] += held_bytes
    return dict(held)


def parameter_of(name: str) -> str:
    """The parameter that a tensor of a quantised form stands for."""
    return name.removesuffix(INT8).removesuffix(SCALES)

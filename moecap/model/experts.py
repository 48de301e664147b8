"""Experts that aren't one module named `experts`, and experts without weights.

JetMoe stacks each matrix of its experts in a module of its own, Doge keeps an expert as one row of two tables, ERNIE-VL
has a second group that text never reaches, LongCat-Flash and Zaya route to choices that have no weights. What an expert
is follows from the tensors; what it weighs is counted in `shape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

VISION = "vision"
"""How modules of a text layer are named that only tokens of images and videos pass."""


def expert_pieces(block: nn.Module) -> dict[str, nn.Module]:
    """Children of an MoE block that together are its experts, by name: stacks of matrices, else tables of rows.

    Empty where the experts are one module, or nothing routes to them.
    """
    children = dict(block.named_children())
    if not any("router" in name for name in children):
        return {}
    found = {name: child for name, child in children.items() if _is_stack(child)}
    found = found or {name: child for name, child in children.items() if isinstance(child, nn.Embedding)}
    alike = len({next(child.parameters()).shape[0] for child in found.values()}) == 1
    return found if len(found) > 1 and alike else {}


def with_weights(experts: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The rows of fused tensors that belong to experts; LongCat-Flash makes more, for choices that compute nothing."""
    count = getattr(experts, "num_routed_experts", None)
    if count not in {parameter.shape[0] for parameter in parameters.values()}:
        return dict(parameters)
    return {
        name: parameter
        if parameter.shape[0] == count
        else nn.Parameter(parameter.detach()[:count], requires_grad=False)
        for name, parameter in parameters.items()
    }


def choices_without_weights(modules: Iterable[nn.Module], num_experts: int) -> int:
    """How many of a router's choices are no expert: LongCat-Flash's identities, Zaya's skip."""
    for module in modules:
        if zero := getattr(module, "zero_expert_num", None):
            return int(zero)
        if classes := getattr(module, "num_router_classes", None):
            return int(classes) - num_experts
    return 0


def _is_stack(module: nn.Module) -> bool:
    return [parameter.dim() for parameter in module.parameters(recurse=False)] == [3]

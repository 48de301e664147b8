"""Observes the routers of a transformers model through forward hooks, without touching its code or its numbers.

One seam serves nearly every family: the module that computes the experts receives the chosen experts' ids (int64
[rows, top_k], batch-major) as an argument, whatever implementation computes them. Families whose experts get no ids
(Llama 4 computes all of them) are observed at the router: the top-k of the logits that it returns last. Hooks only keep
references; counting comes after the measured path, in `PassRouting.layer_records`. Nothing is timed here but the hooks.

Not observed: routers inside attention (JetMoe's mixture of attention heads), retrieval experts without a router over
experts (Doge).
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.shape import declared_top_k
from moecap.probe.counts import layer_counts
from moecap.records import RoutingRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ID_PARAMETERS = ("top_k_index", "router_indices")
"""Names under which an experts module's forward takes the chosen experts' ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoELayer:
    """One MoE layer and where it is observed."""

    layer: int
    """Index of the decoder layer."""
    num_experts: int
    num_choices: int
    """More than `num_experts` where the router can also choose identity experts."""
    top_k: int
    module: nn.Module
    """The experts module, or the router."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRouting:
    """What the routers did in one pass, as references to the model's own tensors (8 bytes per token, layer and
    choice stay alive with them)."""

    layers: tuple[MoELayer, ...]
    real_tokens: torch.Tensor | None
    """bool [batch, sequence]; None: no row is padding."""
    expert_ids: Mapping[int, Sequence[torch.Tensor]]
    """Layer -> ids of every call of it, each int64 [rows, top_k]."""

    def layer_records(self, pass_id: int, keep_tokens: bool) -> tuple[RoutingRecord, ...]:
        """One record per MoE layer that ran, in layer order."""
        real = None if self.real_tokens is None else self.real_tokens.reshape(-1).cpu().numpy()
        return tuple(
            self._record(pass_id, layer, real, keep_tokens) for layer in self.layers if layer.layer in self.expert_ids
        )

    def _record(
        self, pass_id: int, layer: MoELayer, real: np.ndarray[Any, np.dtype[np.bool_]] | None, keep_tokens: bool
    ) -> RoutingRecord:
        calls = self.expert_ids[layer.layer]
        ids = torch.cat([call.reshape(-1, call.shape[-1]) for call in calls]).cpu().numpy()
        # Rows that don't match the mask were unpadded by the model: then all are real, or conservation tells.
        rows = real if real is not None and len(real) == len(ids) else np.ones(len(ids), dtype=np.bool_)
        found = layer_counts(ids, rows, layer.num_experts, layer.num_choices)
        return RoutingRecord(
            pass_id=pass_id, layer=layer.layer, counts=found.counts, distinct=found.distinct,
            distinct_physical=found.distinct_physical,
            token_experts=tuple(map(tuple, ids[rows].tolist())) if keep_tokens else None,
        )  # fmt: skip


class RouterProbe:
    """Hooks on every MoE layer of a model. A context manager: hooks are attached inside it.

    UnsupportedModelError when the model has no MoE layer that can be observed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        found = list(_observed_at_experts(model)) or list(_observed_at_router(model))
        _check_observable(model, [layer.layer for layer, _ in found])
        self.layers: tuple[MoELayer, ...] = tuple(layer for layer, _ in found)
        self.observer_ns = 0
        """Time spent in hooks since the probe was made."""
        self._read_ids = [read for _, read in found]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._real_tokens: torch.Tensor | None = None
        self._seen: dict[int, list[torch.Tensor]] | None = None

    def attach(self) -> None:
        """Start to listen; safe to call twice."""
        if not self._handles:
            self._handles = [self._listen(layer, read) for layer, read in zip(self.layers, self._read_ids, strict=True)]

    def detach(self) -> None:
        """Remove every hook; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> RouterProbe:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def begin_pass(self, real_tokens: torch.Tensor | None) -> None:
        """What comes belongs to a new pass; `real_tokens` bool [batch, sequence] is False for padding, None: none."""
        self._real_tokens, self._seen = real_tokens, {}

    def end_pass(self) -> PassRouting:
        """What the routers did since `begin_pass`."""
        if self._seen is None:
            raise RuntimeError("end_pass() without begin_pass()")
        routing = PassRouting(layers=self.layers, real_tokens=self._real_tokens, expert_ids=self._seen)
        self._real_tokens = self._seen = None
        return routing

    def _listen(self, layer: MoELayer, read: _ReadIds) -> torch.utils.hooks.RemovableHandle:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._see(layer, read, args, kwargs)

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self._see(layer, read, output, {})

        if read.from_output:
            return layer.module.register_forward_hook(after)
        return layer.module.register_forward_pre_hook(before, with_kwargs=True)

    def _see(self, layer: MoELayer, read: _ReadIds, values: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._seen is None:  # a pass that nobody asked about
            return
        start_ns = time.perf_counter_ns()
        self._seen.setdefault(layer.layer, []).append(read.ids(values, named))
        self.observer_ns += time.perf_counter_ns() - start_ns


@dataclass(frozen=True, kw_only=True, slots=True)
class _ReadIds:
    """How a hook finds the ids."""

    ids: Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor]
    from_output: bool


def _check_observable(model: PreTrainedModel, layers: Sequence[int]) -> None:
    if not layers:
        raise UnsupportedModelError(
            f"{model.config.model_type}: no module takes the chosen experts' ids or returns router logits; the probe "
            "can't see which experts fire"
        )
    if len(set(layers)) < len(layers):
        raise UnsupportedModelError(f"{model.config.model_type}: several routed MoE modules in one decoder layer")


def _observed_at_experts(model: PreTrainedModel) -> Iterator[tuple[MoELayer, _ReadIds]]:
    """Modules whose forward takes the chosen ids."""
    for path, module in model.named_modules():
        parameter = next((p for p in _parameters(module) if p in ID_PARAMETERS), None)
        layer = _layer_index(path)
        if parameter is None or layer is None:
            continue
        parent = model.get_submodule(path.rpartition(".")[0])
        num_experts = _num_experts(module, path)
        yield MoELayer(
            layer=layer, num_experts=num_experts, module=module,
            num_choices=num_experts + getattr(module, "zero_expert_num", 0),
            top_k=declared_top_k((module, parent, *parent.children()), model.config.get_text_config(decoder=True)),
        ), _ReadIds(ids=_argument(parameter, _parameters(module).index(parameter)), from_output=False)  # fmt: skip


def _observed_at_router(model: PreTrainedModel) -> Iterator[tuple[MoELayer, _ReadIds]]:
    """Routers that return their logits [rows, num_experts] last, next to experts that get no ids."""
    for path, module in model.named_modules():
        layer, name = _layer_index(path), path.rpartition(".")[2]
        top_k, num_experts = getattr(module, "top_k", None), getattr(module, "num_experts", None)
        if layer is None or name not in ("router", "gate") or "attention" in path:
            continue
        if not isinstance(top_k, int) or not isinstance(num_experts, int):
            continue
        yield MoELayer(
            layer=layer, num_experts=num_experts, num_choices=num_experts, top_k=top_k, module=module
        ), _ReadIds(ids=_top_of_logits(top_k), from_output=True)  # fmt: skip


def _parameters(module: nn.Module) -> list[str]:
    """Names of the forward's parameters as its class declares them, without self."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _layer_index(path: str) -> int | None:
    """Of the decoder layer that the module at `path` lies in: the first number in it."""
    number = re.search(r"\.(\d+)\.", path)
    return int(number[1]) if number else None


def _num_experts(module: nn.Module, path: str) -> int:
    """Experts with weights."""
    for name in ("num_routed_experts", "num_experts"):
        if isinstance(count := getattr(module, name, None), int):
            return count
    raise UnsupportedModelError(f"{path} ({type(module).__name__}) doesn't tell how many experts it holds")


def _argument(name: str, position: int) -> Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor]:
    def ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        chosen: torch.Tensor = kwargs[name] if name in kwargs else args[position]
        return chosen

    return ids


def _top_of_logits(top_k: int) -> Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor]:
    def ids(output: tuple[Any, ...], _: dict[str, Any]) -> torch.Tensor:
        logits: torch.Tensor = output[-1]
        return logits.topk(top_k, dim=-1).indices

    return ids

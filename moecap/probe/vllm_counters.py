"""Counts the experts that vLLM's routers chose, layer by layer, without a kernel per layer and without waiting.

A router calls `see` with the ids that it chose. They stay where the router put them: only once per step, at the last
MoE layer, one kernel reads the ids of all layers and counts them. While a CUDA graph is captured that kernel becomes
part of the graph, and the ids that it reads are kept alive in the graph's memory pool, so that a replay counts by
itself, with no Python. What a step is (its slot in the ring, its real tokens) comes from a cell in device memory that
is written before the step, in stream order. Counts leave the device in blocks of many steps.

`HostCounter` does the same on CPUs, where ids are at hand. Nothing here knows requests, times or engines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What was counted; the first axis is the steps in the order in which they began."""

    rows: NDArray[np.int32]
    """[steps]: rows that the routers saw, padding included; 0: the step reached no router."""
    counts: NDArray[np.int32]
    """[steps, layers, experts]: real tokens."""
    padding: NDArray[np.bool_]
    """[steps, layers, experts]: a row of padding chose this expert."""
    token_ids: NDArray[np.int16] | None
    """[tokens of all steps, layers, top_k]; None when not asked for."""


class Counter(ABC):
    """Counts of every step between `start` and `stop`."""

    def __init__(self, *, num_layers: int, num_experts: int, top_k: int) -> None:
        self.num_layers, self.num_experts, self.top_k = num_layers, num_experts, top_k
        self._ids: list[torch.Tensor | None] = [None] * num_layers

    def see(self, position: int, ids: torch.Tensor) -> None:
        """The router at `position` chose `ids`, int [rows, top_k]. The last position ends the step's counting."""
        if ids.shape[-1] != self.top_k:
            raise ValueError(f"MoE layer number {position} chose {ids.shape[-1]} experts per token, not {self.top_k}")
        self._ids[position] = ids
        if position == self.num_layers - 1:
            self._count([one for one in self._ids if one is not None])
            self._ids = [None] * self.num_layers

    @abstractmethod
    def start(self, *, keep_tokens: bool) -> None:
        """Forget what was counted, and count from here on."""

    @abstractmethod
    def begin_step(self, real_tokens: int) -> None:
        """A step with this many real tokens follows; its routers see them first, then padding."""

    @abstractmethod
    def skip_step(self) -> None:
        """A step follows that doesn't count."""

    @abstractmethod
    def stop(self) -> Counted:
        """All that was counted since `start`."""

    @abstractmethod
    def _count(self, ids: list[torch.Tensor]) -> None: ...


class HostCounter(Counter):
    """On CPUs: ids are counted at once."""

    def start(self, *, keep_tokens: bool) -> None:
        """See Counter."""
        self._keep_tokens, self._real = keep_tokens, -1
        self._steps: list[tuple[int, NDArray[np.int32], NDArray[np.bool_], NDArray[np.int16] | None]] = []

    def begin_step(self, real_tokens: int) -> None:
        """See Counter."""
        self._real = real_tokens
        empty = (self.num_layers, self.num_experts)
        self._steps.append((0, np.zeros(empty, np.int32), np.zeros(empty, np.bool_), None))

    def skip_step(self) -> None:
        """See Counter."""
        self._real = -1

    def _count(self, ids: list[torch.Tensor]) -> None:
        if getattr(self, "_real", -1) < 0:
            return  # not counting, or a step that nobody announced
        real, layers = self._real, [one.numpy() for one in ids]
        counts = np.stack([np.bincount(one[:real].ravel(), minlength=self.num_experts) for one in layers])
        padding = np.stack([np.bincount(one[real:].ravel(), minlength=self.num_experts) > 0 for one in layers])
        kept = np.stack([one[:real] for one in layers], axis=1).astype(np.int16) if self._keep_tokens else None
        self._steps[-1] = (len(layers[0]), counts.astype(np.int32), padding, kept)
        self._real = -1

    def stop(self) -> Counted:
        """See Counter."""
        shape = (0, self.num_layers, self.num_experts)
        steps, self._steps, self._real = self._steps, [], -1
        kept = [one[3] for one in steps if one[3] is not None]
        return Counted(
            rows=np.array([one[0] for one in steps], np.int32),
            counts=np.stack([one[1] for one in steps]) if steps else np.zeros(shape, np.int32),
            padding=np.stack([one[2] for one in steps]) if steps else np.zeros(shape, np.bool_),
            token_ids=np.concatenate(kept) if kept else None,
        )


NO_SLOT = -1
BLOCK_STEPS = 128
"""Steps that leave the device together."""
BLOCKS = 2
"""One is filled while the other is copied out."""
CELLS = 64
"""Announcements of steps that may be on their way to the device at a time."""
TABLES = 1024
"""Graphs that can be captured."""


class DeviceCounter(Counter):
    """On CUDA devices. All calls come from the thread, and are in order on the stream, that the model runs on."""

    def __init__(self, *, num_layers: int, num_experts: int, top_k: int, max_rows: int, device: torch.device) -> None:
        super().__init__(num_layers=num_layers, num_experts=num_experts, top_k=top_k)
        from moecap.probe.vllm_kernels import count_experts  # needs Triton  # noqa: PLC0415

        self._kernel = count_experts
        steps = BLOCKS * BLOCK_STEPS
        self._cell = torch.tensor([NO_SLOT, 0, NO_SLOT], dtype=torch.int64, device=device)
        self._cells = torch.zeros(CELLS, 3, dtype=torch.int64, pin_memory=True)
        self._written_cells = self._cells.numpy()
        self._counts = torch.zeros(steps, num_layers, 2, num_experts, dtype=torch.int32, device=device)
        self._rows = torch.zeros(steps, dtype=torch.int32, device=device)
        self._block_tokens = max_rows
        self._tokens = torch.zeros(BLOCKS * max_rows, num_layers, top_k, dtype=torch.int16, device=device)
        self._tables = torch.zeros(TABLES, num_layers, dtype=torch.int64, device=device)
        self._eager_tables = torch.zeros(CELLS, num_layers, dtype=torch.int64, device=device)
        self._staged_tables = torch.zeros(CELLS, num_layers, dtype=torch.int64, pin_memory=True)
        self._captured: list[list[torch.Tensor]] = []
        """Ids of every captured graph: alive, so that their addresses stay theirs."""
        self._addressed = 0
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._leaving: list[_Leaving | None] = [None] * BLOCKS
        self._announced = self._eager = self._closed = 0
        self._is_counting = False

    def start(self, *, keep_tokens: bool) -> None:
        """See Counter."""
        self._keep_tokens, self._is_counting = keep_tokens, True
        self._slot = self._token = self._block = 0
        self._gone: list[_Block] = []
        self._counts.zero_()
        self._rows.zero_()

    def begin_step(self, real_tokens: int) -> None:
        """See Counter."""
        self._address_graphs()
        if not self._is_counting:
            return
        if self._slot == BLOCK_STEPS or (self._keep_tokens and self._token + real_tokens > self._block_tokens):
            self._close_block()
        token = self._block * self._block_tokens + self._token if self._keep_tokens else NO_SLOT
        self._announce(self._block * BLOCK_STEPS + self._slot, real_tokens, token)
        self._slot += 1
        self._token += real_tokens

    def skip_step(self) -> None:
        """See Counter."""
        self._announce(NO_SLOT, 0, NO_SLOT)

    def stop(self) -> Counted:
        """See Counter."""
        if self._slot:
            self._close_block()
        self._announce(NO_SLOT, 0, NO_SLOT)
        for block in range(BLOCKS):
            self._collect(block)
        self._is_counting = False
        gone, self._gone = sorted(self._gone, key=lambda one: one.number), []
        shape = (0, self.num_layers, self.num_experts)
        return Counted(
            rows=np.concatenate([np.zeros(0, np.int32), *(one.rows for one in gone)]),
            counts=np.concatenate([np.zeros(shape, np.int32), *(one.counts for one in gone)]),
            padding=np.concatenate([np.zeros(shape, np.bool_), *(one.padding for one in gone)]),
            token_ids=np.concatenate([one.tokens for one in gone]) if self._keep_tokens and gone else None,
        )

    def _announce(self, slot: int, real_tokens: int, token: int) -> None:
        row = self._announced % CELLS
        self._announced += 1
        self._written_cells[row] = slot, real_tokens, token
        self._cell.copy_(self._cells[row], non_blocking=True)

    def _count(self, ids: list[torch.Tensor]) -> None:
        capturing = torch.cuda.is_current_stream_capturing()
        if not capturing and not self._is_counting:
            return
        ids = [one if one.is_contiguous() else one.contiguous() for one in ids]
        table = self._table_of_graph(ids) if capturing else self._table_of_eager(ids)
        self._kernel(
            table, self._cell, self._counts, self._rows, self._tokens, rows=ids[0].shape[0], top_k=self.top_k,
            num_experts=self.num_experts, ids_dtype=ids[0].dtype,
        )  # fmt: skip

    def _table_of_graph(self, ids: list[torch.Tensor]) -> torch.Tensor:
        """Filled before the first replay: what is captured can't be told the addresses by a copy of its own."""
        self._captured.append(ids)
        return self._tables[len(self._captured) - 1]

    def _address_graphs(self) -> None:
        if self._addressed == len(self._captured):
            return
        addresses = torch.tensor([[one.data_ptr() for one in ids] for ids in self._captured], dtype=torch.int64)
        self._tables[: len(addresses)].copy_(addresses)
        self._addressed = len(self._captured)

    def _table_of_eager(self, ids: list[torch.Tensor]) -> torch.Tensor:
        row = self._eager % CELLS
        self._eager += 1
        staged = self._staged_tables[row]
        staged.copy_(torch.tensor([one.data_ptr() for one in ids], dtype=torch.int64))
        self._eager_tables[row].copy_(staged, non_blocking=True)
        return self._eager_tables[row]

    def _close_block(self) -> None:
        """Start to copy the block out, and go on with the other."""
        block, self._block = self._block, (self._block + 1) % BLOCKS
        first, last = block * BLOCK_STEPS, block * BLOCK_STEPS + self._slot
        base = block * self._block_tokens
        self._copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copies):
            self._leaving[block] = _Leaving(
                number=self._closed,
                rows=_to_host(self._rows[first:last]),
                counts=_to_host(self._counts[first:last, :, 0]),
                padding=_to_host(self._counts[first:last, :, 1] > 0),
                tokens=_to_host(self._tokens[base : base + self._token]) if self._keep_tokens else None,
            )
            self._counts[first:last].zero_()
            self._rows[first:last].zero_()
            left = torch.cuda.Event()  # type: ignore[no-untyped-call]
            left.record()
            self._leaving[block].left = left  # type: ignore[union-attr]
        self._closed += 1
        self._slot = self._token = 0
        self._collect(self._block)

    def _collect(self, block: int) -> None:
        """Take over what was copied out of a block that is filled again now, or never; it left long ago."""
        leaving = self._leaving[block]
        if leaving is None:
            return
        leaving.left.synchronize()
        torch.cuda.current_stream().wait_event(leaving.left)
        self._leaving[block] = None
        self._gone.append(
            _Block(
                number=leaving.number, rows=leaving.rows.numpy().copy(), counts=leaving.counts.numpy().copy(),
                padding=leaving.padding.numpy().copy(),
                tokens=None if leaving.tokens is None else leaving.tokens.numpy().copy(),
            )
        )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class _Leaving:
    """Pinned copies of a block, there once `left` has happened."""

    number: int
    rows: torch.Tensor
    counts: torch.Tensor
    padding: torch.Tensor
    tokens: torch.Tensor | None
    left: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    number: int
    rows: NDArray[np.int32]
    counts: NDArray[np.int32]
    padding: NDArray[np.bool_]
    tokens: Any


def _to_host(values: torch.Tensor) -> torch.Tensor:
    values = values.contiguous()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    return host

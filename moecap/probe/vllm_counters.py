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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What was counted; the first axis is the steps in the order in which they began."""

    rows: NDArray[np.int32]
    """[steps]: rows that the routers saw, padding included; 0: the step reached no router."""
    counts: NDArray[np.integer]
    """[steps, layers, experts]: real tokens; int32, or what a file keeps them in."""
    padding: NDArray[np.bool_]
    """[steps, layers, experts]: a row of padding chose this expert."""
    token_ids: NDArray[np.int16] | None
    """[tokens of all steps, layers, top_k]; None when not asked for."""


def own_rows(rows: int, tokens_of_replicas: Sequence[int], replica: int) -> slice:
    """Of the rows that a router saw, those of one data-parallel replica.

    Where replicas' tokens are gathered before routing, a router sees all of them, one replica after the other; where
    they are dispatched after it, its own. ValueError for another number of rows: tokens are split over tensor-parallel
    ranks then (sequence parallelism), and no rank sees a replica's tokens.
    """
    own, first = tokens_of_replicas[replica], sum(tokens_of_replicas[:replica])
    if rows == sum(tokens_of_replicas):
        return slice(first, first + own)
    if rows == own:
        return slice(0, own)
    raise ValueError(
        f"a router saw {rows} rows, of replicas of {list(tokens_of_replicas)}: tokens that are split over "
        "tensor-parallel ranks can't be recorded"
    )


class Counter(ABC):
    """Counts of every step between `start` and `stop`."""

    def __init__(self, *, num_layers: int, num_experts: int, top_k: int) -> None:
        self.num_layers, self.num_experts, self.top_k = num_layers, num_experts, top_k
        self.observed_ns = 0
        """Host time spent in `see`, kept by who calls it."""
        self._ids: list[torch.Tensor | None] = [None] * num_layers

    def see(self, position: int, ids: torch.Tensor) -> None:
        """The router at `position` chose `ids`, int [rows, top_k]. The last position ends the step's counting."""
        if ids.shape[-1] != self.top_k:
            raise ValueError(f"MoE layer number {position} chose {ids.shape[-1]} experts per token, not {self.top_k}")
        self._ids[position] = ids
        if position == self.num_layers - 1:
            seen, self._ids = [one for one in self._ids if one is not None], [None] * self.num_layers
            if len(seen) == self.num_layers:  # else the step keeps its 0 rows, which its reader notices
                self._count(seen)

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

    def _nothing(self, steps: int = 0) -> Counted:
        """Steps that reached no router."""
        size = (steps, self.num_layers, self.num_experts)
        return Counted(
            rows=np.zeros(steps, np.int32), counts=np.zeros(size, np.int32), padding=np.zeros(size, np.bool_),
            token_ids=np.zeros((0, self.num_layers, self.top_k), np.int16),
        )  # fmt: skip


class HostCounter(Counter):
    """On CPUs: ids are counted at once."""

    _real = -1
    """Real tokens of the step that was announced; negative: none was."""

    def start(self, *, keep_tokens: bool) -> None:
        """See Counter."""
        self._keep_tokens, self._real = keep_tokens, -1
        self._steps: list[Counted] = []

    def begin_step(self, real_tokens: int) -> None:
        """See Counter."""
        self._real = real_tokens
        self._steps.append(self._nothing(steps=1))

    def skip_step(self) -> None:
        """See Counter."""
        self._real = -1

    def _count(self, ids: list[torch.Tensor]) -> None:
        if self._real < 0:
            return
        real, layers = self._real, [one.numpy() for one in ids]
        counts = np.stack([np.bincount(one[:real].ravel(), minlength=self.num_experts) for one in layers])
        padding = np.stack([np.bincount(one[real:].ravel(), minlength=self.num_experts) > 0 for one in layers])
        self._steps[-1] = Counted(
            rows=np.array([len(layers[0])], np.int32), counts=counts[None].astype(np.int32), padding=padding[None],
            token_ids=np.stack([one[:real] for one in layers], axis=1).astype(np.int16),
        )  # fmt: skip
        self._real = -1

    def stop(self) -> Counted:
        """See Counter."""
        steps, self._steps, self._real = self._steps, [], -1
        return _joined([self._nothing(), *steps], keep_tokens=self._keep_tokens)


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
        self._leaving = torch.zeros(BLOCK_STEPS, num_layers, num_experts, dtype=torch.int32, device=device)
        self._leaving_padding = torch.zeros_like(self._leaving, dtype=torch.bool)
        self._block_tokens = max_rows
        self._tokens = torch.zeros(BLOCKS * max_rows, num_layers, top_k, dtype=torch.int16, device=device)
        self._tables = torch.zeros(TABLES, num_layers, dtype=torch.int64, device=device)
        self._eager_tables = torch.zeros(CELLS, num_layers, dtype=torch.int64, device=device)
        self._staged_tables = torch.zeros(CELLS, num_layers, dtype=torch.int64, pin_memory=True)
        self._captured: list[list[torch.Tensor]] = []
        """Ids of every captured graph: alive, so that their addresses stay theirs."""
        self._addressed = 0
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host = [
            _HostBlock(num_layers=num_layers, num_experts=num_experts, top_k=top_k, max_tokens=max_rows)
            for _ in range(BLOCKS)
        ]
        self._announced = self._eager = 0
        self._is_counting = False
        for dtype in (torch.int32, torch.int64):  # compiled before anything is measured; the cell says: do nothing
            self._launch(self._eager_tables[0], torch.zeros(1, top_k, dtype=dtype, device=device))

    def start(self, *, keep_tokens: bool) -> None:
        """See Counter."""
        self._keep_tokens, self._is_counting = keep_tokens, True
        self._slot = self._token = self._block = 0
        self._gone: list[Counted] = [self._nothing()]
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
            self._collect((self._block + block) % BLOCKS)
        self._is_counting = False
        return _joined(self._gone, keep_tokens=self._keep_tokens)

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
        self._launch(self._table_of_graph(ids) if capturing else self._table_of_eager(ids), ids[0])

    def _launch(self, table: torch.Tensor, ids: torch.Tensor) -> None:
        self._kernel(
            table, self._cell, self._counts, self._rows, self._tokens, rows=ids.shape[0], top_k=self.top_k,
            num_experts=self.num_experts, ids_dtype=ids.dtype,
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
        block, steps, tokens = self._block, self._slot, self._token if self._keep_tokens else 0
        first, base = block * BLOCK_STEPS, block * self._block_tokens
        host = self._host[block]
        self._copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copies):
            counts = self._counts[first : first + steps]
            host.rows[:steps].copy_(self._rows[first : first + steps], non_blocking=True)
            self._leaving[:steps].copy_(counts[:, :, 0])
            torch.gt(counts[:, :, 1], 0, out=self._leaving_padding[:steps])
            host.counts[:steps].copy_(self._leaving[:steps], non_blocking=True)
            host.padding[:steps].copy_(self._leaving_padding[:steps], non_blocking=True)
            host.tokens[:tokens].copy_(self._tokens[base : base + tokens], non_blocking=True)
            counts.zero_()
            self._rows[first : first + steps].zero_()
            host.left.record(self._copies)
        host.steps, host.num_tokens = steps, tokens
        self._block, self._slot, self._token = (block + 1) % BLOCKS, 0, 0
        self._collect(self._block)

    def _collect(self, block: int) -> None:
        """Take over what was copied out of a block before it is filled again; that copy ended long ago."""
        host = self._host[block]
        if not host.steps:
            return
        host.left.synchronize()
        self._gone.append(host.taken())
        host.steps = 0


class _HostBlock:
    """Pinned memory that a block is copied to; all there once `left` has happened."""

    def __init__(self, *, num_layers: int, num_experts: int, top_k: int, max_tokens: int) -> None:
        size = (BLOCK_STEPS, num_layers, num_experts)
        self.rows = torch.zeros(BLOCK_STEPS, dtype=torch.int32, pin_memory=True)
        self.counts = torch.zeros(size, dtype=torch.int32, pin_memory=True)
        self.padding = torch.zeros(size, dtype=torch.bool, pin_memory=True)
        self.tokens = torch.zeros(max_tokens, num_layers, top_k, dtype=torch.int16, pin_memory=True)
        self.left = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.steps = self.num_tokens = 0

    def taken(self) -> Counted:
        """A copy of it."""
        return Counted(
            rows=self.rows[: self.steps].numpy().copy(), counts=self.counts[: self.steps].numpy().copy(),
            padding=self.padding[: self.steps].numpy().copy(),
            token_ids=self.tokens[: self.num_tokens].numpy().copy(),
        )  # fmt: skip


def _joined(parts: Sequence[Counted], *, keep_tokens: bool) -> Counted:
    return Counted(
        rows=np.concatenate([one.rows for one in parts]), counts=np.concatenate([one.counts for one in parts]),
        padding=np.concatenate([one.padding for one in parts]),
        token_ids=np.concatenate([one.token_ids for one in parts if one.token_ids is not None])
        if keep_tokens
        else None,
    )  # fmt: skip

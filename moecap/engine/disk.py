"""Routed experts on disk: each pass reads the experts that fired and no others, past the page cache.

Reads are O_DIRECT where the disk can; elsewhere buffered, with the pages dropped after every read, and `io_mode` says
so. A share of each layer's experts may stay resident. A few experts of a layer are read ahead while others compute;
nothing is read before its router has chosen it, and nothing that was read is kept for the next pass.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moecap.engine.experts import ResidentRows, take_over_experts
from moecap.errors import EngineError
from moecap.hardware.ssd import is_in_memory, why_not_direct

BLOCK_BYTES = 4096
"""Offsets and sizes of O_DIRECT reads are multiples of it."""
TENSOR_BYTES = 64
"""Tensors of an expert start at multiples of it."""
READ_AHEAD = 4
"""Experts that are read, or wait to be computed, at the same time: the memory that offloaded experts take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TierTotals:
    """What one pass read."""

    bytes_read: int
    """As the disk delivered them, padding to whole blocks included."""
    expert_hits: int
    """Fired experts, over all layers, that were resident."""
    expert_misses: int
    stall_ns: int
    """Time that computing waited for reads."""


class DiskExperts:
    """The file of all offloaded experts. Once made it has no name, so that a killed process leaves nothing."""

    def __init__(self, folder: Path, slot_bytes: int) -> None:
        self._not_direct = why_not_direct(folder)
        path = folder / f"moecap-experts-{os.getpid()}-{time.monotonic_ns()}"
        self._writes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            direct = os.O_DIRECT if self._not_direct is None else 0
            self._reads = os.open(path, os.O_RDONLY | direct)
        finally:
            path.unlink()
        self._slot_bytes = slot_bytes
        self._staging = mmap.mmap(-1, READ_AHEAD * slot_bytes)  # page-aligned, as O_DIRECT wants
        self._pool = ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="experts")
        self._wanted: deque[tuple[int, int]] = deque()
        self._running: deque[tuple[int, int, Future[None]]] = deque()
        self._used_slot: int | None = None
        self._bytes_read = self._hits = self._misses = self._stall_ns = 0
        self.bytes_on_disk = 0
        """Weights that are on disk and not in memory, padding apart."""

    @property
    def staging_bytes(self) -> int:
        """Memory that experts are read into."""
        return READ_AHEAD * self._slot_bytes

    @property
    def is_cached(self) -> bool:
        """Whether reads may be served by the page cache."""
        return self._not_direct is not None

    @property
    def io_mode(self) -> str:
        """How reads reach the disk."""
        return "O_DIRECT" if self._not_direct is None else f"buffered, pages dropped ({self._not_direct})"

    def begin_pass(self) -> None:
        """Count from zero."""
        self._bytes_read = self._hits = self._misses = self._stall_ns = 0

    def end_pass(self) -> TierTotals:
        """What was read since `begin_pass`."""
        return TierTotals(
            bytes_read=self._bytes_read, expert_hits=self._hits, expert_misses=self._misses, stall_ns=self._stall_ns
        )

    def close(self) -> None:
        """Give the disk space back; safe to call twice."""
        self._pool.shutdown()
        for descriptor in (self._writes, self._reads):
            if descriptor >= 0:
                os.close(descriptor)
        self._writes = self._reads = -1

    def append(self, blocks: bytes) -> int:
        """Write whole blocks at the end, on the disk when this returns; their offset. Raises OSError."""
        offset = os.lseek(self._writes, 0, os.SEEK_CUR)
        left = memoryview(blocks)
        while left:
            left = left[os.write(self._writes, left) :]
        os.fsync(self._writes)
        os.posix_fadvise(self._writes, 0, 0, os.POSIX_FADV_DONTNEED)  # what was written takes no memory
        return offset

    def expect(self, hits: int, reads: Sequence[tuple[int, int]]) -> None:
        """`next_read` will be asked for these (offset, bytes), in this order; `hits` more experts are resident."""
        self._hits += hits
        self._misses += len(reads)
        self._wanted, self._used_slot = deque(reads), None
        self._running.clear()
        for slot in range(READ_AHEAD):
            self._read_into(slot)

    def next_read(self) -> tuple[mmap.mmap, int]:
        """Buffer, and where in it the next read lies; valid until the next call. EngineError if the disk fails."""
        slot, nbytes, arrives = self._running.popleft()
        start_ns = time.perf_counter_ns()
        arrives.result()
        self._stall_ns += time.perf_counter_ns() - start_ns
        self._bytes_read += nbytes
        if self._used_slot is not None:
            self._read_into(self._used_slot)
        self._used_slot = slot
        return self._staging, slot * self._slot_bytes

    def _read_into(self, slot: int) -> None:
        if self._wanted:
            offset, nbytes = self._wanted.popleft()
            self._running.append((slot, nbytes, self._pool.submit(self._read, slot, offset, nbytes)))

    def _read(self, slot: int, offset: int, nbytes: int) -> None:
        start = slot * self._slot_bytes
        try:
            got = os.preadv(self._reads, [memoryview(self._staging)[start : start + nbytes]], offset)
            if self._not_direct is not None:
                os.posix_fadvise(self._reads, offset, nbytes, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise EngineError(f"reading experts from disk failed: {error.strerror}") from error
        if got != nbytes:
            raise EngineError(f"the file of experts gave {got} of {nbytes} bytes at {offset}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Slice:
    """Where one tensor lies in its expert's bytes."""

    name: str
    start: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size


class _Layout:
    """An expert's tensors one after the other, padded to whole blocks."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.slices: list[_Slice] = []
        end = 0
        for name, tensor in tensors.items():
            one = _Slice(
                name=name, start=_round_up(end, TENSOR_BYTES), nbytes=tensor[0].nbytes, dtype=tensor.dtype,
                shape=tensor.shape[1:],
            )  # fmt: skip
            self.slices.append(one)
            end = one.start + one.nbytes
        self.padded_bytes = _round_up(end, BLOCK_BYTES)
        self.weight_bytes = sum(one.nbytes for one in self.slices)

    def pack(self, row: Mapping[str, torch.Tensor]) -> bytes:
        """One expert's tensors as bytes."""
        packed = bytearray(self.padded_bytes)
        for one in self.slices:
            flat = row[one.name].contiguous().cpu().reshape(-1).view(torch.uint8)
            packed[one.start : one.start + one.nbytes] = flat.numpy().tobytes()
        return bytes(packed)

    def unpack(self, buffer: mmap.mmap, base: int) -> dict[str, torch.Tensor]:
        """The reverse, as views of `buffer`."""
        return {
            one.name: torch.frombuffer(
                buffer, dtype=one.dtype, count=one.shape.numel(), offset=base + one.start
            ).view(one.shape)
            for one in self.slices
        }  # fmt: skip


class DiskRows:
    """The experts of one layer: the first `resident` in memory, the others in the file."""

    def __init__(self, disk: DiskExperts, rows: ResidentRows, resident: int) -> None:
        self._disk, self._resident, self._num_experts = disk, resident, rows.num_experts
        self._device = next(iter(rows.tensors.values())).device
        self._layout = _Layout(rows.tensors)
        self._kept = {name: tensor[:resident].clone() for name, tensor in rows.tensors.items()}
        offloaded = range(resident, self._num_experts)
        self._offset = disk.append(b"".join(self._layout.pack(rows.row(expert)) for expert in offloaded))
        disk.bytes_on_disk += len(offloaded) * self._layout.weight_bytes

    def fetch(self, experts: Sequence[int]) -> None:
        """Start to read those that aren't resident."""
        missing = [expert for expert in experts if expert >= self._resident]
        stride = self._layout.padded_bytes
        reads = [(self._offset + (expert - self._resident) * stride, stride) for expert in missing]
        self._disk.expect(len(experts) - len(missing), reads)

    def row(self, expert: int) -> Mapping[str, torch.Tensor]:
        """Views; those of a read expert are valid until the next one is asked for."""
        if expert < self._resident:
            return {name: tensor[expert] for name, tensor in self._kept.items()}
        row = self._layout.unpack(*self._disk.next_read())
        return {name: tensor.to(self._device) for name, tensor in row.items()}

    def bytes_by_tensor(self) -> Mapping[str, int]:
        """Memory and disk together."""
        return {one.name: one.nbytes * self._num_experts for one in self._layout.slices}


def offload_experts_to_disk(net: Any, folder: Path, *, resident_share: float) -> DiskExperts:
    """Move all but `resident_share` of every layer's routed experts (rounded down) to a file in `folder`; the originals
    are freed.

    Raises EngineError when the disk refuses or the folder lies in memory, UnsupportedModelError for experts that can't
    be reached.
    """
    if is_in_memory(folder):
        raise EngineError(f"{folder} lies in memory; name a folder on a disk: args: {{offload_folder: ...}}")
    modules = take_over_experts(net)
    try:
        disk = DiskExperts(folder, max(_Layout(rows.tensors).padded_bytes for rows in modules.values()))
        for path in list(modules):
            rows = modules.pop(path)
            resident = math.floor(rows.num_experts * resident_share)
            net.get_submodule(path).expert_rows = DiskRows(disk, rows, resident)
    except OSError as error:
        raise EngineError(f"experts can't be offloaded to {folder}: {error.strerror}") from error
    return disk


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple

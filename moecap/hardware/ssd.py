"""Sequential reads of a local disk that bypass the page cache (O_DIRECT). It leaves no file behind."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from moecap.hardware.timing import Kernel

BLOCK_BYTES = 4 * 2**20
READERS = (1, 4)
"""Threads that read at the same time: some disks need several requests in flight."""
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


def why_not_direct(folder: Path) -> str | None:
    """Why reads below `folder` would not reach a disk; None when they do."""
    if not hasattr(os, "O_DIRECT"):
        return "this system has no O_DIRECT"
    filesystem = _filesystem(folder)
    if filesystem in MEMORY_FILESYSTEMS:
        return f"{folder} lies on {filesystem}, in memory"
    with TemporaryDirectory(dir=folder) as scratch:
        try:
            os.close(os.open(Path(scratch) / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
        except OSError as error:
            return f"{folder} ({filesystem}) refuses O_DIRECT: {error.strerror}"
    return None


def scratch_on_disk() -> Path:
    """A folder for large temporary files: the system's, unless that lies in memory."""
    system = Path(tempfile.gettempdir())
    return Path("/var/tmp") if is_in_memory(system) and Path("/var/tmp").is_dir() else system


def is_in_memory(folder: Path) -> bool:
    """Whether files there take memory, as on tmpfs."""
    return _filesystem(folder) in MEMORY_FILESYSTEMS


@contextmanager
def ssd_kernels(folder: Path, file_bytes: int) -> Iterator[list[Kernel]]:
    """Kernels that read a whole file of random bytes, by several numbers of readers. Raises OSError."""
    blocks = max(1, file_bytes // BLOCK_BYTES)
    with TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "random"
        _write(path, blocks)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            yield [_kernel(descriptor, blocks, readers) for readers in READERS]
        finally:
            os.close(descriptor)


def _write(path: Path, blocks: int) -> None:
    with path.open("wb") as file:
        for _ in range(blocks):
            file.write(os.urandom(BLOCK_BYTES))  # a disk that compresses must not gain from it
        file.flush()
        os.fsync(file.fileno())


def _kernel(descriptor: int, blocks: int, readers: int) -> Kernel:
    buffers = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(readers)]  # page-aligned, as O_DIRECT wants

    def read(reader: int) -> int:
        starts = range(reader * BLOCK_BYTES, blocks * BLOCK_BYTES, readers * BLOCK_BYTES)
        return sum(os.preadv(descriptor, [buffers[reader]], start) for start in starts)

    def call() -> None:
        with ThreadPoolExecutor(readers) as pool:
            got = sum(pool.map(read, range(readers)))
        if got != blocks * BLOCK_BYTES:
            raise OSError(f"only {got} of {blocks * BLOCK_BYTES} bytes were read back")

    return Kernel(name=f"{readers} reader{'s' if readers > 1 else ''}", work=blocks * BLOCK_BYTES, call=call)


def _filesystem(folder: Path) -> str:
    """Type of the file system that holds `folder`: that of the longest mount point above it."""
    mounts = {partition.mountpoint: partition.fstype for partition in psutil.disk_partitions(all=True)}
    resolved = folder.resolve()
    return next((mounts[str(above)] for above in (resolved, *resolved.parents) if str(above) in mounts), "unknown")

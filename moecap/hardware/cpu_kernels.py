"""Kernels that load the CPUs' memory or matrix units to the full, through torch. They time nothing.

Importing this module loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from moecap.hardware.timing import Kernel


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Give torch its number of threads back afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Streams:
    """STREAM-like kernels over three float32 arrays of `array_bytes`."""

    def __init__(self, array_bytes: int) -> None:
        self._x, self._y, self._z = (torch.ones(array_bytes // 4) for _ in range(3))
        self._bytes = 4 * self._x.numel()

    def reads(self, threads: int, *, writing: bool = True) -> list[Kernel]:
        """Their work is the bytes that they read; of those that write, too, what they write isn't counted: the peak is
        to divide bytes that a model reads."""
        x, y, z = self._x, self._y, self._z
        kernels = [
            _kernel("sum", self._bytes, x.sum, threads),
            _kernel("dot", 2 * self._bytes, lambda: torch.dot(x, y), threads),
        ]
        if writing:
            kernels += [
                _kernel("copy", self._bytes, lambda: z.copy_(x), threads),
                # reads z and x, writes z: no read for ownership goes uncounted
                _kernel("triad", 2 * self._bytes, lambda: z.add_(x, alpha=0.5), threads),
            ]
        return kernels

    def copy(self, threads: int) -> Kernel:
        """Its work is the bytes that it reads and those that it writes."""
        return _kernel("copy", 2 * self._bytes, lambda: self._z.copy_(self._x), threads)


def gemm_kernel(dtype: str, threads: int, size: int) -> Kernel:
    """One square matrix product: 2 x size^3 FLOPs (for int8: integer operations, summed in int32)."""
    a, b = _square(dtype, size), _square(dtype, size)
    multiply = (lambda: torch._int_mm(a, b)) if dtype == "int8" else (lambda: torch.matmul(a, b))
    return _kernel(f"{size}^3", 2 * size**3, multiply, threads)


def int8_is_exact() -> bool:
    """Whether this build multiplies int8 matrices on CPUs, exactly."""
    a, b = _square("int8", 64), _square("int8", 64)
    try:
        product = torch._int_mm(a, b)
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(product, a.to(torch.int32) @ b.to(torch.int32))


def _square(dtype: str, size: int) -> torch.Tensor:
    if dtype == "int8":
        return torch.randint(-127, 128, (size, size), dtype=torch.int8)
    # Small values: a sum of products must not overflow the narrow types' range.
    return (torch.rand(size, size) - 0.5).to(getattr(torch, dtype))


def _kernel(name: str, work: int, call: Callable[[], object], threads: int) -> Kernel:
    def run() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            call()

    return Kernel(name=f"{name} on {threads} thread{'s' if threads > 1 else ''}", work=work, call=run)

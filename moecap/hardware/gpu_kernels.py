"""Kernels that load a GPU's memory, its matrix units or its link to the host to the full, through torch. They time
nothing, and wait for nothing: a call returns once its work is queued.

Importing this module loads torch. Everything but launches and pinned memory also works on torch's device `cpu`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from moecap.hardware.timing import Kernel

PRECISIONS = {"float32": "highest", "tfloat32": "high"}
"""Of torch's float32 products, by the dtype that they then compute in."""
COLUMNS = 4096
"""Of the matrix that `mv` reads."""
LAUNCHES = 1000
"""Kernels of one captured graph."""


class Streams:
    """Kernels over three float32 arrays of `array_bytes` each: many times the L2 cache."""

    def __init__(self, array_bytes: int, device: str) -> None:
        rows = max(1, array_bytes // (4 * COLUMNS))
        self._x, self._y, self._z = (torch.rand(rows * COLUMNS, device=device) for _ in range(3))
        self._bytes = 4 * self._x.numel()
        self._matrix, self._vector = self._y.view(rows, COLUMNS), torch.rand(COLUMNS, device=device)

    def reads(self) -> list[Kernel]:
        """Reductions: their work is the bytes of the arrays that they read."""
        return [
            _kernel("sum", self._bytes, self._x.sum),
            _kernel("dot", 2 * self._bytes, lambda: torch.dot(self._x, self._y)),
            _kernel("mv", self._bytes, lambda: torch.mv(self._matrix, self._vector)),
        ]

    def copy(self) -> Kernel:
        """Its work is the bytes that it reads and those that it writes."""
        return _kernel("copy", 2 * self._bytes, lambda: self._z.copy_(self._x))

    def triad(self) -> Kernel:
        """z = x + y / 2; likewise."""
        return _kernel("triad", 3 * self._bytes, lambda: torch.add(self._x, self._y, alpha=0.5, out=self._z))


def gemm_kernel(dtype: str, device: str, size: int) -> Kernel:
    """One square matrix product of `dtype` (as the catalogue names it), right operand transposed as a layer's weights
    are: 2 x size^3 FLOPs. Calling it raises RuntimeError or AttributeError where there is no such product."""
    name = f"{size}^3"
    if dtype == "int8":
        a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        return _kernel(name, 2 * size**3, lambda: torch._int_mm(a, b.t()))
    # Small values: a sum of products must not overflow the narrow types' range.
    x, w = (torch.rand(size, size, device=device) - 0.5 for _ in range(2))
    if dtype == "float8":
        return _float8_kernel(name, size, x, w)
    if dtype in PRECISIONS:
        return _kernel(name, 2 * size**3, lambda: _float32_product(PRECISIONS[dtype], x, w))
    a, b = x.to(getattr(torch, dtype)), w.to(getattr(torch, dtype))
    return _kernel(name, 2 * size**3, lambda: torch.matmul(a, b.t()))


def transfer_kernels(transfer_bytes: int, device: str) -> dict[str, Kernel]:
    """Copies between pinned host memory and the device: `h2d` and `d2h`, each one way."""
    host = torch.ones(transfer_bytes // 4, pin_memory=True)
    held = torch.ones(transfer_bytes // 4, device=device)
    return {
        "h2d": _kernel("pinned copy", 4 * held.numel(), lambda: held.copy_(host, non_blocking=True)),
        "d2h": _kernel("pinned copy", 4 * held.numel(), lambda: host.copy_(held, non_blocking=True)),
    }


def launch_kernels() -> dict[str, Kernel]:
    """Launches of a kernel that does nothing (it waits 0 cycles); their work is launches.

    `kernel`: one after the other from Python; `graph`: whole graphs of one such kernel; `graph_kernel`: kernels of one
    graph of LAUNCHES.
    """
    one, many = _graph_of(1), _graph_of(LAUNCHES)
    return {  # nothing is put around these calls: it would take as long as they do
        "kernel": Kernel(name="empty kernel", work=LAUNCHES, call=_launch_nothing),
        "graph": Kernel(name="graph of one empty kernel", work=1, call=one.replay),
        "graph_kernel": Kernel(name=f"graph of {LAUNCHES} empty kernels", work=LAUNCHES, call=many.replay),
    }


def _float8_kernel(name: str, size: int, x: torch.Tensor, w: torch.Tensor) -> Kernel:
    """float8_e4m3 operands, one scale each, bfloat16 result, as serving kernels have it."""
    a, b = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    one = torch.ones((), device=x.device)
    return _kernel(
        name,
        2 * size**3,
        lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True),
    )


def _float32_product(precision: str, x: torch.Tensor, w: torch.Tensor) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.matmul(x, w.t())


def _launch_nothing(times: int = LAUNCHES) -> None:
    for _ in range(times):
        torch.cuda._sleep(0)  # type: ignore[no-untyped-call]


def _graph_of(launches: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _launch_nothing(launches)
    return graph


def _kernel(name: str, work: int, call: Callable[[], object]) -> Kernel:
    def run() -> None:
        with torch.inference_mode():
            call()

    return Kernel(name=name, work=work, call=run)

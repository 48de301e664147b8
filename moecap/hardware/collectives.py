"""How fast the devices of one node exchange data: torch's collectives by message size, one process per device.

`calibrate_collectives` starts those processes (this module run as a program), on NCCL for GPUs, on gloo for CPUs.
A message has the size that nccl-tests gives it: of an all-reduce the tensor, of an all-gather the whole result, of a
reduce-scatter the whole input, of an all-to-all one device's input. A rate is message bytes per second (nccl-tests'
"algbw"): the slowest process's time counts.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from moecap.hardware.programs import run_programs
from moecap.hardware.timing import ROUNDS, peak_of
from moecap.records import Measured, Rates, to_jsonable

MESSAGE_BYTES = (2**12, 2**16, 2**20, 2**24, 2**28)
CALL_S = 0.02
"""So long are calls repeated for one round."""
LIMIT_S = 180.0


def calibrate_collectives(uuids: Sequence[str], sizes: Sequence[int] = MESSAGE_BYTES) -> Rates:
    """Of these devices together; without uuids, of two CPU processes over gloo. Raises CalibrationError."""
    world, backend = (len(uuids), "nccl") if uuids else (2, "gloo")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        arguments = [[str(rank), str(world), backend, str(meeting), *map(str, sizes)] for rank in range(world)]
        environments = [{"CUDA_VISIBLE_DEVICES": ",".join(uuids)} for _ in range(world)]
        printed = run_programs(__name__, arguments, environments, LIMIT_S)
    return Rates(peaks=None, measured=tuple(TypeAdapter(list[Measured]).validate_python(json.loads(printed))))


def collective_calls(message_bytes: int, world: int, device: str) -> Mapping[str, Callable[[], object]]:
    """Quantity -> one call that moves a message of about that size (whole float32 elements for every device)."""
    import torch  # noqa: PLC0415 - in processes of its own only
    from torch import distributed  # noqa: PLC0415

    share = torch.zeros(max(1, message_bytes // (4 * world)), device=device)
    whole, other = (torch.zeros(world * share.numel(), device=device) for _ in range(2))
    return {
        "all_reduce_bytes_per_s": lambda: distributed.all_reduce(whole),
        "all_gather_bytes_per_s": lambda: distributed.all_gather_into_tensor(whole, share),
        "reduce_scatter_bytes_per_s": lambda: distributed.reduce_scatter_tensor(share, whole),
        "all_to_all_bytes_per_s": lambda: distributed.all_to_all_single(other, whole),
    }


def _measure(world: int, device: str, sizes: Sequence[int]) -> list[Measured]:
    found = []
    for size in sizes:
        for quantity, call in collective_calls(size, world, device).items():
            message_bytes = 4 * world * max(1, size // (4 * world))
            times = max(1, round(CALL_S / _slowest_s(call, 1, device)))
            rounds = [_slowest_s(call, times, device) for _ in range(ROUNDS)]
            peak = peak_of([(message_bytes / seconds, quantity) for seconds in rounds])
            found.append(peak.as_rate(quantity, devices=world, message_bytes=message_bytes))
    return found


def _slowest_s(call: Callable[[], object], times: int, device: str) -> float:
    """Seconds per call of the slowest process: the same number in all of them, so that they decide the same."""
    import torch  # noqa: PLC0415
    from torch import distributed  # noqa: PLC0415

    call()
    distributed.barrier()
    _finish(torch, device)
    begin_s = time.perf_counter()
    for _ in range(times):
        call()
    _finish(torch, device)
    taken = torch.tensor([(time.perf_counter() - begin_s) / times], dtype=torch.float64, device=device)
    distributed.all_reduce(taken, op=distributed.ReduceOp.MAX)
    return float(taken.item())


def _finish(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _main(rank: int, world: int, backend: str, meeting: str, sizes: Sequence[int]) -> None:
    """Take part as `rank`; the first one prints what was measured, as JSON."""
    import torch  # noqa: PLC0415
    from torch import distributed  # noqa: PLC0415

    device = "cpu"
    if backend == "nccl":
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)
    found = _measure(world, device, sizes)
    distributed.destroy_process_group()
    if rank == 0:
        print(json.dumps(to_jsonable(found)))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], [int(size) for size in sys.argv[5:]])

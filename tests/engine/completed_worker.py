"""A recording worker with what vLLM on CPUs lacks for replicas and pipeline stages of MoE models: communication of
unequal parts, and buffers between stages of uncompiled models. Runs inside vLLM. Nothing is asserted here."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.distributed.parallel_state import get_pp_group

from moecap.probe.vllm_worker import RecordingWorker


def _all_gatherv(self: Any, parts: list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None) -> Any:
    """Each of `parts` along its first axis, from ranks that have `sizes` of it."""
    assert sizes is not None and dim == 0
    gathered = []
    for part in parts:
        padded = part.new_zeros((max(sizes), *part.shape[1:]))
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(found, padded, group=self.device_group)
        gathered.append(torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)]))
    return gathered


def _reduce_scatterv(self: Any, whole: torch.Tensor, dim: int = 0, sizes: list[int] | None = None) -> torch.Tensor:
    assert sizes is not None and dim == 0
    total = whole.clone()
    torch.distributed.all_reduce(total, group=self.device_group)
    return total.split(sizes)[self.rank_in_group].contiguous()


CpuCommunicator.all_gatherv = _all_gatherv
CpuCommunicator.reduce_scatterv = _reduce_scatterv


class CompletedWorker(RecordingWorker):
    """RecordingWorker, able to be a later pipeline stage."""

    def compile_or_warm_up_model(self) -> Any:
        runner = self.model_runner
        if not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )
        return super().compile_or_warm_up_model()

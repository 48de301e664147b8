"""vLLM workers that record: named as `worker_cls`, they attach the probe to the routers and note every step.

A step's counts come from `vllm_counters`, who computed what from `vllm_steps`; here is when it ran, and the calls by
which a client starts and ends a recording (`collective_rpc`). vLLM's own code is only extended, by the methods that a
worker is made of; nothing of it is replaced. One worker of every tensor-parallel group records, as all of them see the
same tokens. What was recorded is written to a file, one per worker: `vllm_recording` reads it.

Times on a CUDA device are those of events on the stream that the model runs on; nothing is synchronised for them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.platforms import current_platform

from moecap.probe.vllm_counters import Counter, DeviceCounter, HostCounter, own_rows
from moecap.probe.vllm_recording import Ranks, Recorded, write_recording
from moecap.probe.vllm_steps import Step, StepLog

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class _Clock:
    """Ends of steps on the host's monotonic clock."""

    def mark(self) -> Any:
        """Now, as the device sees it once it gets there."""
        return time.monotonic_ns()

    def start(self) -> None:
        """Marks from here on can be read."""

    def read(self, marks: list[Any]) -> list[int]:
        """monotonic_ns of marks, in the order in which they were made."""
        return list(marks)


class _CudaClock(_Clock):
    """By events. Each is read against the one before it: the time between two is exact, however far the first is."""

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self) -> None:
        torch.cuda.synchronize()
        self._origin = self.mark()
        self._origin.synchronize()
        self._origin_ns = time.monotonic_ns()

    def read(self, marks: list[Any]) -> list[int]:
        torch.cuda.synchronize()
        found, at_ns, last = [], float(self._origin_ns), self._origin
        for mark in marks:
            at_ns += last.elapsed_time(mark) * 1e6
            found.append(round(at_ns))
            last = mark
        return found


class RecordingWorker(PlatformWorker):  # type: ignore[misc]
    """vLLM's worker for this platform, recording when told to."""

    def compile_or_warm_up_model(self) -> Any:
        """Attach before CUDA graphs are captured, so that they count too."""
        self._moecap_attach()
        return super().compile_or_warm_up_model()

    def execute_model(self, scheduler_output: Any) -> Any:
        """A step, noted."""
        noted = self._moecap_recording and self._moecap_begin_step(scheduler_output)
        self._moecap_step_id += bool(scheduler_output.total_num_scheduled_tokens)
        output = super().execute_model(scheduler_output)
        if noted and output is not None:
            self._moecap_end_step()
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The end of a step whose forward pass gave no output of its own."""
        output = super().sample_tokens(grammar_output)
        if self._moecap_recording and len(self._moecap_ends) < len(self._moecap_steps):
            self._moecap_end_step()
        return output

    def execute_dummy_batch(self) -> None:
        """A step that only keeps other data-parallel replicas company."""
        self._moecap_step_id += 1
        if self._moecap_recording and self._moecap_counter is not None:
            self._moecap_counter.skip_step()
        super().execute_dummy_batch()

    # -- what a client calls

    def moecap_facts(self) -> dict[str, Any]:
        """Weights by name as held here, and settings as they were resolved. JSON values."""
        from moecap.probe.vllm_facts import worker_facts  # noqa: PLC0415

        return {**worker_facts(self), "ranks": asdict(self._moecap_ranks()), "layers": self._moecap_layers}

    def moecap_start(self, keep_tokens: str) -> None:
        """Record from here on; `keep_tokens` is `yes` or `no`. No request may be in flight."""
        self._moecap_steps: list[Step] = []
        self._moecap_step_ids: list[int] = []
        self._moecap_begins: list[Any] = []
        self._moecap_ends: list[Any] = []
        self._moecap_observed_ns = 0
        self._moecap_log = StepLog()
        if self._moecap_counter is not None:
            self._moecap_counter.observed_ns = 0
            self._moecap_counter.start(keep_tokens=keep_tokens == "yes")
        self._moecap_clock = _CudaClock() if self._moecap_on_cuda() else _Clock()
        self._moecap_clock.start()
        self._moecap_recording = True

    def moecap_stop(self, folder: str) -> dict[str, Any]:
        """End the recording and write it into `folder`; which file, and how many steps."""
        self._moecap_recording = False
        counted = None if self._moecap_counter is None else self._moecap_counter.stop()
        marks = [mark for pair in zip(self._moecap_begins, self._moecap_ends, strict=True) for mark in pair]
        times = self._moecap_clock.read(marks)
        observed_ns = 0 if self._moecap_counter is None else self._moecap_counter.observed_ns
        recorded = Recorded(
            ranks=self._moecap_ranks(), layers=tuple(self._moecap_layers), steps=tuple(self._moecap_steps),
            step_ids=tuple(self._moecap_step_ids), begun_ns=tuple(times[::2]), ended_ns=tuple(times[1::2]),
            observed_ns=self._moecap_observed_ns + observed_ns, counted=counted,
        )  # fmt: skip
        path = write_recording(Path(folder), recorded)
        return {"path": str(path), "steps": len(recorded.steps)}

    # -- inside

    _moecap_recording = False
    _moecap_step_id = 0
    """Forward passes since the start, recorded or not: replicas make them together, but start to record one by one."""
    _moecap_counter: Counter | None = None
    _moecap_layers: list[int]

    def _moecap_attach(self) -> None:
        routers = dict(sorted(routers_of(self.vllm_config)))
        self._moecap_layers = list(routers)
        ranks, workers = self._moecap_ranks(), self.vllm_config.parallel_config.world_size
        if workers != ranks.num_pipeline * ranks.num_tensor:
            raise ValueError(f"{workers} workers that share more than layers and tensors can't be recorded")
        if not routers or get_tp_group().rank_in_group != 0:
            return
        sizes = {(router.top_k, router.global_num_experts) for router in routers.values()}
        if len(sizes) > 1:
            raise ValueError(f"MoE layers of several sizes (top-k, experts) {sorted(sizes)} can't be recorded")
        ((top_k, num_experts),) = sizes
        size = {"num_layers": len(routers), "num_experts": num_experts, "top_k": top_k}
        self._moecap_counter = (
            DeviceCounter(
                **size, max_rows=self.vllm_config.scheduler_config.max_num_batched_tokens,
                device=self.model_runner.device,
            )
            if self._moecap_on_cuda()
            else HostCounter(**size)
        )  # fmt: skip
        replica = ranks.replica if ranks.num_replicas > 1 else None
        for position, router in enumerate(routers.values()):
            router.set_capture_fn(_Listener(self._moecap_counter, position, router.capture_fn, replica))

    def _moecap_on_cuda(self) -> bool:
        return bool(self.device.type == "cuda")

    def _moecap_ranks(self) -> Ranks:
        parallel = self.vllm_config.parallel_config
        return Ranks(
            replica=parallel.data_parallel_index, num_replicas=parallel.data_parallel_size,
            pipeline=get_pp_group().rank_in_group, num_pipeline=get_pp_group().world_size,
            tensor=get_tp_group().rank_in_group, num_tensor=get_tp_group().world_size,
        )  # fmt: skip

    def _moecap_begin_step(self, scheduler_output: Any) -> bool:
        """Whether it has tokens."""
        begun_ns = time.monotonic_ns()
        step = self._moecap_log.see(scheduler_output)
        if step is None:
            return False
        self._moecap_steps.append(step)
        self._moecap_step_ids.append(self._moecap_step_id)
        if self._moecap_counter is not None:
            self._moecap_counter.begin_step(step.tokens)
        self._moecap_begins.append(self._moecap_clock.mark())
        self._moecap_observed_ns += time.monotonic_ns() - begun_ns
        return True

    def _moecap_end_step(self) -> None:
        begun_ns = time.monotonic_ns()
        self._moecap_ends.append(self._moecap_clock.mark())
        self._moecap_observed_ns += time.monotonic_ns() - begun_ns


class _Listener:
    """A router's capture function; one that was there before is called too."""

    def __init__(
        self, counter: Counter, position: int, before: Callable[[torch.Tensor], None] | None, replica: int | None
    ) -> None:
        self._counter, self._position, self._before, self._replica = counter, position, before, replica

    def __call__(self, ids: torch.Tensor) -> None:
        if self._before is not None:
            self._before(ids)
        begun_ns = time.monotonic_ns()
        if self._replica is not None:
            across = get_forward_context().dp_metadata
            if across is not None:
                ids = ids[own_rows(ids.shape[0], across.num_tokens_across_dp_cpu.tolist(), self._replica)]
        self._counter.see(self._position, ids)
        self._counter.observed_ns += time.monotonic_ns() - begun_ns


def routers_of(config: Any) -> Iterator[tuple[int, Any]]:
    """(index of the decoder layer, router) of the model's own layers; those of a drafter come after them."""
    count = config.model_config.hf_text_config.num_hidden_layers
    for name, module in config.compilation_config.static_forward_context.items():
        router, number = getattr(module, "router", None), re.search(r"\.(\d+)\.", f".{name}.")
        if isinstance(router, BaseRouter) and number and int(number[1]) < count:
            yield int(number[1]), router

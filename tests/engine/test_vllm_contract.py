"""What must have been recorded, of a vLLM whose workers are made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from moecap.engine.fake import virtual_shape
from moecap.engine.openai_client import Driven
from moecap.engine.vllm import VllmEngine
from moecap.engine.vllm_modes import Mode
from moecap.errors import EngineError
from moecap.probe.vllm_counters import Counted
from moecap.probe.vllm_recording import Ranks, Recorded, write_recording
from moecap.probe.vllm_steps import Step
from moecap.records import LoadSpec, Phase, Request, RequestRecord

STEP = Step(
    phase=Phase.PREFILL, query_lens=(1,), context_lens=(1,), cached_tokens=0, logits_tokens=1, after_idle=True
)  # fmt: skip


class ByHand:
    """Replicas that made so many passes each, of one token that goes to experts 0 and 1 in both layers."""

    def __init__(self, passes: Sequence[int]) -> None:
        self.passes, self.in_flight = passes, 0

    def flush(self) -> None:
        pass

    def call(self, method: str, *args: str) -> list[Any]:
        if method == "moecap_stop":
            for replica, count in enumerate(self.passes):
                write_recording(Path(args[0]), self._recorded(replica, count))
        return [None]

    def _recorded(self, replica: int, count: int) -> Recorded:
        counts = np.zeros((count, 2, 4), np.int32)
        counts[:, :, :2] = 1
        return Recorded(
            ranks=Ranks(replica=replica, num_replicas=2, pipeline=0, num_pipeline=1, tensor=0, num_tensor=1),
            layers=(0, 1), steps=(STEP,) * count, step_ids=tuple(range(count)),
            begun_ns=tuple(range(0, 10 * count, 10)), ended_ns=tuple(range(5, 10 * count + 5, 10)), observed_ns=0,
            counted=Counted(
                rows=np.ones(count, np.int32), counts=counts, padding=np.zeros((count, 2, 4), np.bool_), token_ids=None
            ),
        )  # fmt: skip

    def serve(self, requests: Sequence[Request], load: LoadSpec) -> Driven:
        self.in_flight = load.concurrency or 0
        return Driven(requests=tuple(_answered(one) for one in requests), client=None)


def _answered(request: Request) -> RequestRecord:
    return RequestRecord(
        request_id=request.request_id, attempt=0, item_index=request.item_index, replica=None, scheduled_ns=None,
        sent_ns=0, first_token_ns=1, end_ns=1, chunk_ns=(1,), chunk_tokens=(1,), input_tokens=1, cached_tokens=0,
        output_tokens=1, status="ok",
    )  # fmt: skip


def engine_on(mode: ByHand, folder: Path) -> VllmEngine:
    engine = VllmEngine()
    engine._mode, engine._folder, engine._shape = cast("Mode", mode), folder, virtual_shape("virtual")
    return engine


def test_routers_of_every_replica_are_seen(tmp_path: Path) -> None:
    mode = ByHand([3, 2])
    engine_on(mode, tmp_path)._see_routers(2)
    assert mode.in_flight == 8  # at once, so that they are spread
    with pytest.raises(EngineError, match=r"replicas \[1\] of 2 served none of 8 requests at once"):
        engine_on(ByHand([5, 0]), tmp_path)._see_routers(2)


def test_a_replica_that_did_not_record_is_told_though_the_server_tells_of_none(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"\[\(1, 0, 0\)\] did not"):
        engine_on(ByHand([3]), tmp_path).serve((), LoadSpec(concurrency=1), "counts")

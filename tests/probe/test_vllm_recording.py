"""Recordings of vLLM's workers: through a file, and as passes and routing, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecap.engine.fake import virtual_shape
from moecap.errors import EngineError
from moecap.probe.vllm_counters import Counted
from moecap.probe.vllm_recording import Ranks, Recorded, read_recording, records_of, write_recording
from moecap.probe.vllm_steps import Step
from moecap.records import Phase

SHAPE = virtual_shape("virtual")
"""Two MoE layers of 4 experts, top-2."""
PREFILL = Step(
    phase=Phase.PREFILL, query_lens=(2, 1), context_lens=(2, 4), cached_tokens=3, logits_tokens=2, after_idle=True
)
DECODE = Step(
    phase=Phase.DECODE, query_lens=(1, 1), context_lens=(3, 5), cached_tokens=0, logits_tokens=2, after_idle=False
)
LATER = replace(DECODE, after_idle=True)


def counted(layers: int = 2, experts: int = 4) -> Counted:
    """Three tokens, then two with two rows of padding, then two again; every token to experts 0 and 1."""
    counts = np.zeros((3, layers, experts), np.int32)
    counts[0, :, :2], counts[1:, :, :2] = 3, 2
    padding = np.zeros((3, layers, experts), np.bool_)
    padding[1, :, 1:3] = True
    ids = np.tile(np.array([0, 1], np.int16), (7, layers, 1))
    return Counted(rows=np.array([3, 4, 2], np.int32), counts=counts, padding=padding, token_ids=ids)


def recorded(**changes: Any) -> Recorded:
    fields: dict[str, Any] = {
        "ranks": Ranks(replica=0, pipeline=0, num_pipeline=1, tensor=0), "layers": (0, 1),
        "steps": (PREFILL, DECODE, LATER), "step_ids": (0, 1, 4), "begun_ns": (100, 205, 400),
        "ended_ns": (200, 290, 500), "observed_ns": 7, "counted": counted(),
    }  # fmt: skip
    return Recorded(**{**fields, **changes})


def test_through_a_file(tmp_path: Path) -> None:
    asked = recorded()
    got = read_recording(write_recording(tmp_path, asked))
    assert replace(got, counted=None) == replace(asked, counted=None)
    assert got.counted is not None and asked.counted is not None
    for name in ("rows", "counts", "padding", "token_ids"):
        assert (getattr(got.counted, name) == getattr(asked.counted, name)).all()
    dense = read_recording(write_recording(tmp_path, recorded(counted=None, layers=())))
    assert dense.counted is None and dense.layers == ()


def test_intervals_open_at_the_end_before_or_at_the_launch_after_idling() -> None:
    passes, _ = records_of([recorded()], SHAPE)
    assert [(one.started_ns, one.launched_ns, one.duration_ns) for one in passes] == [
        (100, 100, 100), (200, 205, 90), (400, 400, 100),
    ]  # fmt: skip
    assert [one.phase for one in passes] == [Phase.PREFILL, Phase.DECODE, Phase.DECODE]
    assert [one.step_id for one in passes] == [0, 1, 4]
    assert [one.padded_tokens for one in passes] == [0, 2, 0]
    assert passes[0].query_lens == (2, 1) and passes[0].context_lens == (2, 4) and passes[0].cached_tokens == 3
    assert all(one.valid for one in passes)


def test_routing_of_layers_with_padding_apart() -> None:
    _, routing = records_of([recorded()], SHAPE)
    assert [(one.pass_id, one.layer) for one in routing] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert routing[2].counts == (2, 2, 0, 0)
    assert (routing[2].distinct, routing[2].distinct_physical) == (2, 3)
    assert routing[0].token_experts == ((0, 1),) * 3
    assert routing[5].token_experts == ((0, 1),) * 2


def test_redundant_experts_are_no_experts_of_the_model() -> None:
    """A router may be built for more experts than the model has; logical ids stay below."""
    _, routing = records_of([recorded(counted=counted(experts=6))], SHAPE)
    assert routing[0].counts == (3, 3, 0, 0)


def test_lost_tokens_and_unseen_layers_make_a_pass_invalid() -> None:
    lost = counted()
    lost.counts[1, 0, 0] = 1
    passes, _ = records_of([recorded(counted=lost)], SHAPE)
    assert [one.valid for one in passes] == [True, False, True]
    assert "layer 0: 3 assignments" in str(passes[1].invalid_reason)
    unseen = replace(counted(), rows=np.array([3, 0, 2], np.int32))
    passes, routing = records_of([recorded(counted=unseen)], SHAPE)
    assert "the routers saw 0 rows of 2 tokens" in str(passes[1].invalid_reason)
    assert {one.pass_id for one in routing} == {0, 2}
    half = recorded(layers=(1,), counted=counted(layers=1))
    passes, _ = records_of([half], SHAPE)
    assert "1 of 2 MoE layers were observed" in str(passes[0].invalid_reason)


def test_pipeline_stages_are_one_pass() -> None:
    """Each stage has a layer; the pass ends with the last one. A second tensor-parallel rank adds nothing."""
    stages = [
        recorded(
            ranks=Ranks(replica=0, pipeline=stage, num_pipeline=2, tensor=rank), layers=(stage,),
            counted=counted(layers=1) if rank == 0 else None, ended_ns=tuple(t + 50 * stage for t in (200, 290, 500)),
        )
        for stage in (1, 0)
        for rank in (0, 1)
    ]  # fmt: skip
    passes, routing = records_of(stages, SHAPE)
    assert [one.duration_ns for one in passes] == [150, 90, 150]
    assert [(one.pass_id, one.layer) for one in routing[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(one.valid for one in passes)
    with pytest.raises(EngineError, match="1 of 2 pipeline stages"):
        records_of(stages[:2], SHAPE)
    with pytest.raises(EngineError, match=r"recorded \[2, 3\] steps"):
        records_of([stages[2], replace(stages[0], steps=stages[0].steps[:2])], SHAPE)


def test_replicas_pass_on_their_own() -> None:
    other = recorded(
        ranks=Ranks(replica=1, pipeline=0, num_pipeline=1, tensor=0), ended_ns=(250, 350, 450), begun_ns=(110, 255, 440)
    )
    passes, routing = records_of([other, recorded()], SHAPE)
    assert [(one.replica, one.pass_id) for one in passes] == [(0, 0), (1, 1), (0, 2), (1, 3), (1, 4), (0, 5)]
    assert passes[3].started_ns == 250
    assert len(routing) == 12

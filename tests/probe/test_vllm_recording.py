"""Recordings of vLLM's workers: through a file, and as passes and routing, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecap.engine.fake import virtual_shape
from moecap.errors import EngineError
from moecap.probe import vllm_records
from moecap.probe.vllm_counters import Counted
from moecap.probe.vllm_recording import Ranks, Recorded, read_recording, write_recording
from moecap.probe.vllm_records import records_of
from moecap.probe.vllm_steps import Step
from moecap.records import Phase, ServeRecord
from moecap.run import concatenate

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


def ranks(**changes: int) -> Ranks:
    alone = {"replica": 0, "num_replicas": 1, "pipeline": 0, "num_pipeline": 1, "tensor": 0, "num_tensor": 1}
    return Ranks(**{**alone, **changes})


def recorded(**changes: Any) -> Recorded:
    fields: dict[str, Any] = {
        "ranks": ranks(), "layers": (0, 1),
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
            ranks=ranks(pipeline=stage, num_pipeline=2, tensor=rank, num_tensor=2), layers=(stage,),
            counted=counted(layers=1) if rank == 0 else None, ended_ns=tuple(t + 50 * stage for t in (200, 290, 500)),
        )
        for stage in (1, 0)
        for rank in (0, 1)
    ]  # fmt: skip
    passes, routing = records_of(stages, SHAPE)
    assert [one.duration_ns for one in passes] == [150, 90, 150]
    assert [(one.pass_id, one.layer) for one in routing[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(one.valid for one in passes)
    short = [replace(one, steps=one.steps[:2]) if one.ranks.pipeline == 1 else one for one in stages]
    with pytest.raises(EngineError, match=r"recorded \[2, 3\] steps"):
        records_of(short, SHAPE)


def replicas() -> list[Recorded]:
    """The second one's passes are the third, fourth and sixth that both have made since the start; the first one's the
    third, sixth and seventh."""
    times = {"ended_ns": (250, 350, 450), "begun_ns": (110, 255, 440)}
    return [
        recorded(ranks=ranks(replica=1, num_replicas=2), step_ids=(2, 3, 5), **times),
        recorded(ranks=ranks(num_replicas=2), step_ids=(2, 5, 6)),
    ]


def test_replicas_have_passes_of_their_own_and_share_steps() -> None:
    passes, routing = records_of(replicas(), SHAPE)
    assert [(one.replica, one.pass_id) for one in passes] == [(0, 0), (1, 1), (0, 2), (1, 3), (1, 4), (0, 5)]
    assert [one.step_id for one in passes] == [0, 0, 3, 1, 3, 4]
    assert passes[3].started_ns == 250
    assert [(one.pass_id, one.layer) for one in routing] == [(i, layer) for i in range(6) for layer in (0, 1)]
    assert [sum(one.counts) for one in routing][::2] == [6, 6, 4, 4, 4, 4]


def test_steps_stay_apart_over_recordings_of_one_run() -> None:
    """Two recordings of replicas: the second one's steps come after all of the first one's, which has gaps."""
    passes, routing = records_of(replicas(), SHAPE)
    both = concatenate([ServeRecord(passes=passes, routing=routing, requests=())] * 2)
    assert [one.step_id for one in both.passes] == [0, 0, 3, 1, 3, 4, 5, 5, 8, 6, 8, 9]
    assert [one.pass_id for one in both.routing][::2] == list(range(12))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([], "no worker recorded"),
        ([recorded(ranks=ranks(num_replicas=2))], r"those of .* \[\(1, 0, 0\)\] did not, and \[\]"),
        ([recorded(ranks=ranks(num_pipeline=2))], r"of 2 workers .* \[\(0, 1, 0\)\] did not"),
        ([recorded(ranks=ranks(tensor=1, num_tensor=2))], r"of 2 workers .* \[\(0, 0, 0\)\] did not"),
        ([recorded(), recorded(ranks=ranks(replica=1))], r"\[\(1, 0, 0\)\] are not among them"),
    ],
)
def test_workers_that_did_not_record_are_told(found: list[Recorded], told: str) -> None:
    """A replica or rank is gone, or replicas don't know each other (those of a model without experts)."""
    with pytest.raises(EngineError, match=told):
        records_of(found, SHAPE)


@pytest.mark.parametrize(("values", "pieces"), [(1, [2] * 6), (40, [10, 2]), (2**24, [12])])
def test_recordings_brought_into_columns_in_pieces_are_the_same(
    monkeypatch: pytest.MonkeyPatch, values: int, pieces: list[int]
) -> None:
    """Passes of 12, 12, 8, 8, 8 and 8 values, two rows each: 40 is exceeded by the fifth."""
    monkeypatch.setattr(vllm_records, "CHUNK_VALUES", values)
    passes, routing = records_of(replicas(), SHAPE)
    assert [len(piece) for piece in routing.table["counts"].chunks if len(piece)] == pieces
    assert [one.num_requests for one in passes] == [2] * 6
    assert [len(one.token_experts or ()) for one in routing][::2] == [3, 3, 2, 2, 2, 2]
    assert {one.token_experts for one in routing} == {((0, 1),) * 3, ((0, 1),) * 2}


def test_ids_stay_with_their_tokens_and_layers() -> None:
    """Token t of the recording goes, in layer l, to experts (t + l) % 4 and (t + l + 1) % 4."""
    token, layer, choice = np.ogrid[:7, :2, :2]
    ids = ((token + layer + choice) % 4).astype(np.int16)
    _, routing = records_of([recorded(counted=replace(counted(), token_ids=ids))], SHAPE)
    assert routing[0].token_experts == ((0, 1), (1, 2), (2, 3))
    assert routing[1].token_experts == ((1, 2), (2, 3), (3, 0))
    assert routing[3].token_experts == ((0, 1), (1, 2))  # tokens 3 and 4
    assert routing[-2].token_experts == ((1, 2), (2, 3))  # tokens 5 and 6
    _, routing = records_of([recorded(counted=replace(counted(), token_ids=None))], SHAPE)
    assert [one.token_experts for one in routing] == [None] * 6

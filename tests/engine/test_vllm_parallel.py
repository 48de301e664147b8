"""Models over several workers of vLLM itself on CPUs: tensor-parallel ranks, pipeline stages, data-parallel replicas.
What vLLM lacks there for the latter two is added by `completed_worker`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from saved_models import requests, save, serve
from test_vllm import chosen_experts

from moecap.engine import vllm
from moecap.records import ServeRecord

pytestmark = pytest.mark.vllm
HERE = str(Path(__file__).parent)
LIMITS = {"max_model_len": 128, "max_num_batched_tokens": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ServeRecord]:
    folder = str(save("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe")))
    return folder, serve(folder, "transformers", requests(), 1)


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "WORKER", "completed_worker.CompletedWorker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")])))


def check_equal(ours: ServeRecord, theirs: ServeRecord) -> None:
    assert [one.error for one in ours.requests] == [None] * len(requests())
    assert [one.output_token_ids for one in ours.requests] == [one.output_token_ids for one in theirs.requests]
    assert all(one.valid for one in ours.passes)
    assert chosen_experts(ours) == chosen_experts(theirs)


def test_ranks_of_one_replica_count_once(model: tuple[str, ServeRecord]) -> None:
    folder, theirs = model
    ours = serve(folder, "vllm", requests(), 3, tensor_parallel_size=2, mode="offline", env=two_cpus(), **LIMITS)
    check_equal(ours, theirs)


def two_cpus() -> dict[str, str]:
    """For each worker one."""
    return {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


@pytest.mark.usefixtures("completed")
def test_stages_make_one_pass(model: tuple[str, ServeRecord]) -> None:
    folder, theirs = model
    ours = serve(folder, "vllm", requests(), 3, pipeline_parallel_size=2, env=two_cpus(), **LIMITS)
    check_equal(ours, theirs)
    assert [(one.pass_id, one.layer) for one in ours.routing] == [
        (one.pass_id, layer) for one in ours.passes for layer in range(3)
    ]


@pytest.mark.usefixtures("completed")
def test_replicas_share_steps_and_nobody_knows_which_served_a_request(model: tuple[str, ServeRecord]) -> None:
    folder, theirs = model
    ours = serve(folder, "vllm", requests(), 3, data_parallel_size=2, **LIMITS)
    check_equal(ours, theirs)
    assert {one.replica for one in ours.passes} == {0, 1}
    assert [one.replica for one in ours.requests] == [None] * len(requests())
    together = Counter(one.step_id for one in ours.passes)
    assert set(together.values()) == {1, 2} and min(together) == 0
    by_step = {
        step: sorted((one for one in ours.passes if one.step_id == step), key=lambda one: one.launched_ns)
        for step, count in together.items()
        if count == 2
    }
    for first, second in by_step.values():  # no replica ends a step before the other has begun it
        assert first.replica != second.replica
        assert second.launched_ns < first.started_ns + first.duration_ns

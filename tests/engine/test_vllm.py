"""vLLM itself, on CPUs, against transformers on the same weights: tokens, and which experts every token went to."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from saved_models import CONFIGS, requests, save, serve

from moecap.accuracy import MAX_ANSWER_TOKENS, load_task
from moecap.engine.process import processes_of
from moecap.engine.vllm import VllmEngine
from moecap.errors import ConfigError, EngineError
from moecap.records import LoadSpec, ModelSpec, Phase, Placement, Request, ServeRecord, SystemSpec

pytestmark = pytest.mark.vllm
HERE = Placement(node_id="n", hostname="h", kind="cpu", num_cpus=2)
MODES = ("online", "offline")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ServeRecord]:
    """Saved weights, and what transformers does with them, one request at a time."""
    folder = str(save(request.param, tmp_path_factory.mktemp(request.param)))
    return folder, serve(folder, "transformers", requests(), 1)


def chosen_experts(record: ServeRecord) -> Counter[tuple[int, tuple[int, ...]]]:
    """(layer, experts of a token) -> how many tokens; the order in which a token's experts are named means nothing."""
    found = Counter[tuple[int, tuple[int, ...]]]()
    for one in record.routing:
        assert one.token_experts is not None
        found.update((one.layer, tuple(sorted(experts))) for experts in one.token_experts)
    return found


def counts(record: ServeRecord) -> dict[int, list[int]]:
    """Layer -> tokens per expert over the whole record."""
    by_layer: dict[int, list[int]] = {}
    for one in record.routing:
        before = by_layer.setdefault(one.layer, [0] * len(one.counts))
        by_layer[one.layer] = [a + b for a, b in zip(before, one.counts, strict=True)]
    return by_layer


@pytest.mark.parametrize("mode", MODES)
def test_tokens_and_experts_are_those_of_transformers(model: tuple[str, ServeRecord], mode: str) -> None:
    """Batched, in chunks of 32 tokens: prompts longer than that, and mixed passes, are in it."""
    folder, theirs = model
    ours = serve(folder, "vllm", requests(), 3, mode=mode, max_model_len=128, max_num_batched_tokens=32)
    assert [one.error for one in ours.requests] == [None] * len(requests())
    assert [one.output_token_ids for one in ours.requests] == [one.output_token_ids for one in theirs.requests]
    assert all(one.valid for one in ours.passes)
    assert Phase.MIXED in {one.phase for one in ours.passes}
    assert max(one.scheduled_tokens for one in ours.passes) <= 32 < max(one.input_tokens for one in ours.requests)
    assert counts(ours) == counts(theirs)
    assert chosen_experts(ours) == chosen_experts(theirs)


@pytest.fixture(scope="module")
def server() -> Iterator[VllmEngine]:
    """The packaged model on one server, for what several tests ask of it; the last one kills it."""
    engine = VllmEngine()
    spec = SystemSpec(name="v", engine="vllm", node="cpu", dtype="float32")
    try:
        engine.start(ModelSpec(name="reference"), spec, HERE)
        yield engine
    finally:
        engine.stop()


def test_the_packaged_model_answers_as_on_transformers(server: VllmEngine) -> None:
    items = [*load_task("add", 5), *load_task("sort", 5), *load_task("chain", 2)]
    asked = [
        Request(
            request_id=item.item_id, item_index=index, prompt_token_ids=server.encode(item.prompt),
            max_new_tokens=MAX_ANSWER_TOKENS, ignore_eos=False,
        )
        for index, item in enumerate(items)
    ]  # fmt: skip
    ours = server.serve(asked, LoadSpec(concurrency=4), "counts")
    theirs = serve("reference", "transformers", asked, 4)
    assert [one.output_token_ids for one in ours.requests] == [one.output_token_ids for one in theirs.requests]
    answers = [server.decode(one.output_token_ids) for one in ours.requests]
    assert sum(answer.strip() == item.target.strip() for answer, item in zip(answers, items, strict=True)) >= 9


def prompt(index: int, tokens: tuple[int, ...], count: int = 4) -> Request:
    return Request(request_id=f"p{index}", item_index=index, prompt_token_ids=tokens, max_new_tokens=count)


def test_cached_prefixes_are_told_and_flushed(server: VllmEngine) -> None:
    """Blocks of 128 tokens: the second of two equal prompts finds one; the next serve finds none."""
    tokens = tuple(3 + i % 200 for i in range(200))
    for _ in range(2):
        record = server.serve([prompt(0, tokens), prompt(1, tokens)], LoadSpec(concurrency=1), "counts")
        assert [one.cached_tokens for one in record.passes if one.phase is Phase.PREFILL] == [0, 128]
        assert [one.query_lens for one in record.passes if one.phase is Phase.PREFILL] == [(200,), (72,)]


def test_requests_come_when_they_are_due(server: VllmEngine) -> None:
    asked = [
        Request(request_id=f"o{i}", item_index=i, prompt_token_ids=(5, 6, 7), max_new_tokens=3, arrival_s=0.1 * i)
        for i in range(5)
    ]
    record = server.serve(asked, LoadSpec(arrival="poisson", rate_per_s=10.0), "counts")
    assert [one.status for one in record.requests] == ["ok"] * 5
    sent = [one.sent_ns - record.requests[0].sent_ns for one in record.requests]
    assert all(at >= 1e8 * index - 2e6 for index, at in enumerate(sent))
    assert record.client is not None


@pytest.mark.parametrize("mode", MODES)
def test_a_start_that_fails_tells_why(mode: str, tmp_path: Path) -> None:
    engine = VllmEngine()
    spec = SystemSpec(name="v", engine="vllm", node="cpu", args={"mode": mode, "max_model_len": 100_000})
    try:
        with pytest.raises(EngineError, match="max_model_len"):
            engine.start(ModelSpec(name="reference"), spec, HERE)
    finally:
        engine.stop()


def test_batches_of_fewer_experts_per_token_in_closed_loops_only() -> None:
    engine = VllmEngine()
    spec = SystemSpec(name="v", engine="vllm", node="cpu", dtype="float32", top_k=1, args={"mode": "offline"})
    try:
        engine.start(ModelSpec(name="reference"), spec, HERE)
        record = engine.serve([prompt(0, (5, 6, 7))], LoadSpec(concurrency=1), "counts")
        assert {sum(one.counts) for one in record.routing if one.pass_id == 0} == {3}
        with pytest.raises(ConfigError, match="offline mode serves a closed loop"):
            engine.serve((), LoadSpec(arrival="poisson", rate_per_s=1.0), "counts")
    finally:
        engine.stop()


def test_a_crash_is_told_and_leaves_nothing(server: VllmEngine) -> None:
    """Its engine core is killed."""
    running = processes_of(os.getpgrp())
    cores = [one for one in running if "EngineCore" in one.name() + " ".join(one.cmdline())]
    assert cores, [one.cmdline() for one in running]
    for process in cores:
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="vLLM"):
        for _ in range(20):  # the server notices within a moment
            server.serve([prompt(0, (5, 6, 7))], LoadSpec(concurrency=1), "counts")
            time.sleep(0.5)
    server.stop()
    assert not [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

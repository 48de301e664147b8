"""A Session with the real engine, in process: one performance run and one accuracy run of the packaged model."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from moecap.metrics.reduce import headline
from moecap.records import (
    AccuracySpec,
    LoadSpec,
    ModelSpec,
    NodeInfo,
    Placement,
    PointSpec,
    RunSpec,
    SystemSpec,
    WindowSpec,
    WorkloadSpec,
)
from moecap.reference import MODEL_DIR
from moecap.run import Session
from moecap.store import RunData
from moecap.telemetry.recorder import Recorder

LAYERS, TOP_K, CONCURRENCY, REQUESTS, OUTPUT_TOKENS, ITEMS = 6, 2, 2, 6, 6, 10
MODEL = ModelSpec(name="reference")
SYSTEM = SystemSpec(name="s", engine="transformers", node="cpu", dtype="float32")
NODE = NodeInfo(
    node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="some CPU", num_cpus=1, memory_bytes=2**34
)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    threads = torch.get_num_threads()
    placement = Placement(node_id="n", hostname="h", kind="cpu", num_cpus=1)
    session = Session.open(model=MODEL, system=SYSTEM, placement=placement, node=NODE, peaks=())
    yield session
    session.close()
    torch.set_num_threads(threads)


def measured(session: Session, **point: Any) -> RunData:
    spec = RunSpec(point=PointSpec(model=MODEL, system=SYSTEM, **point))
    return session.run(spec, study="t", telemetry=Recorder(hz=10.0))


@pytest.fixture(scope="module")
def performance(session: Session) -> RunData:
    return measured(
        session, workload=WorkloadSpec(type="tasks", options={"tasks": ["sort"], "output_tokens": OUTPUT_TOKENS}),
        load=LoadSpec(concurrency=CONCURRENCY), window=WindowSpec(warmup_requests=1, requests=REQUESTS),
    )  # fmt: skip


@pytest.fixture(scope="module")
def accuracy(session: Session) -> RunData:
    return measured(session, accuracy=AccuracySpec(tasks=("add", "multiply"), limit=ITEMS, batch_size=4))


def test_a_performance_run_records_its_requests_and_no_warm_up(performance: RunData) -> None:
    requests, passes = performance.requests, performance.passes
    assert requests["request_id"].to_pylist() == [f"request-{i}" for i in range(REQUESTS)]
    assert requests["output_tokens"].to_pylist() == [OUTPUT_TOKENS] * REQUESTS
    assert sum(passes["logits_tokens"].to_pylist()) == REQUESTS * OUTPUT_TOKENS
    assert performance.routing.num_rows == LAYERS * passes.num_rows
    assigned = sum(sum(counts) for counts in performance.routing["counts"].to_pylist())
    # every prompt token once, every output token but a request's last, in each layer to each of its experts
    computed = sum(requests["input_tokens"].to_pylist()) + REQUESTS * (OUTPUT_TOKENS - 1)
    assert assigned == computed * LAYERS * TOP_K
    manifest = performance.manifest
    assert (manifest.attempted, manifest.served, manifest.completed) == (REQUESTS,) * 3
    assert manifest.checks_failed == {}
    assert manifest.flags.keys() <= {"disturbed", "low_priority"}  # as the machine is


def test_the_window_lies_between_full_load_and_the_last_request(performance: RunData) -> None:
    (window,) = performance.manifest.windows
    first_tokens = sorted(performance.requests["first_token_ns"].to_pylist())
    assert window.start_ns == first_tokens[CONCURRENCY - 1]
    assert window.end_ns == max(performance.requests["sent_ns"].to_pylist())
    inside = [
        time_ns
        for times in performance.requests["chunk_ns"].to_pylist()
        for time_ns in times
        if window.start_ns < time_ns <= window.end_ns
    ]
    expected = len(inside) / (window.end_ns - window.start_ns) * 1e9
    edge = CONCURRENCY / (window.end_ns - window.start_ns) * 1e9  # tokens that come as the window opens
    assert headline(performance)["output_tokens_per_s"] == pytest.approx(expected, abs=edge)


def test_telemetry_spans_the_requests(performance: RunData, accuracy: RunData) -> None:
    for run in (performance, accuracy):
        times = run.hosts["time_ns"].to_pylist()
        assert times[0] <= min(run.requests["sent_ns"].to_pylist())
        assert times[-1] >= max(run.requests["end_ns"].to_pylist())
        assert all(memory > 10_713_088 * 4 for memory in run.hosts["engine_rss_bytes"].to_pylist())  # float32 weights


def test_an_accuracy_run_answers_as_the_model_card_records(accuracy: RunData) -> None:
    """`evaluation.json` is by transformers' own `generate`: which items are wrong, and what is said instead."""
    recorded = json.loads((MODEL_DIR / "evaluation.json").read_text(encoding="utf-8"))["wrong"]["float32"]
    samples = accuracy.samples.to_pylist()
    assert [one["item_id"] for one in samples] == [f"{t}-{i:04}" for t in ("add", "multiply") for i in range(ITEMS)]
    wrong = {one["item_id"]: one["raw_output"].partition("\n")[0] for one in samples if one["score"] < 1}
    first = {f"multiply-{i:04}" for i in range(ITEMS)}
    assert wrong == {item: said for item, said in recorded["multiply"].items() if item in first}
    assert {one["status"] for one in samples} == {"ok"}  # the end of sequence was seen
    assert headline(accuracy)["accuracy"] == pytest.approx((1.0 + 1 - len(wrong) / ITEMS) / 2)


def test_tasks_have_windows_of_their_own_and_share_unique_passes(accuracy: RunData) -> None:
    windows = accuracy.manifest.windows
    assert [(one.label, one.phase) for one in windows] == [("add", "accuracy"), ("multiply", "accuracy")]
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(windows))
    assert accuracy.passes["pass_id"].to_pylist() == list(range(accuracy.passes.num_rows))
    assert set(accuracy.routing["pass_id"].to_pylist()) == set(range(accuracy.passes.num_rows))
    for index, request in enumerate(accuracy.requests.to_pylist()):
        window = windows[index // ITEMS]
        assert window.start_ns <= request["sent_ns"] < request["end_ns"] <= window.end_ns
    assert max(accuracy.passes["num_requests"].to_pylist()) == 4

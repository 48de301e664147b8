"""Loads found on the fake engine, whose times are computed: a pass takes 10 ms and 1 ms for each request in it."""

from typing import Any

import pytest

from moecap.metrics.reduce import reduce_runs
from moecap.records import (
    LoadSpec,
    Metric,
    ModelSpec,
    NodeInfo,
    Phase,
    Placement,
    PointSpec,
    RepeatsSpec,
    RequestRecord,
    RunSpec,
    SearchSpec,
    SloSpec,
    StudyPlan,
    SystemSpec,
    Window,
    WindowSpec,
    WorkloadSpec,
)
from moecap.report.index import entry_labels
from moecap.run import Session
from moecap.store import RunData
from moecap.telemetry.recorder import Recorder
from moecap.trials import LoadFinder

NODE = NodeInfo(node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="c", num_cpus=1, memory_bytes=1)
SECOND = 10**9


def point(slo: SloSpec, output_tokens: int = 9, per_load: float = 4, **load: Any) -> PointSpec:
    args = {"pass_s": 0.010, "pass_s_per_request": 0.001, "clock": "simulated"}
    options = {"input_tokens": 4, "output_tokens": output_tokens}
    return PointSpec(
        model=ModelSpec(name="m"), system=SystemSpec(name="s", engine="fake", node="cpu", args=args),
        workload=WorkloadSpec(type="synthetic", options=options), load=LoadSpec(search=SearchSpec(slo=slo), **load),
        window=WindowSpec(warmup_requests=4, requests=8, per_load=per_load),
    )  # fmt: skip


def session(of: PointSpec) -> Session:
    placement = Placement(node_id="n", hostname="h", kind="cpu")
    return Session.open(model=of.model, system=of.system, placement=placement, node=NODE, peaks=())


def measured(of: PointSpec) -> RunData:
    return session(of).run(RunSpec(point=of), study="t", telemetry=Recorder([], hz=1.0))


def test_the_largest_concurrency_within_the_slo_is_found_and_measured() -> None:
    """All requests start and end together, so that TPOT = 10 ms + 1 ms x concurrency: 50.5 ms hold up to 40."""
    data = measured(point(SloSpec(tpot_s=0.0505)))
    search = data.manifest.search
    assert search is not None and search.found is not None
    assert 40 / 1.1 <= search.found <= 40
    assert search.load == LoadSpec(concurrency=int(search.found))
    for one in search.trials:
        assert one.tpot_s == pytest.approx(0.010 + 0.001 * one.load)
        assert one.met == (one.load <= 40)
        assert one.margin == pytest.approx(1 - one.tpot_s / 0.0505)
    assert len(search.trials) <= 8
    # measured there, with as many requests as the window asks for that load
    assert data.requests.num_rows == 4 * search.found
    assert max(data.passes["num_requests"].to_pylist()) == search.found
    assert data.manifest.flags.keys() & {"no_load_meets_the_slo"} == set()
    assert "load_held" in data.manifest.checks_passed


def test_what_was_found_is_shown_with_what_tokens_cost_there() -> None:
    of, none = point(SloSpec(tpot_s=0.0305)), point(SloSpec(tpot_s=0.0105))
    runs = [measured(of), measured(none)]
    plan = StudyPlan(name="t", store="s", points=(of, none), repeats=RepeatsSpec(), slo=SloSpec(tpot_s=0.0305))
    reduction = reduce_runs(runs, plan)
    rows = {(row.id, row.metric, row.qualifiers): row for row in reduction.metrics if row.level == "point"}

    def row(one: PointSpec, metric: str, qualifiers: str = "{}") -> Metric:
        return rows[one.point_id, metric, qualifiers]

    search = runs[0].manifest.search
    assert search is not None and search.found is not None
    assert row(of, "max_concurrency_under_slo").value == search.found
    assert row(of, "max_rate_per_s_under_slo").missing_reason == "the study searches for no such load"
    assert row(none, "max_concurrency_under_slo").missing_reason == "no load that was tried meets the SLO"
    costs = [key for key in rows if key[:2] == (of.point_id, "usd_per_million_output_tokens_under_slo")]
    assert len(costs) == 4  # node and footprint, purchase and rental
    for _, _, qualifiers in costs:
        there = row(of, "usd_per_million_output_tokens", qualifiers)
        assert row(of, "usd_per_million_output_tokens_under_slo", qualifiers).value == there.value
    (shown,) = reduction.cap["sets"][0]["entries"]
    assert (shown["load"], shown["found_load"]) == ("concurrency=auto", search.load.label)
    assert entry_labels([shown], slo=True) == [f"s, {search.load.label}"]


def test_repeats_take_the_load_that_the_first_one_found() -> None:
    of = point(SloSpec(tpot_s=0.0305))
    warm = session(of)
    runs = [warm.run(RunSpec(point=of, repeat=r), study="t", telemetry=Recorder([], hz=1.0)) for r in (0, 1)]
    assert runs[0].manifest.search == runs[1].manifest.search
    assert runs[0].manifest.run_id != runs[1].manifest.run_id


def test_when_no_load_meets_the_slo_the_smallest_is_measured_and_flagged() -> None:
    data = measured(point(SloSpec(tpot_s=0.0105)))
    search = data.manifest.search
    assert search is not None and search.found is None
    assert search.load == LoadSpec(concurrency=1)
    told = data.manifest.flags["no_load_meets_the_slo"]
    assert told == "concurrency=1 is the smallest that was tried: 0.0% of the requests are within the limits"
    assert data.requests.num_rows == 8


def test_the_largest_rate_that_is_served_is_found_even_if_those_served_are_served_fast() -> None:
    """A request takes 9 passes. With n of them in flight, passes of 10 + n ms make n tokens: at best 1000 tokens/s, or
    111 requests/s; the limit of TPOT (0.5 s) is met far beyond."""
    of = point(SloSpec(tpot_s=0.5), per_load=10.0, arrival="poisson")
    data = measured(of)
    search = data.manifest.search
    assert search is not None and search.found is not None
    assert 20 < search.found < 1.25 * 111
    assert search.load == LoadSpec(arrival="poisson", rate_per_s=search.found)
    assert any("faster than they are served" in one.reason or "window" in one.reason for one in search.trials)


def record(e2e_s: float, sent_ns: int = 2) -> RequestRecord:
    """Its first token comes 1 ns after it was sent."""
    return RequestRecord(
        request_id="r", attempt=0, item_index=0, replica=0, scheduled_ns=None, sent_ns=sent_ns,
        first_token_ns=sent_ns + 1, end_ns=sent_ns + round(e2e_s * SECOND), chunk_ns=(), chunk_tokens=(),
        input_tokens=1, cached_tokens=0, output_tokens=11, status="ok",
    )  # fmt: skip


class Served:
    """A request takes 0.1 s x concurrency. The first ones are sent at 0, all others at 2 ns, inside the window."""

    def __init__(self) -> None:
        self.asked: list[tuple[float | None, int]] = []

    def __call__(self, load: LoadSpec, count: int, number: int) -> list[RequestRecord]:
        self.asked.append((load.concurrency, count))
        concurrency = load.concurrency or 0
        return [record(0.1 * concurrency, sent_ns=0 if i < concurrency else 2) for i in range(count)]


def finder(serve: Served, most_at_once: int | None = None) -> LoadFinder:
    load = LoadSpec(search=SearchSpec(slo=SloSpec(e2e_s=0.85)))  # up to 8 at once
    return LoadFinder(load, filling=0, most_at_once=most_at_once, serve=serve)


def test_a_longer_measurement_that_fails_has_a_smaller_load_measured() -> None:
    serve = Served()
    of = finder(serve)
    assert of.find().found == 8
    window = Window(start_ns=0, end_ns=9, phase=Phase.STEADY)
    assert of.settle([record(0.9)], window) is None
    again = of.find()
    assert again.found is not None and 4 <= again.found < 8
    settled = of.settle([record(0.8)], window)
    assert settled == again
    assert [one.met for one in settled.trials if one.load == 8] == [True, False]
    assert of.settle([record(0.9)], window) == settled  # a repeat


def test_a_trial_has_as_many_requests_as_the_search_says_and_no_more_at_once_than_the_engine() -> None:
    serve = Served()
    assert finder(serve, most_at_once=6).find().found == 6
    assert serve.asked == [(1, 16), (4, 16), (6, 24)]  # 4 per request in flight, at least 16

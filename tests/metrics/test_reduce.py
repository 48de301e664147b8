"""From runs to rows: accuracy, combination over repeats, intervals, marks."""

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
from hand_made import PEAKS, a_run, accuracy_point, one_pass, performance_point, request, routed, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.metrics.reduce import headline, reduce_runs
from moecap.records import Metric, Phase, PointSpec, RepeatsSpec, StudyPlan
from moecap.store import RunData


def plan(*points: PointSpec, **changes: Any) -> StudyPlan:
    return StudyPlan(name="s", store="store", points=points, repeats=RepeatsSpec(), **changes)


def rows(metrics: tuple[Metric, ...], name: str, level: str = "point", **key: Any) -> list[Metric]:
    wanted = {"metric": name, "level": level, **key}
    return [row for row in metrics if all(getattr(row, field) == value for field, value in wanted.items())]


def a_repeat(repeat: int, tokens: int, *, seconds: float = 10.0, decode_s: float = 1.0) -> RunData:
    """One request of `tokens` tokens, one per 0.1 s; one decode pass."""
    times = tuple(1.0 + 0.1 * i for i in range(tokens))
    return a_run(
        repeat=repeat, window_s=(0.0, seconds), requests=(request(0, 0.5, times),),
        passes=(one_pass(0, Phase.DECODE, 0, decode_s, (1,), (5,)),), routing=(routed(0, (1, 1, 0, 0)),),
    )  # fmt: skip


def test_a_point_is_the_ratio_of_sums_with_an_interval_over_runs() -> None:
    """20 tokens in 10 s and 40 in 30 s: 60 / 40, not the mean of 2 and 4/3; t(1) = 12.706."""
    point = performance_point()
    found = reduce_runs([a_repeat(0, 20), a_repeat(1, 40, seconds=30.0)], plan(point)).metrics
    (speed,) = rows(found, "output_tokens_per_s")
    assert speed.value == pytest.approx(1.5) and speed.id == point.point_id
    half = 12.7062 * abs(2 - 4 / 3) / sqrt(2) / sqrt(2)
    assert (speed.ci95_low, speed.ci95_high) == pytest.approx((5 / 3 - half, 5 / 3 + half), rel=1e-4)
    per_run = rows(found, "output_tokens_per_s", level="run")
    assert sorted(row.value or 0 for row in per_run) == pytest.approx([4 / 3, 2.0])
    assert all(row.ci95_low is None for row in per_run)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 50.0), min_size=2, max_size=5), st.integers(1, 4))
def test_how_passes_are_spread_over_runs_does_not_change_a_point(durations: list[float], cut: int) -> None:
    """s_mbu of all passes in one run equals that of the same passes in two runs."""

    def run(repeat: int, seconds: list[float]) -> RunData:
        passes = tuple(one_pass(i, Phase.DECODE, 0, one, (1,), (5 + i,)) for i, one in enumerate(seconds))
        routing = tuple(routed(i, (1, 1, 0, 0)) for i in range(len(seconds)))
        return a_run(repeat=repeat, window_s=(0.0, 100.0), passes=passes, routing=routing)

    cut = min(cut, len(durations) - 1)
    # contexts differ by position, so keep them the same in both ways of cutting
    whole = run(0, durations)
    parts = [run(0, durations[:cut]), run(1, durations[cut:])]
    shifted = run(1, durations)
    parts[1] = replace(shifted, passes=shifted.passes.slice(cut), routing=shifted.routing.slice(cut))
    one, two = (
        rows(reduce_runs(runs, plan(performance_point())).metrics, "s_mbu", phase=None)[0].value
        for runs in ([whole], parts)
    )
    assert one == pytest.approx(two)


def test_percentiles_are_pooled_over_requests_and_bootstrapped_for_one_run() -> None:
    """TTFTs 1, 2 and 3, 6 s: median 2.5, mean 3, p90 by linear interpolation 3 + 0.7 x 3 = 5.1."""

    def run(repeat: int, ttfts: tuple[float, ...]) -> RunData:
        return a_run(repeat=repeat, requests=tuple(request(i, 0.5, (0.5 + t, 9.0)) for i, t in enumerate(ttfts)))

    two = reduce_runs([run(0, (1.0, 2.0)), run(1, (3.0, 6.0))], plan(performance_point())).metrics
    stats = {row.stat: row for row in rows(two, "ttft_s")}
    assert {name: row.value for name, row in stats.items()} == pytest.approx(
        {"mean": 3.0, "p50": 2.5, "p90": 5.1, "p99": 5.91}
    )
    assert stats["p50"].n == 4 and stats["p50"].ci95_low == pytest.approx(3.0 - 12.7062 * 1.5, rel=1e-3)
    one = reduce_runs([run(0, (1.0, 2.0, 3.0, 6.0))], plan(performance_point())).metrics
    median = next(row for row in rows(one, "ttft_s") if row.stat == "p50")
    assert median.ci95_low is not None and median.ci95_high is not None
    assert 1.0 <= median.ci95_low < 2.5 < median.ci95_high <= 6.0


def test_a_missing_quantity_is_null_with_its_reason() -> None:
    (tier,) = rows(reduce_runs([a_repeat(0, 20)], plan(performance_point())).metrics, "s_mbu_tier")
    assert (tier.value, tier.missing_reason) == (None, "the run recorded no tiers")


def graded(*scores: tuple[str, int, float, str]) -> RunData:
    return a_run(point=accuracy_point(), samples=tuple(sample(*one) for one in scores))


def test_accuracy_counts_failures_wrong_and_averages_tasks() -> None:
    """add 2 of 4, one failed; sort 1 of 2: overall 0.5; standard errors sqrt(1/3)/2 and 1/2 of n - 1 deviations."""
    run = graded(
        ("add", 0, 1.0, "ok"), ("add", 1, 0.0, "ok"), ("add", 2, 0.0, "failed"), ("add", 3, 1.0, "truncated"),
        ("sort", 0, 1.0, "ok"), ("sort", 1, 0.0, "ok"),
    )  # fmt: skip
    found = reduce_runs([run], plan(accuracy_point())).metrics
    by_task = {row.qualifiers: row for row in rows(found, "accuracy")}
    assert {key: row.value for key, row in by_task.items()} == {
        '{"task": "add"}': 0.5,
        '{"task": "sort"}': 0.5,
        "{}": 0.5,
    }
    errors = {row.qualifiers: row.value for row in rows(found, "accuracy_stderr")}
    add, sort = sqrt(1 / 3) / 2, 0.5
    assert errors == pytest.approx({'{"task": "add"}': add, '{"task": "sort"}': sort, "{}": sqrt(add**2 + sort**2) / 2})
    overall = by_task["{}"]
    assert overall.ci95_high == pytest.approx(0.5 + 1.959964 * errors["{}"])
    assert overall.n == 6
    assert rows(found, "truncated_share")[0].value == pytest.approx(1 / 6)


def test_a_task_without_items_leaves_the_overall_accuracy_missing_and_the_other_tasks_alone() -> None:
    """sort and edit have no items; add, after them, 3 of 4: standard error sqrt(3/16 x 4/3) / 2 = 0.25."""
    point = accuracy_point(tasks=("sort", "add", "edit"))
    run = a_run(point=point, samples=tuple(sample("add", i, score) for i, score in enumerate((1.0, 1.0, 0.0, 1.0))))
    found = reduce_runs([run], plan(point)).metrics
    told = {row.qualifiers: (row.value, row.missing_reason) for row in rows(found, "accuracy")}
    assert told == {
        '{"task": "sort"}': (None, "no item of sort was scored"),
        '{"task": "add"}': (0.75, None),
        '{"task": "edit"}': (None, "no item of edit was scored"),
        "{}": (None, "no item of sort was scored; no item of edit was scored"),
    }
    errors = {row.qualifiers: row.value for row in rows(found, "accuracy_stderr")}
    assert errors == {
        '{"task": "sort"}': None, '{"task": "add"}': pytest.approx(0.25), '{"task": "edit"}': None, "{}": None,
    }  # fmt: skip


def marks(*runs: RunData, **changes: Any) -> list[str]:
    found: list[str] = reduce_runs(runs, plan(performance_point(), **changes)).cap["sets"][0]["entries"][0]["marks"]
    return [mark for mark in found if "one value" not in mark and not mark.startswith("no ")]


def test_marks_tell_overhead_utilisation_and_concurrency() -> None:
    """A pass of 1 s that moves kilobytes at 1e6 B/s; one request in flight for less than half of the time, of two."""
    assert set(marks(a_repeat(0, 20))) == {"concurrency not held", "overhead-bound"}
    fast = marks(a_repeat(0, 20, decode_s=1e-4))
    assert "overhead-bound" not in fast
    assert any(mark.startswith("s_mbu above 1") for mark in fast)
    flagged = replace(a_repeat(0, 20).manifest, flags={"dummy_weights": "random"}, checks_failed={"x": "seen"})
    told = marks(replace(a_repeat(0, 20), manifest=flagged))
    assert {"dummy weights", "check failed: x"} <= set(told)


def test_a_dropped_point_keeps_its_rows_and_leaves_cap() -> None:
    point = performance_point()
    found = reduce_runs([a_repeat(0, 20)], plan(point, dropped_points=(point.point_id,)))
    assert found.cap["sets"] == [] and rows(found.metrics, "output_tokens_per_s")


def test_peaks_of_every_source_are_reported_and_cap_reads_the_asked_one() -> None:
    rated = replace(PEAKS, source="catalogue", memory_bytes_per_s=1.0)
    run = a_repeat(0, 20)
    both = replace(run, manifest=replace(run.manifest, peaks=(PEAKS, rated)))
    found = rows(reduce_runs([both], plan(performance_point())).metrics, "s_mbu", phase=None)
    assert {row.peak_source for row in found} == {"calibrated", "catalogue"}
    assert any("above 1" in mark for mark in marks(both, peaks="catalogue"))


def test_headline() -> None:
    assert headline(a_repeat(0, 20)) == pytest.approx({"output_tokens_per_s": 2.0, "ttft_s": 0.5, "tpot_s": 0.1})
    assert headline(graded(("add", 0, 1.0, "ok"), ("sort", 0, 0.0, "ok"))) == {"accuracy": 0.5}

"""What a study says of arrivals becomes loads and windows, or is named as a mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from moecap.errors import StudyError
from moecap.records import LoadSpec, SearchSpec, SloSpec, WindowSpec
from moecap.study import parse_study

BASE: dict[str, Any] = {
    "name": "loads", "models": ["reference"], "systems": [{"name": "a", "engine": "fake", "node": "cpu"}],
    "workloads": [{"type": "synthetic", "input_tokens": 16, "output_tokens": 8}],
}  # fmt: skip
SLO = {"tpot_s": 0.05, "share": 0.9}


def expanded(**study: Any) -> list[tuple[LoadSpec | None, WindowSpec | None]]:
    return [(point.load, point.window) for point in parse_study({**BASE, **study}).points]


def test_rates_become_open_loops_of_a_fixed_duration() -> None:
    """A minute of arrivals by default, after 8 that fill the system."""
    assert expanded(arrival="poisson", sweep={"rate_per_s": [0.05, 2]}) == [
        (LoadSpec(arrival="poisson", rate_per_s=0.05), WindowSpec(warmup_requests=8, requests=8)),  # not 3
        (LoadSpec(arrival="poisson", rate_per_s=2.0), WindowSpec(warmup_requests=8, requests=120)),
    ]
    burst = {"arrival": "burst", "burstiness": 0.5, "max_concurrency": 64, "sweep": {"rate_per_s": [2.5]}}
    load = LoadSpec(arrival="burst", rate_per_s=2.5, burstiness=0.5, max_concurrency=64)
    assert expanded(**burst, duration_s=10.2, warmup=4) == [(load, WindowSpec(warmup_requests=4, requests=26))]
    assert expanded(**burst, requests=30) == [(load, WindowSpec(warmup_requests=8, requests=30))]


def test_a_closed_loop_can_start_all_at_once() -> None:
    closed = expanded(sweep={"concurrency": [8]}, staggered=False)
    assert [load for load, _ in closed] == [LoadSpec(concurrency=8, staggered=False)]
    assert [load for load, _ in expanded(sweep={"concurrency": [8]})] == [LoadSpec(concurrency=8)]


def test_auto_is_a_search_that_carries_the_slo() -> None:
    slo = SloSpec(tpot_s=0.05, share=0.9)
    closed = expanded(sweep={"concurrency": [1, "auto"], "search": {"largest": 256}}, slo=SLO)
    assert closed[1] == (
        LoadSpec(search=SearchSpec(slo=slo, largest=256)),
        WindowSpec(warmup_requests=0, requests=8, per_load=4),
    )
    assert closed[0][0] == LoadSpec(concurrency=1)
    assert expanded(sweep={"concurrency": "auto"}, slo=SLO, requests=5)[0][1] == WindowSpec(
        warmup_requests=0, requests=5, per_load=3
    )
    ((load, window),) = expanded(arrival="poisson", sweep={"rate_per_s": "auto"}, slo=SLO, duration_s=30)
    assert load == LoadSpec(arrival="poisson", search=SearchSpec(slo=slo))
    assert window == WindowSpec(warmup_requests=8, requests=8, per_load=30)


def trace(folder: Path, count: int = 20) -> dict[str, Any]:
    """One request every 2 s."""
    rows = ({"arrival_s": 2 * i, "input_tokens": 4, "output_tokens": 4} for i in range(count))
    path = folder / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"arrival": "trace", "workloads": [{"type": "trace", "path": str(path)}]}


def test_a_trace_is_replayed_whole_or_as_much_as_is_asked(tmp_path: Path) -> None:
    of = trace(tmp_path)
    assert expanded(**of) == [(LoadSpec(arrival="trace"), WindowSpec(warmup_requests=5, requests=15))]
    assert expanded(**of, warmup=2)[0][1] == WindowSpec(warmup_requests=2, requests=18)
    assert expanded(**of, requests=3)[0][1] == WindowSpec(warmup_requests=5, requests=3)
    # after the fifth: at 10, 12, 14 and 16 s
    assert expanded(**of, duration_s=7)[0][1] == WindowSpec(warmup_requests=5, requests=4)
    faster = [{**of["workloads"][0], "speedup": 2.0}]
    assert expanded(arrival="trace", workloads=faster, duration_s=7)[0][1] == WindowSpec(warmup_requests=5, requests=8)


def test_another_file_is_another_point(tmp_path: Path) -> None:
    before = parse_study({**BASE, **trace(tmp_path)}).points[0].point_id
    assert parse_study({**BASE, **trace(tmp_path)}).points[0].point_id == before
    assert parse_study({**BASE, **trace(tmp_path, 21), "requests": 15}).points[0].point_id != before


@pytest.mark.parametrize(
    ("study", "key", "told"),
    [
        ({"arrival": "poisson"}, "sweep", "rate_per_s: [2.0]"),
        ({"arrival": "poisson", "sweep": {"concurrency": [1]}}, "sweep", "write rate_per_s instead"),
        ({"sweep": {"rate_per_s": [1]}}, "sweep", "write concurrency instead"),
        ({"arrival": "poisson", "sweep": {"rate_per_s": [0]}}, "sweep.rate_per_s.0", "above 0"),
        ({"arrival": "poisson", "sweep": {"rate_per_s": [float("inf")]}}, "sweep.rate_per_s.0", "finite"),
        ({"sweep": {"concurrency": ["many"]}}, "sweep.concurrency.0", "auto"),
        ({"sweep": {"concurrency": ["auto"]}}, "slo", "write slo"),
        ({"sweep": {"concurrency": "auto"}, "slo": {"share": 0.9}}, "slo", "write slo"),
        ({"sweep": {"search": {"start": 8, "largest": 4}}}, "sweep.search.largest", "at least that"),
        ({"sweep": {"search": {"step": 8}}}, "sweep.search.step", "known keys here"),
        ({"arrival": "burst", "sweep": {"rate_per_s": [1]}}, "burstiness", "below 1 for bursts"),
        ({"arrival": "poisson", "burstiness": 1, "sweep": {"rate_per_s": [1]}}, "burstiness", "arrival: burst"),
        ({"max_concurrency": 4}, "max_concurrency", "sweep.concurrency"),
        ({"arrival": "poisson", "sweep": {"rate_per_s": [1]}, "staggered": False}, "staggered", "leave it out"),
        ({"duration_s": 4}, "duration_s", "write requests"),
        ({"arrival": "poisson", "sweep": {"rate_per_s": [1]}, "requests": 9, "duration_s": 4}, "duration_s", "one of"),
        ({"arrival": "trace"}, "workloads.0.type", "workload of type trace"),
        ({"workloads": [{"type": "synthetic", "input_tokens": {"uniform": [1]}}]},
         "workloads.0.input_tokens.uniform.1", "write 1"),
        ({"workloads": [{"type": "synthetic", "input_tokens": {"gauss": 1}}]},
         "workloads.0.input_tokens.gauss", "lognormal, uniform"),
    ],
)  # fmt: skip
def test_one_mistake(study: dict[str, Any], key: str, told: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study({**BASE, **study})
    (problem,) = caught.value.problems
    assert problem.key == key
    assert told in problem.remedy


def test_a_trace_that_is_too_short_or_absent_is_a_mistake(tmp_path: Path) -> None:
    of = trace(tmp_path)
    for study, key in (({"requests": 16}, "requests"), ({"warmup": 18}, "requests"), ({"duration_s": 1}, "requests")):
        with pytest.raises(StudyError) as caught:
            parse_study({**BASE, **of, **study})
        assert [problem.key for problem in caught.value.problems] == [key]
    absent = {"arrival": "trace", "workloads": [{"type": "trace", "path": str(tmp_path / "no.jsonl")}]}
    with pytest.raises(StudyError, match=r"no\.jsonl can't be read"):
        parse_study({**BASE, **absent})
    with pytest.raises(StudyError, match="trace says when"):
        parse_study({**BASE, **of, "sweep": {"concurrency": [1]}})

"""Loads that can be, loads that can't, and what they do to a point's identity."""

from typing import Any

import pytest

from moecap.records import (
    LoadSpec,
    ModelSpec,
    PointSpec,
    SearchSpec,
    SloSpec,
    SystemSpec,
    WindowSpec,
    WorkloadSpec,
    content_hash,
    to_jsonable,
)

SEARCH = SearchSpec(slo=SloSpec(tpot_s=0.05))


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"concurrency": 8}, "concurrency=8"),
        ({"search": SEARCH}, "concurrency=auto"),
        ({"arrival": "poisson", "rate_per_s": 2.0}, "rate=2.0/s"),
        ({"arrival": "poisson", "search": SEARCH}, "rate=auto"),
        ({"arrival": "burst", "rate_per_s": 2.0, "burstiness": 0.5}, "rate=2.0/s,burstiness=0.5"),
        ({"arrival": "trace", "max_concurrency": 4}, "trace,max_concurrency=4"),
    ],
)
def test_loads_have_short_labels(fields: dict[str, Any], label: str) -> None:
    assert LoadSpec(**fields).label == label


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "one of concurrency and search"),
        ({"concurrency": 0}, "concurrency must be above 0; got 0"),
        ({"concurrency": 1, "rate_per_s": 1.0}, "'closed' has no rate_per_s; got 1.0"),
        ({"concurrency": 1, "max_concurrency": 1}, "no max_concurrency"),
        ({"concurrency": 1, "search": SEARCH}, "one of concurrency and search"),
        ({"arrival": "poisson"}, "one of rate_per_s and search"),
        ({"arrival": "poisson", "rate_per_s": -1.0}, "rate_per_s must be above 0; got -1.0"),
        ({"arrival": "poisson", "rate_per_s": 1.0, "burstiness": 1.0}, "no burstiness"),
        ({"arrival": "poisson", "rate_per_s": 1.0, "concurrency": 1}, "no concurrency"),
        ({"arrival": "burst", "rate_per_s": 1.0}, "has a burstiness"),
        ({"arrival": "trace", "rate_per_s": 1.0}, "no rate_per_s"),
        ({"arrival": "open", "rate_per_s": 1.0}, "closed, poisson, burst, trace; got 'open'"),
    ],
)
def test_loads_that_can_not_be(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LoadSpec(**fields)


@pytest.mark.parametrize("fields", [{"slo": SloSpec()}, {"start": 0.0}, {"largest": 0.5}, {"resolution": 0.0}])
def test_searches_that_can_not_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a search needs"):
        SearchSpec(**{"slo": SloSpec(ttft_s=1.0), **fields})


def point(**load: Any) -> PointSpec:
    return PointSpec(
        model=ModelSpec(name="m"), system=SystemSpec(name="s", engine="fake", node="cpu"),
        workload=WorkloadSpec(type="synthetic"), load=LoadSpec(**load),
        window=WindowSpec(warmup_requests=0, requests=8),
    )  # fmt: skip


def test_fields_that_are_not_set_leave_identities_as_they_were() -> None:
    """By hand: the point as stores before these fields hold it."""
    before = to_jsonable(point(concurrency=8))
    before["load"] = {"arrival": "closed", "concurrency": 8, "rate_per_s": None, "staggered": True}
    before["window"] = {"warmup_requests": 0, "requests": 8}
    assert point(concurrency=8).point_id == content_hash(before)


def test_what_decides_a_load_decides_its_identity() -> None:
    loads: list[dict[str, Any]] = [
        {"concurrency": 8}, {"search": SEARCH}, {"search": SearchSpec(slo=SloSpec(tpot_s=0.06))},
        {"arrival": "poisson", "rate_per_s": 1.0}, {"arrival": "poisson", "rate_per_s": 1.0, "max_concurrency": 4},
        {"arrival": "burst", "rate_per_s": 1.0, "burstiness": 1.0}, {"arrival": "trace"},
    ]  # fmt: skip
    assert len({point(**load).point_id for load in loads}) == len(loads)
    assert WorkloadSpec(type="w", options={"n": {"uniform": [1, 2]}, "content": "0" * 16}).label == "w(n=uniform(1+2))"

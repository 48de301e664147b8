"""CAP sets worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest
from hand_made import accuracy_point, performance_point

from moecap.errors import ConfigError
from moecap.metrics.cap import MeasuredPoint, cap_of
from moecap.metrics.reduce import AXES
from moecap.metrics.shown import Asked
from moecap.records import CapSpec, Metric, SloSpec

assert AXES
ASKED = Asked(peak_source="calibrated")
COST, ACCURACY, SPEED = "usd_per_million_output_tokens", "accuracy", "output_tokens_per_s"


def row(metric: str, value: float | None, half: float | None = None, **changes: Any) -> Metric:
    interval = (None, None) if value is None or half is None else (value - half, value + half)
    plain: dict[str, Any] = {
        "level": "point", "id": "p", "phase": None, "scope": None, "stat": "value", "peak_source": None,
        "qualifiers": "{}", "unit": "", "missing_reason": None if value is not None else "not known", "n": 3,
        "ci95_low": interval[0], "ci95_high": interval[1],
    }  # fmt: skip
    return Metric(metric=metric, value=value, **{**plain, **changes})


def system(
    name: str, cost: float | None, accuracy: float | None, speed: float | None, *,
    halves: tuple[float | None, ...] = (), concurrency: int = 2, slo_share: float | None = None,
) -> list[MeasuredPoint]:  # fmt: skip
    h = halves or (None, None, None)
    rows = [row(COST, cost, h[0]), row(SPEED, speed, h[2]), row(SPEED, 1e9, phase="decode")]
    if slo_share is not None:
        rows.append(row("slo_share", slo_share))
    points = [MeasuredPoint(point=performance_point(name, concurrency), device="cpu", rows=rows)]
    if accuracy is not None:
        graded = [row(ACCURACY, 0.0, qualifiers='{"task": "add"}'), row(ACCURACY, accuracy, h[1])]
        points.append(MeasuredPoint(point=accuracy_point(name), device="cpu", rows=graded))
    return points


def entries(*systems: list[MeasuredPoint], spec: CapSpec | None = None) -> dict[str, dict[str, Any]]:
    cap = cap_of([one for points in systems for one in points], spec or CapSpec(), None, ASKED)
    assert len(cap["sets"]) == 1
    return {one["system"]: one for one in cap["sets"][0]["entries"]}


def test_three_systems_by_hand() -> None:
    """Cost 1, 2, 3 (lower is better), accuracy .9, .8, .9, speed 50, 100, 75."""
    found = entries(system("a", 1.0, 0.9, 50.0), system("b", 2.0, 0.8, 100.0), system("c", 3.0, 0.9, 75.0))
    assert found["a"]["normalised"] == pytest.approx({"cost": 1.0, "accuracy": 1.0, "performance": 0.0})
    assert found["b"]["normalised"] == pytest.approx({"cost": 0.5, "accuracy": 0.0, "performance": 1.0})
    assert found["c"]["normalised"] == pytest.approx({"cost": 0.0, "accuracy": 1.0, "performance": 0.5})
    assert {name: one["cap_area"] for name, one in found.items()} == pytest.approx({"a": 1 / 3, "b": 1 / 6, "c": 1 / 6})
    assert {name: one["class"] for name, one in found.items()} == {"a": "CA", "b": "PC", "c": "PA"}
    assert {name: one["pareto"] for name, one in found.items()} == {"a": True, "b": True, "c": True}
    assert found["a"]["raw"] == {"cost": 1.0, "accuracy": 0.9, "performance": 50.0}
    assert found["a"]["marks"] == []


def test_a_dominated_system_is_off_the_front_and_a_tie_is_on_it() -> None:
    found = entries(system("a", 1.0, 0.9, 50.0), system("b", 2.0, 0.9, 50.0), system("c", 1.0, 0.9, 50.0))
    assert {name: one["pareto"] for name, one in found.items()} == {"a": True, "b": False, "c": True}


def test_class_needs_the_weakest_interval_wholly_under_the_others() -> None:
    """c: accuracy .85 +- h is 0.5 +- 10 h on its axis, beside cost and speed of 0.75: apart for .02, not for .03."""
    ends = (system("a", 1.0, 0.9, 50.0), system("b", 5.0, 0.8, 90.0))
    apart = entries(*ends, system("c", 2.0, 0.85, 80.0, halves=(0.0, 0.02, 0.0)))
    overlapping = entries(*ends, system("c", 2.0, 0.85, 80.0, halves=(0.0, 0.03, 0.0)))
    assert apart["c"]["class"] == "PC" and overlapping["c"]["class"] == "balanced"
    assert apart["c"]["ci95"]["accuracy"] == pytest.approx([0.83, 0.87])
    assert apart["a"]["ci95"]["cost"] is None


def test_an_axis_without_an_interval_is_its_value() -> None:
    """The same c as above: cost of 0.75 has no interval, accuracy of 0.5 +- 0.3 or none."""
    ends = (system("a", 1.0, 0.9, 50.0), system("b", 5.0, 0.8, 90.0))
    unknown = entries(*ends, system("c", 2.0, 0.85, 80.0))
    known = entries(*ends, system("c", 2.0, 0.85, 80.0, halves=(None, 0.03, None)))
    assert unknown["c"]["ci95"] == {"cost": None, "accuracy": None, "performance": None}
    assert (unknown["c"]["class"], known["c"]["class"]) == ("PC", "balanced")


def test_a_single_system_is_best_and_marked() -> None:
    (only,) = entries(system("a", 1.0, 0.5, 10.0)).values()
    assert only["normalised"] == {"cost": 1.0, "accuracy": 1.0, "performance": 1.0}
    assert only["cap_area"] == 1.0 and only["class"] == "balanced"
    assert only["marks"] == ["cost: one value only", "accuracy: one value only", "performance: one value only"]


def test_equal_values_are_one_and_marked() -> None:
    found = entries(system("a", 1.0, 0.9, 50.0), system("b", 2.0, 0.9, 60.0))
    assert found["a"]["normalised"]["accuracy"] == found["b"]["normalised"]["accuracy"] == 1.0
    assert "accuracy: equal values" in found["a"]["marks"]


def test_a_missing_axis_is_null_and_so_are_area_and_class() -> None:
    found = entries(system("a", None, 0.9, 50.0), system("b", 2.0, None, 60.0), system("c", 3.0, 0.8, 70.0))
    for name, axis in (("a", "cost"), ("b", "accuracy")):
        one = found[name]
        assert one["raw"][axis] is one["normalised"][axis] is one["cap_area"] is one["class"] is None
        assert one["pareto"] is False
    assert "no cost: not known" in found["a"]["marks"]
    assert "no accuracy: no whole accuracy run" in found["b"]["marks"]
    assert found["c"]["pareto"] is True  # alone with all axes


def test_against_a_reference() -> None:
    """Reference cost 2, accuracy .8, speed 50: better is capped at 1, worse is the ratio."""
    spec = CapSpec(reference="r")
    found = entries(system("r", 2.0, 0.8, 50.0), system("a", 1.0, 0.4, 100.0), system("b", 8.0, 0.9, 10.0), spec=spec)
    assert found["r"]["normalised"] == {"cost": 1.0, "accuracy": 1.0, "performance": 1.0}
    assert found["a"]["normalised"] == pytest.approx({"cost": 1.0, "accuracy": 0.5, "performance": 1.0})
    assert found["b"]["normalised"] == pytest.approx({"cost": 0.25, "accuracy": 1.0, "performance": 0.2})
    unlike = [
        *system("r", 2.0, 0.8, 50.0), *system("a", 1.0, 0.4, 100.0),
        *(replace(one, device="gpu") for one in system("r", 4.0, 0.8, 50.0)),
        *(replace(one, device="gpu") for one in system("a", 8.0, 0.4, 100.0)),
    ]  # fmt: skip
    both = cap_of(unlike, spec, None, ASKED)["sets"][0]["entries"]
    assert [(one["device"], one["normalised"]["cost"]) for one in both if one["system"] == "a"] == [
        ("cpu", 1.0), ("gpu", 0.5)  # each against the reference on its own device
    ]  # fmt: skip
    lost = entries(system("r", None, 0.8, 50.0), system("a", 1.0, 0.4, 100.0), spec=spec)
    assert lost["a"]["normalised"]["cost"] is None
    assert "cost of the reference r is unknown" in lost["a"]["marks"]


def test_every_load_is_a_set_without_an_slo() -> None:
    points = [*system("a", 1.0, 0.9, 50.0), *system("a", 0.5, None, 90.0, concurrency=4)]
    cap = cap_of(points, CapSpec(), None, ASKED)
    assert [one["load"] for one in cap["sets"]] == ["concurrency=2", "concurrency=4"]
    assert cap["sets"][1]["entries"][0]["raw"]["accuracy"] == 0.9  # accuracy joins by system


def test_with_an_slo_each_system_enters_at_its_fastest_feasible_load() -> None:
    points = [
        *system("a", 1.0, 0.9, 50.0, slo_share=1.0),
        *system("a", 0.8, None, 90.0, concurrency=4, slo_share=0.99),
        *system("a", 0.5, None, 200.0, concurrency=8, slo_share=0.98),
        *system("b", 2.0, 0.8, 60.0, slo_share=0.5),
    ]
    cap = cap_of(points, CapSpec(), SloSpec(ttft_s=1.0), ASKED)
    (only,) = cap["sets"]
    assert only["load"] is None
    assert [(one["system"], one["load"], one["raw"]["cost"]) for one in only["entries"]] == [
        ("a", "concurrency=4", 0.8)
    ]
    assert [(one["system"], one["reason"]) for one in only["outside"]] == [
        ("b", "no measured load meets the SLO for 99% of its requests")
    ]


def test_an_axis_can_be_any_metric_and_its_direction_counts() -> None:
    spec = CapSpec(performance="tpot_s")
    points = [
        MeasuredPoint(
            point=performance_point(name), device="cpu",
            rows=[row(COST, 1.0), row("tpot_s", tpot, stat="mean"), row("tpot_s", 9.0, stat="p50")],
        )
        for name, tpot in (("a", 0.01), ("b", 0.03))
    ]  # fmt: skip
    found = {one["system"]: one for one in cap_of(points, spec, None, ASKED)["sets"][0]["entries"]}
    assert found["a"]["normalised"]["performance"] == 1.0 and found["b"]["normalised"]["performance"] == 0.0
    with pytest.raises(ConfigError, match=r"cap\.axes\.cost.*no_such"):
        cap_of(points, CapSpec(cost="no_such"), None, ASKED)

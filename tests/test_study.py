"""A study file becomes a plan, or every problem in it is named at once."""

from pathlib import Path
from typing import Any

import pytest

from moecap.errors import ConfigError, StudyError
from moecap.records import RunSpec
from moecap.study import freeze_devices, load_study, parse_study

GOOD: dict[str, Any] = {
    "name": "small",
    "models": ["reference"],
    "systems": [
        {"name": "a", "engine": "transformers", "node": "cpu", "dtype": "float32"},
        {"name": "b", "engine": "transformers", "node": "cpu-offload", "resident_share": 0.5},
    ],
    "workloads": [{"type": "synthetic", "input_tokens": 16, "output_tokens": 8}],
    "sweep": {"concurrency": [1, 8]},
    "accuracy": {"tasks": ["add"], "limit": 5},
}


def test_the_sweep_expands_to_points_of_one_engine_side_by_side() -> None:
    plan = parse_study(GOOD)
    assert [point.label for point in plan.points] == [
        "a concurrency=1", "a concurrency=8", "a accuracy", "b concurrency=1", "b concurrency=8", "b accuracy",
    ]  # fmt: skip
    windows = [point.window for point in plan.points if point.window]
    assert [(w.warmup_requests, w.requests) for w in windows] == [(1, 8), (8, 32)] * 2  # 4 a slot, at least 8
    assert plan.points[0].workload is not None
    assert plan.points[0].workload.label == "synthetic(input_tokens=16,output_tokens=8)"


def test_identity_depends_on_what_is_measured_and_nothing_else() -> None:
    ids = [point.point_id for point in parse_study(GOOD).points]
    assert len(set(ids)) == 6
    other = parse_study({**GOOD, "name": "renamed", "store": "/elsewhere", "slo": {"ttft_s": 1}, "prices": {}})
    assert [point.point_id for point in other.points] == ids
    assert [point.point_id for point in parse_study({**GOOD, "seed": 1}).points] != ids
    point = parse_study(GOOD).points[0]
    runs = {RunSpec(point=point, repeat=r).run_id(f) for r in (0, 1) for f in ("this host", "that host")}
    assert len(runs) == 4


def test_five_mistakes_are_reported_at_once_each_with_key_value_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        """
name: "no/slash"
models: [reference]
systems:
  - {name: a, engine: transfomers, node: cpu}
  - {name: b, engine: transformers, node: tpu}
workloads: [{type: synthetic, input_tokens: -4}]
sweep: {concurrency: [8]}
requests: 10
acuracy: {tasks: [add]}
"""
    )
    with pytest.raises(StudyError) as caught:
        load_study(path)
    found = {problem.key: problem for problem in caught.value.problems}
    assert set(found) == {
        "name", "systems.0.engine", "systems.1.node", "workloads.0.input_tokens", "requests", "acuracy",
    }  # fmt: skip
    assert found["systems.0.engine"].value == "transfomers"
    assert "transformers" in found["systems.0.engine"].remedy
    assert "'cpu-offload'" in found["systems.1.node"].remedy
    assert found["workloads.0.input_tokens"].value == -4
    assert "24" in found["requests"].remedy  # 3 x concurrency 8
    assert "accuracy" in found["acuracy"].remedy
    assert all(problem.remedy for problem in found.values())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key", "remedy"),
    [
        ({"models": []}, "models", "1"),
        ({"models": ["./no/such/model"]}, "models.0", ""),
        ({"systems": [GOOD["systems"][0]] * 2}, "systems", "own name"),
        ({"workloads": [{"type": "sonnets"}]}, "workloads.0.type", "synthetic"),
        ({"workloads": [GOOD["workloads"][0]] * 2}, "workloads", "once"),
        ({"models": ["reference"] * 2}, "models", "once"),
        ({"sweep": {"concurrency": [1, 2, 1]}}, "sweep.concurrency", "once"),
        ({"workloads": [{"type": "synthetic", "input_token": 4}]}, "workloads.0.input_token", "input_tokens"),
        ({"workloads": [{"type": "tasks", "tasks": ["chess"]}]}, "workloads.0.tasks", "add"),
        ({"sweep": {"concurrency": [0]}}, "sweep.concurrency.0", "1"),
        ({"sweep": {"concurency": [1]}}, "sweep.concurency", "concurrency"),
        ({"accuracy": {"tasks": ["chess"]}}, "accuracy.tasks", "add"),
        ({"repeats": {"min": 4, "max": 2}}, "repeats.max", "at least"),
        ({"workloads": [], "accuracy": None}, "accuracy", "write workloads"),
        ({"cap": {"reference": "c"}}, "cap.reference", "a, b"),
        ({"cap": {"axes": {"cost": "tpot"}}}, "cap.axes.cost", "tpot_s"),
        ({"deadline_s": float("inf")}, "deadline_s", "finite"),
        ({"cost": {"basis": "footprnt"}}, "cost.basis", "footprint"),
        ({"arrival": "open"}, "arrival", "'poisson'"),
        ({"peaks": "guessed"}, "peaks", "calibrated"),
        ({"prices": {"enrgy": {}}}, "prices.enrgy", "energy"),
        ({"prices": {"energy": {"pue": 0.5}}}, "prices.energy.pue", "1"),
        ({"prices": {"hosts": {"h": {"price": 5, "price_usd": 5, "label": "x"}}}}, "prices.hosts.h.price", "price_usd"),
    ],
)  # fmt: skip
def test_one_mistake(change: dict[str, Any], key: str, remedy: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study({**GOOD, **change}, metric_names=("tpot_s", "accuracy"))
    (problem,) = caught.value.problems
    assert problem.key == key
    assert remedy in problem.remedy


def test_missing_keys_are_all_named() -> None:
    with pytest.raises(StudyError) as caught:
        parse_study({"name": "x"})
    assert [p.key for p in caught.value.problems] == ["models", "systems", "accuracy"]


def test_nothing_to_measure_is_a_mistake() -> None:
    with pytest.raises(StudyError, match="nothing to measure"):
        parse_study({key: value for key, value in GOOD.items() if key not in ("workloads", "accuracy")})


def test_overrides_change_add_and_append() -> None:
    plan = load_study(None, ["sweep.concurrency=[2]", "systems.0.dtype=float32", "accuracy=null", "slo.ttft_s=0.5"])
    assert {point.load.concurrency for point in plan.points if point.load} == {2}
    assert plan.points[0].system.dtype == "float32"
    assert plan.slo is not None and plan.slo.ttft_s == 0.5
    more = load_study(None, ["systems+={name: extra, engine: transformers, node: cpu}"])
    assert more.points[-1].system.name == "extra"


@pytest.mark.parametrize("text", ["no equals sign", "systems.9.name=x", "name.x=1", "name+=1", "a=[1"])
def test_an_override_that_leads_nowhere_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(None, [text])
    assert caught.value.value == text


def test_the_packaged_study_has_three_systems_and_eighteen_performance_runs() -> None:
    plan = load_study(None)
    assert [p.system.name for p in plan.points if p.accuracy] == ["resident", "int8", "offloaded"]
    assert len([p for p in plan.points if p.workload]) * plan.repeats.max == 18


def test_each_device_model_present_becomes_a_point_of_its_own() -> None:
    plan = parse_study({**GOOD, "systems": [{"name": "a", "engine": "transformers", "node": "gpu", "device": "each"}]})
    frozen = freeze_devices(plan, ["nvidia-l4-24gb", "nvidia-a30-24gb", "nvidia-l4-24gb"])
    assert [p.system.device for p in frozen.points] == ["nvidia-a30-24gb", "nvidia-l4-24gb"] * 3
    assert freeze_devices(plan, []).points == plan.points


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_study(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds no mapping"):
        load_study(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_study(tmp_path / "broken.yaml")

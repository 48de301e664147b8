"""The packaged study, cut down, through `launch` on Ray with the real engine: three systems differ as they must."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.cli import main
from moecap.records import Metric, Phase
from moecap.store import RunData, Store

pytestmark = pytest.mark.slow
SYSTEMS = ("resident", "int8", "offloaded")
SHORTER = (
    "workloads=[{type: tasks, tasks: [add], output_tokens: 8}]",
    "sweep.concurrency=[1]",
    "requests=3",
    "repeats={min: 1, max: 1}",
    "accuracy={tasks: [add], limit: 10}",
)
EXPERT_BYTES = 3 * 256 * 128 * 4  # three float32 matrices of 256 x 128
TOP_K, LAYERS = 2, 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Store:
    """All six runs, measured."""
    root = str(tmp_path_factory.mktemp("laptop"))
    options = [option for change in SHORTER for option in ("--set", change)]
    result = CliRunner().invoke(main, ["launch", "--address", ray_address, "--store", root, "--json", *options])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["states"] == {"stored": 6}
    return Store(root, "laptop")


@pytest.fixture(scope="module")
def runs(store: Store) -> dict[tuple[str, str], RunData]:
    """(system, kind of point) -> its run."""
    loaded = [store.load_run(run_id) for run_id in store.whole_runs()]
    return {(run.manifest.spec.point.system.name, run.manifest.spec.point.kind): run for run in loaded}


@pytest.fixture(scope="module")
def values(store: Store, runs: dict[tuple[str, str], RunData]) -> Callable[..., dict[str, float | None]]:
    """System -> value of a metric of its point."""
    metrics = store.read_metrics()

    def of(name: str, kind: str = "performance", **key: Any) -> dict[str, float | None]:
        found = {}
        for system in SYSTEMS:
            point_id = runs[system, kind].manifest.point_id
            (found[system],) = (row.value for row in metrics if is_row(row, point_id, name, key))
        return found

    return of


def is_row(row: Metric, point_id: str, name: str, key: dict[str, Any]) -> bool:
    wanted = {"level": "point", "id": point_id, "metric": name, "stat": "value", "qualifiers": "{}", **key}
    return all(getattr(row, field) == value for field, value in wanted.items())


def fastest_decode_ns(run: RunData) -> int:
    """What the machine's other work delays least."""
    return min(one["duration_ns"] for one in run.passes.to_pylist() if one["phase"] == Phase.DECODE)


def test_every_system_is_measured_and_nothing_is_flagged(runs: dict[tuple[str, str], RunData]) -> None:
    assert set(runs) == {(system, kind) for system in SYSTEMS for kind in ("performance", "accuracy")}
    for run in runs.values():
        assert run.manifest.checks_failed == {}
        assert run.manifest.completed == run.manifest.attempted == (10 if run.samples.num_rows else 3)


def test_memory_is_that_of_what_each_system_holds(values: Callable[..., dict[str, float | None]]) -> None:
    resident, held = values("resident_weight_bytes"), values("weight_bytes")
    assert resident["offloaded"] < resident["int8"] < resident["resident"] == held["resident"]  # type: ignore[operator]
    assert held["offloaded"] == held["resident"]
    assert held["int8"] < 0.3 * held["resident"]  # type: ignore[operator]


def test_only_the_offloaded_system_reads_the_disk_and_waits_for_it(
    runs: dict[tuple[str, str], RunData], values: Callable[..., dict[str, float | None]]
) -> None:
    offloaded = runs["offloaded", "performance"]
    decode = {one["pass_id"] for one in offloaded.passes.to_pylist() if one["phase"] == Phase.DECODE}
    tiers = [one for one in offloaded.tiers.to_pylist() if one["pass_id"] in decode]
    assert len(tiers) == len(decode) == 3 * 7  # 8 tokens a request, the first of them by its prefill
    assert {one["bytes_read"] for one in tiers} == {TOP_K * LAYERS * EXPERT_BYTES}
    assert all(one["stall_ns"] > 0 for one in tiers)
    assert runs["resident", "performance"].tiers.num_rows == runs["int8", "performance"].tiers.num_rows == 0
    assert fastest_decode_ns(offloaded) > fastest_decode_ns(runs["resident", "performance"])


def test_utilisation_and_cost_are_known_and_possible(values: Callable[..., dict[str, float | None]]) -> None:
    for scope in ("paper", "physical"):
        name = "s_mbu" if scope == "paper" else "s_mbu_physical"
        assert all(value and 0 < value < 1 for value in values(name, phase=None, scope=scope).values())


def test_all_solve_the_solved_task_and_offloading_changes_no_answer(
    runs: dict[tuple[str, str], RunData], values: Callable[..., dict[str, float | None]]
) -> None:
    assert all(value is not None and value > 0.8 for value in values("accuracy", "accuracy").values())
    answers = {system: runs[system, "accuracy"].samples["raw_output"].to_pylist() for system in SYSTEMS}
    assert answers["offloaded"] == answers["resident"]


def test_the_report_is_written(store: Store) -> None:
    report = Path(store.base) / "report"
    for name in ("cap_radar.png", "expert_activation.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    page = (report / "summary.md").read_text(encoding="utf-8")
    assert all(system in page for system in SYSTEMS)
    (cap,) = json.loads((Path(store.base) / "cap.json").read_text(encoding="utf-8"))["sets"]
    assert {entry["system"] for entry in cap["entries"]} == set(SYSTEMS)
    assert all(None not in entry["raw"].values() for entry in cap["entries"])

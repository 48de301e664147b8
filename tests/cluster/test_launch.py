"""The whole loop on a real Ray with the fake engine: what is stored, what is run again, what is refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from click.testing import CliRunner, Result

from cluster.cli import main
from cluster.inventory import connected
from cluster.node import NodeAgent
from moecap.store import Store

STUDY: dict[str, Any] = {
    "name": "t",
    "models": ["reference"],
    "systems": [{"name": "one", "engine": "fake", "node": "cpu"}],
    "workloads": [{"type": "synthetic", "input_tokens": 8, "output_tokens": 4}],
    "sweep": {"concurrency": [1, 4]},
    "repeats": {"min": 2, "max": 2},
    "peaks": "catalogue",
}
REPEATS_3 = {"min": 3, "max": 3}


class Bench:
    """One study in one store, launched on the tests' Ray."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address, self.base = folder, address, folder / "store" / "t"

    def launch(self, *options: str, **changes: Any) -> Result:
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(STUDY | changes))
        store = ["--store", str(self.folder / "store")]
        return CliRunner().invoke(main, ["launch", str(path), "--address", self.address, *store, *options])

    def manifests(self) -> dict[str, int]:
        """run_id -> when its manifest was written."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.base.glob("runs/*/manifest.json")}

    def ledger(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for path in sorted(self.base.glob("ledger/*")) for line in path.read_text().splitlines()
        ]

    def failures(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.base.glob("failed/*/error.json"))]

    def logs(self) -> list[str]:
        """What engines of failed attempts printed."""
        return [path.read_text() for path in sorted(self.base.glob("failed/*/engine.log"))]


@pytest.fixture
def bench(tmp_path: Path, ray_address: str) -> Bench:
    return Bench(tmp_path, ray_address)


def system(name: str = "one", node: str = "cpu", **args: Any) -> dict[str, Any]:
    return {"name": name, "engine": "fake", "node": node, "args": args}


def states(result: Result) -> dict[str, int]:
    document: dict[str, Any] = json.loads(result.stdout)
    counts: dict[str, int] = document["states"]
    return counts


def test_a_study_is_stored_whole_and_a_second_launch_runs_nothing(bench: Bench) -> None:
    result = bench.launch("--json")
    assert result.exit_code == 0, result.stderr
    assert states(result) == {"stored": 4}
    assert "[1/4] one concurrency=1 #0  " in result.stderr
    assert "tok/s" in result.stderr
    before = bench.manifests()
    assert len(before) == 4
    told = [entry["state"] for entry in bench.ledger()]
    assert (told.count("running"), told.count("stored")) == (4, 4)
    assert json.loads((bench.base / "plan.json").read_text())["placements"]
    assert any((bench.base / "report").iterdir())
    assert not (bench.base / "lease.json").exists()

    refused = bench.launch()
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr

    again = bench.launch("--resume")
    assert again.exit_code == 0
    assert "nothing to run: all 4 runs are stored" in again.stderr
    assert bench.manifests() == before

    shown = CliRunner().invoke(main, ["status", str(bench.folder / "store"), "--json"])
    assert [run["state"] for run in json.loads(shown.stdout)["runs"]] == ["stored"] * 4


def test_manifests_say_what_ran_where(bench: Bench) -> None:
    bench.launch(sweep={"concurrency": [1]}, repeats={"min": 1, "max": 1}, systems=[system(pass_s=0.002)])
    (path,) = bench.base.glob("runs/*/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["engine"] == {"threads": manifest["node"]["num_cpus"]}
    assert manifest["placement"]["node_id"] == manifest["node"]["node_id"]
    assert (manifest["attempted"], manifest["completed"]) == (8, 8)
    assert manifest["checks_failed"] == {}
    assert manifest["sampler"]["samples"] >= 2


def test_the_largest_load_within_the_slo_is_found_and_reported(bench: Bench) -> None:
    """TPOT = 10 ms + 1 ms x concurrency on the fake engine's own clock: 20.5 ms hold up to 10."""
    result = bench.launch(
        "--json", systems=[system(pass_s=0.010, pass_s_per_request=0.001, clock="simulated")],
        workloads=[{"type": "synthetic", "input_tokens": 4, "output_tokens": 9}],
        sweep={"concurrency": "auto"}, slo={"tpot_s": 0.0205}, repeats={"min": 2, "max": 2},
    )  # fmt: skip
    assert (result.exit_code, states(result)) == (0, {"stored": 2}), result.stderr
    first, second = (json.loads(path.read_text())["search"] for path in bench.base.glob("runs/*/manifest.json"))
    assert first == second
    assert first["found"] in (9, 10) and first["load"]["concurrency"] == first["found"]
    assert all(one["met"] == (one["load"] <= 10) for one in first["trials"])
    summary = (bench.base / "report" / "summary.md").read_text()
    assert f"one, concurrency={first['found']}" in summary


def test_what_is_left_by_max_runs_is_run_on_resume(bench: Bench) -> None:
    result = bench.launch("--max-runs", "1", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["left"] == 3
    first = bench.manifests()
    assert len(first) == 1
    assert states(bench.launch("--resume", "--json")) == {"stored": 4}
    assert first.items() <= bench.manifests().items()


def test_an_edited_study_adds_its_new_points_and_marks_the_dropped_ones(bench: Bench) -> None:
    bench.launch(sweep={"concurrency": [1]})
    before = bench.manifests()
    assert states(bench.launch("--resume", "--json", sweep={"concurrency": [2]})) == {"stored": 2}
    assert before.items() <= bench.manifests().items()
    assert len(bench.manifests()) == 4
    edited = json.loads((bench.base / "plan.json").read_text())["plan"]
    assert len(edited["points"]) == len(edited["dropped_points"]) == 1


def test_an_engine_that_cannot_start_fails_and_is_tried_again_only_on_request(bench: Bench) -> None:
    systems = [system("bad", fail_at_start=True), system("good")]
    result = bench.launch("--json", systems=systems, sweep={"concurrency": [1]})
    assert result.exit_code == 1
    assert states(result) == {"failed": 2, "stored": 2}
    assert {(one["kind"], one["attempt"]) for one in bench.failures()} == {("own", 0)}
    assert all("EngineError: told to fail at start" in one["error"] for one in bench.failures())
    assert ["fake engine: can't start: told to fail" in log for log in bench.logs()] == [True, True]

    again = bench.launch("--resume", systems=systems, sweep={"concurrency": [1]})
    assert again.exit_code == 1
    assert "nothing to run: 2 failed, 2 stored" in again.stderr
    bench.launch("--resume", "--retry-failed", systems=systems, sweep={"concurrency": [1]})
    assert sorted(one["attempt"] for one in bench.failures()) == [0, 0, 1, 1]


def test_a_run_that_fails_by_itself_leaves_the_others_alone(bench: Bench) -> None:
    """At concurrency 1 a run has 1 warm-up request and 8 others, so that request 12 is in an engine's second run."""
    result = bench.launch(
        "--json", systems=[system(crash_at_request=12)], sweep={"concurrency": [1]}, repeats=REPEATS_3
    )
    assert states(result) == {"failed": 1, "stored": 2}
    assert [one["repeat"] for one in bench.failures()] == [1]
    (log,) = bench.logs()
    assert "fake engine: crashing at request 12\n" in log


def test_a_lost_worker_is_tried_again_once_and_anew_on_resume(bench: Bench) -> None:
    changes = {"systems": [system(crash_at_request=3, crash="exit")], "sweep": {"concurrency": [1]}}
    result = bench.launch("--json", repeats={"min": 1, "max": 1}, **changes)
    assert (result.exit_code, states(result)) == (1, {"failed": 1})
    assert [(one["kind"], one["attempt"]) for one in bench.failures()] == [("system", 0), ("system", 1)]
    assert ["fake engine: crashing at request 3\n" in log for log in bench.logs()] == [True, True]  # of the dead
    bench.launch("--resume", "--json", repeats={"min": 1, "max": 1}, **changes)
    assert [one["attempt"] for one in bench.failures()] == [0, 1, 2, 3]


def test_a_hung_run_is_ended_at_its_deadline(bench: Bench) -> None:
    systems = [system("hangs", crash_at_request=3, crash="hang"), system("good")]
    result = bench.launch(
        "--json", systems=systems, sweep={"concurrency": [1]}, repeats={"min": 1, "max": 1}, deadline_s=2
    )
    assert (result.exit_code, states(result)) == (1, {"failed": 1, "stored": 1})
    (failure,) = bench.failures()
    assert (failure["kind"], failure["error"]) == ("own", "run passed its deadline of 2 s")
    assert ["crashing at request 3\n" in log for log in bench.logs()] == [True]


def test_what_a_run_recorded_that_cannot_be_evaluated_is_kept_with_its_failure(bench: Bench) -> None:
    """8 prompts of 5,000 tokens, and an engine that takes 4,096: no request has a first token, so no window opens."""
    too_long = [{"type": "synthetic", "input_tokens": 5000, "output_tokens": 4}]
    once = {"sweep": {"concurrency": [1]}, "repeats": {"min": 1, "max": 1}}
    result = bench.launch("--json", workloads=too_long, **once)
    assert (result.exit_code, states(result)) == (1, {"failed": 1})
    (failure,) = bench.failures()
    assert failure["kind"] == "own"
    assert "no steady window: 8 requests were served; needs more than 4096 tokens of context" in failure["error"]
    kept = bench.base / "failed" / f"{failure['run_id']}-0"
    assert pq.read_table(kept / "requests.parquet")["status"].to_pylist() == ["failed"] * 8
    manifest = json.loads((kept / "manifest.json").read_text())
    assert (manifest["windows"], manifest["attempted"], manifest["completed"]) == ([], 8, 0)
    assert bench.manifests() == {}


@pytest.fixture
def taken(ray_address: str) -> Iterator[Callable[[], None]]:
    """Somebody else holds all CPUs of the node, until this is called."""
    with connected(ray_address):
        options = {"num_cpus": 2, "lifetime": "detached", "namespace": "theirs", "name": "other"}
        assert ray.get(ray.remote(NodeAgent).options(**options).remote().version.remote(), timeout=60)
    held = [True]

    def free() -> None:
        if held.pop():
            with connected(ray_address):
                ray.kill(ray.get_actor("other", namespace="theirs"))

    yield free
    if held:
        free()


def test_an_engine_that_waits_in_vain_for_a_taken_node_is_no_failure_of_its_own(
    bench: Bench, taken: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.engines.START_GRACE_S", 1.0)
    changes: dict[str, Any] = {"sweep": {"concurrency": [1]}, "repeats": {"min": 1, "max": 1}}
    result = bench.launch("--json", deadline_s=1, **changes)
    assert (result.exit_code, states(result)) == (1, {"failed": 1})
    assert [(one["kind"], one["attempt"]) for one in bench.failures()] == [("system", 0), ("system", 1)]
    assert all("no process for the engine" in one["error"] for one in bench.failures())
    taken()
    monkeypatch.setattr("cluster.engines.START_GRACE_S", 90.0)
    assert states(bench.launch("--resume", "--json", **changes)) == {"stored": 1}


def test_a_point_that_no_node_can_host_is_refused_and_the_others_run(bench: Bench) -> None:
    systems = [system("nowhere", node="gpu"), system("here")]
    result = bench.launch("--json", systems=systems)
    assert (result.exit_code, states(result)) == (1, {"refused": 4, "stored": 4})
    assert "refused: no node of kind 'gpu'; kinds here: cpu" in result.stderr


def test_when_all_points_are_refused_nothing_starts(bench: Bench) -> None:
    result = bench.launch(systems=[system(node="gpu")])
    assert result.exit_code == 2
    assert "no node of kind 'gpu'" in result.stderr
    assert [path for path in bench.base.rglob("*") if path.is_file()] == []


def test_a_dry_run_shows_every_point_and_starts_nothing(bench: Bench) -> None:
    systems = [system("nowhere", node="gpu"), system("here")]
    result = bench.launch("--dry-run", "--json", systems=systems)
    points = json.loads(result.stdout)["points"]
    assert result.exit_code == 1
    assert [("placement" in one, "refusal" in one) for one in points] == [(False, True)] * 2 + [(True, False)] * 2
    assert not bench.base.exists()
    assert "refused: no node of kind 'gpu'" in bench.launch("--dry-run", systems=systems).stdout


def command_line(process: psutil.Process) -> str:
    """Empty when it has ended, waited for or not."""
    try:
        return "".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def test_a_driver_that_is_overtaken_ends_its_engines_and_leaves_the_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moecap.lease.HEARTBEAT_S", 0.1)
    store = Store(str(bench.folder / "store"), "t")

    def overtake() -> None:
        while not [entry for entry in bench.ledger() if entry["state"] == "running"]:
            time.sleep(0.05)
        store.objects.write_json("lease.json", {**store.objects.read_json("lease.json"), "token": "another"})

    other = threading.Thread(target=overtake, daemon=True)
    other.start()
    result = bench.launch(systems=[system(pass_s=0.5)], sweep={"concurrency": [1]})
    other.join()
    assert result.exit_code == 2
    assert "another driver took over" in result.stderr
    assert store.objects.read_json("lease.json")["token"] == "another"
    assert bench.manifests() == {}
    ours = psutil.Process().children(recursive=True)
    assert len(ours) > 2  # Ray's own
    assert [one for one in ours if "Runner" in command_line(one)] == []


def test_a_study_with_mistakes_reports_all_of_them_and_exits_with_2(bench: Bench) -> None:
    result = bench.launch(repeats={"min": 0}, colour="red", seed="x")
    assert result.exit_code == 2
    for key in ("repeats.min", "colour", "seed"):
        assert key in result.stderr

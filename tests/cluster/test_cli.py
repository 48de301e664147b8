"""What the command line accepts and says; what it does is tested with a Ray in test_launch.py."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fleet import node, plan, point

import moecap
from cluster.agenda import Held, prepare
from cluster.cli import main
from cluster.console import placement_table, progress_line, table
from cluster.driver import Outcome, Progress
from cluster.messages import RunKey, RunState, RunSummary
from moecap.lease import Lease
from moecap.store import Store

OPTIONS = {
    "launch": {
        "study", "address", "store", "resume", "retry_failed", "dry_run", "max_runs", "overrides", "as_json",
    },
    "nodes": {"address", "as_json"},
    "calibrate": {"address", "again", "as_json"},
    "doctor": {"address", "store", "as_json"},
    "model": {"model", "dtype", "kv_dtype", "as_json"},
    "devices": {"name", "as_json"},
    "status": {"store", "study_name", "as_json"},
    "reduce": {"store", "study_name", "as_json"},
    "report": {"store", "out", "study_name", "as_json"},
    "predict": {
        "model", "device", "ep", "ep_nodes", "skew", "placement", "redundant_experts", "backend", "batch_size", "dtype",
        "dispatch_bytes_per_element", "network_gb_per_s", "phase", "figures", "study_name", "as_json",
    },
}  # fmt: skip


def test_the_command_line_grows_only_on_purpose() -> None:
    found = {name: {one.name for one in command.params} for name, command in main.commands.items()}
    assert found == OPTIONS


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout == f"moecap-cluster, version {moecap.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["launch", "--max-runs", "-1"], ["launch", "--colour"], ["report", "x"], ["launch", "--retry-failed"]]
)
def test_wrong_use_exits_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["launch", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert "none.yaml" in result.stderr


def test_a_store_with_several_studies_asks_which(tmp_path: Path) -> None:
    for name in ("first", "second"):
        Store(str(tmp_path), name).write_plan(plan(point()), {})
    result = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert result.exit_code == 2
    assert "first, second" in result.stderr
    shown = CliRunner().invoke(main, ["status", str(tmp_path), "--study", "second", "--json"])
    assert [run["state"] for run in json.loads(shown.stdout)["runs"]] == ["planned"]
    assert CliRunner().invoke(main, ["status", str(tmp_path), "--study", "third"]).exit_code == 2
    assert CliRunner().invoke(main, ["status", str(tmp_path / "empty")]).exit_code == 2


def test_status_believes_the_ledger_but_for_whole_runs(tmp_path: Path) -> None:
    store, one = Store(str(tmp_path), "t"), point()
    store.write_plan(plan(one), {})
    entry = {"run": f"{one.point_id}-0", "hostname": "h"}
    store.append_ledger([entry | {"state": "running", "why": None}])
    store.append_ledger([entry | {"state": "failed", "why": "crash"}])
    (run,) = json.loads(CliRunner().invoke(main, ["status", str(tmp_path), "--json"]).stdout)["runs"]
    assert (run["state"], run["why"], run["hostname"]) == ("failed", "crash", "h")


def shown(folder: Path) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["status", str(folder), "--json"])
    (run,) = json.loads(result.stdout)["runs"]
    assert isinstance(run, dict)
    return run


@pytest.mark.parametrize("state", ["starting", "running"])
def test_status_calls_a_run_interrupted_when_nobody_drives_it(state: str, tmp_path: Path) -> None:
    store, one = Store(str(tmp_path), "t"), point()
    store.write_plan(plan(one), {})
    store.append_ledger([{"run": f"{one.point_id}-0", "hostname": "h", "state": state, "why": None}])
    lease = Lease.acquire(store.objects)
    assert shown(tmp_path)["state"] == state
    killed = {**store.objects.read_json("lease.json"), "pid": 2**22 + 1}
    lease.release()
    assert shown(tmp_path)["state"] == "interrupted"
    store.objects.write_json("lease.json", killed)
    assert (shown(tmp_path)["state"], shown(tmp_path)["hostname"]) == ("interrupted", "h")
    assert "--resume" in shown(tmp_path)["why"]


def test_status_watches_a_driver_elsewhere_for_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.status.SILENT_S", 0.5)
    store, one = Store(str(tmp_path), "t"), point()
    store.write_plan(plan(one), {})
    store.append_ledger([{"run": f"{one.point_id}-0", "state": "running"}])
    lease = Lease.acquire(store.objects)
    held = {**store.objects.read_json("lease.json"), "machine": "another kernel", "host": "elsewhere"}
    lease.release()
    store.objects.write_json("lease.json", held)
    assert shown(tmp_path)["state"] == "interrupted"
    monkeypatch.setattr("cluster.status.SILENT_S", 20.0)
    beat = threading.Timer(0.5, store.objects.write_json, ("lease.json", {**held, "beat": 99}))
    beat.start()
    assert shown(tmp_path)["state"] == "running"
    beat.join()


def test_status_believes_a_driver_that_ended_while_it_was_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, one = Store(str(tmp_path), "t"), point()
    store.write_plan(plan(one), {})
    store.append_ledger([{"run": f"{one.point_id}-0", "state": "running"}])

    def ends(*_: object) -> None:
        store.append_ledger([{"run": f"{one.point_id}-0", "state": "cancelled", "why": "cancelled by the user"}])

    monkeypatch.setattr("cluster.status.living_holder", ends)
    assert shown(tmp_path)["state"] == "cancelled"


def test_status_calls_a_stored_run_damaged_when_it_is_not_whole(tmp_path: Path) -> None:
    store, one = Store(str(tmp_path), "t"), point()
    store.write_plan(plan(one), {})
    store.append_ledger([{"run": f"{one.point_id}-0", "state": "stored", "run_id": "r"}])
    assert (shown(tmp_path)["state"], shown(tmp_path)["why"]) == (
        "damaged", "manifest.json missing; launch --resume runs it again"
    )  # fmt: skip
    store.objects.write("runs/r/manifest.json", b"")
    assert shown(tmp_path)["state"] == "damaged"
    assert "manifest.json can't be read" in shown(tmp_path)["why"]


def progress(state: RunState, why: str = "", summary: RunSummary | None = None) -> Progress:
    return Progress(
        run=RunKey("p", 0), label="int8 concurrency=8 #0", state=state, why=why, hostname="h", summary=summary,
        ended=3, planned=21,
    )  # fmt: skip


def test_the_line_of_a_run() -> None:
    headline = {"output_tokens_per_s": 152.13, "ttft_s": 0.0312, "tpot_s": 0.0509, "accuracy": None}
    summary = RunSummary(run_id="r", headline=headline, flags={}, checks_failed={})
    assert progress_line(progress(RunState.STORED, summary=summary)) == (
        "[3/21] int8 concurrency=8 #0  152.1 tok/s  ttft 31 ms  tpot 51 ms"
    )
    assert progress_line(progress(RunState.FAILED, "EngineError: gone\n\ntrace")) == (
        "[3/21] int8 concurrency=8 #0  failed: EngineError: gone"
    )
    assert progress_line(progress(RunState.STARTING)) == "starting the engine of int8 on h"
    assert progress_line(progress(RunState.RUNNING)) is None


def test_tables_align() -> None:
    assert table(("a", "long"), [("xyz", 1)]) == "a    long\n---  ----\nxyz  1"
    assert "refused: no node of kind 'gpu'" in placement_table(prepare(plan(point(kind="gpu")), [node("n")], Held()))


@pytest.mark.parametrize(
    ("states", "good"),
    [
        ([RunState.STORED, RunState.NOT_NEEDED], True), ([], True), ([RunState.STORED, RunState.FAILED], False),
        ([RunState.REFUSED], False), ([RunState.UNPLACEABLE], False), ([RunState.CANCELLED], False),
    ],
)  # fmt: skip
def test_a_launch_is_good_when_everything_is_stored_or_not_needed(states: list[RunState], good: bool) -> None:
    assert Outcome(states={RunKey("p", i): state for i, state in enumerate(states)}, left=0).good is good


def test_every_command_explains_itself() -> None:
    assert all(isinstance(command, click.Command) and command.help for command in main.commands.values())


@pytest.mark.parametrize("command", ["nodes", "calibrate", "doctor"])
def test_an_address_where_nothing_answers_is_refused_at_once(command: str) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        begin_s = time.monotonic()
        result = CliRunner().invoke(main, [command, "--address", address])
    assert result.exit_code == 1
    assert address in result.stderr and "is its head running?" in result.stderr
    assert time.monotonic() - begin_s < 20


@pytest.mark.parametrize("command", [["status"], ["reduce"], ["report", "--out", "out"], ["launch", "--store"]])
def test_a_file_is_no_store(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    result = CliRunner().invoke(main, [*command, str(file)])
    assert result.exit_code == 2
    assert "is a file; name a folder" in result.stderr


def test_errors_are_json_documents_too(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("name: x\nmodels: [reference]\nsystems: [{name: a, engine: none, node: cpu}]\nrepeets: 3\n")
    found = json.loads(CliRunner().invoke(main, ["launch", str(study), "--json"]).stdout)["error"]
    assert found["type"] == "StudyError"
    assert {one["key"] for one in found["problems"]} >= {"systems.0.engine", "repeets"}
    assert all(one["remedy"] for one in found["problems"])
    one = json.loads(CliRunner().invoke(main, ["devices", "nonesuch", "--json"]).stdout)["error"]["problems"][0]
    assert (one["key"], one["value"]) == ("device", "'nonesuch'")

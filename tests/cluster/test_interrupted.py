"""A driver that is ended halfway, in a process of its own with a Ray of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cluster.cli import main

pytestmark = pytest.mark.slow
PATIENCE_S = 90.0

STUDY: dict[str, Any] = {
    "name": "t",
    "models": ["reference"],
    "systems": [{"name": "slow", "engine": "fake", "node": "cpu", "args": {"pass_s": 0.03}}],
    "workloads": [{"type": "synthetic", "input_tokens": 8, "output_tokens": 4}],
    "repeats": {"min": 6, "max": 6},
    "peaks": "catalogue",
}


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {PATIENCE_S} s in vain for {what}"
        time.sleep(0.05)


class Launch:
    """A launch in a process of its own."""

    def __init__(self, folder: Path, *options: str, systems: int = 1) -> None:
        self.store, study = folder / "store", folder / "study.yaml"
        slow = [{**STUDY["systems"][0], "name": f"slow{i}"} for i in range(systems)]
        study.write_text(yaml.safe_dump({**STUDY, "systems": slow}))
        self.arguments = ["launch", str(study), "--store", str(self.store)]
        self.driver = subprocess.Popen(
            [sys.executable, "-c", "from cluster.cli import main; main()", *self.arguments, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def wait_for_runs(self, count: int, node_id: str = "") -> None:
        """Until so many runs are whole, on that node if one is given."""

        def enough() -> bool:
            return self.driver.poll() is not None or len(self.manifests(node_id)) >= count

        wait_for(enough, f"{count} whole runs")
        assert self.driver.poll() is None, self.driver.communicate()

    def manifests(self, node_id: str = "") -> dict[str, int]:
        """run_id -> when its manifest was written."""
        found = self.store.glob("t/runs/*/manifest.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in found if node_id in path.read_text()}


@pytest.fixture
def halfway(tmp_path: Path) -> Launch:
    """Six runs of about a second each, at least two of them whole."""
    launch = Launch(tmp_path)
    launch.wait_for_runs(2)
    return launch


def test_a_killed_driver_loses_no_whole_run_and_a_resume_does_the_rest(halfway: Launch, ray_address: str) -> None:
    os.kill(halfway.driver.pid, signal.SIGKILL)
    halfway.driver.communicate(timeout=PATIENCE_S)
    before = halfway.manifests()
    assert 2 <= len(before) < 6
    resumed = CliRunner().invoke(main, [*halfway.arguments, "--address", ray_address, "--resume", "--json"])
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["states"] == {"stored": 6}
    assert len(halfway.manifests()) == 6
    assert before.items() <= halfway.manifests().items()


def test_runs_of_a_lost_node_go_to_another_one(tmp_path: Path, ray_cluster: Any) -> None:
    second = ray_cluster.add_node(num_cpus=2)
    launch = Launch(tmp_path, "--address", ray_cluster.address, "--json", systems=2)
    launch.wait_for_runs(1, node_id=second.node_id)
    before = launch.manifests()
    ray_cluster.remove_node(second, allow_graceful=False)
    document, messages = launch.driver.communicate(timeout=PATIENCE_S)
    assert launch.driver.returncode == 0, messages
    assert json.loads(document)["states"] == {"stored": 12}
    assert before.items() <= launch.manifests().items()
    assert 1 <= len(launch.manifests(second.node_id)) < 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_what_has_not_ended_and_keeps_the_rest(halfway: Launch, number: signal.Signals) -> None:
    """To the whole process group, as a terminal, `timeout` or a batch system send it: SIGTERM ends Ray as well."""
    os.killpg(halfway.driver.pid, number)
    _, messages = halfway.driver.communicate(timeout=PATIENCE_S)
    assert halfway.driver.returncode == 1, messages
    assert "cancelled" in messages
    lines = [
        json.loads(line) for path in sorted(halfway.store.glob("t/ledger/*")) for line in path.read_text().splitlines()
    ]
    last = {line["run"]: line["state"] for line in lines}
    assert sorted(set(last.values())) == ["cancelled", "stored"]
    assert len(last) == 6
    assert list(last.values()).count("stored") == len(halfway.manifests())
    assert not (halfway.store / "t" / "lease.json").exists()

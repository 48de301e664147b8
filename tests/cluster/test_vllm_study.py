"""The packaged study with vLLM in place of its first system, cut down, through `launch` on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import main
from moecap.store import Store

pytestmark = pytest.mark.vllm
CHANGES = (
    "systems.0.engine=vllm",
    "workloads=[{type: tasks, tasks: [add], output_tokens: 8}]",
    "sweep.concurrency=[2]",
    "requests=8",
    "repeats={min: 1, max: 1}",
    "accuracy={tasks: [add], limit: 5}",
)


def test_the_laptop_study_takes_vllm(tmp_path: Path, ray_address: str) -> None:
    """Two runs of the changed system; those of the others are left."""
    options = [option for change in CHANGES for option in ("--set", change)]
    asked = ["launch", "--address", ray_address, "--store", str(tmp_path), "--json", "--max-runs", "2", *options]
    result = CliRunner().invoke(main, asked)
    assert json.loads(result.stdout)["states"]["stored"] == 2, result.stderr
    store = Store(str(tmp_path), "laptop")
    runs = {run.manifest.spec.point.kind: run for run in map(store.load_run, store.whole_runs())}
    assert runs.keys() == {"performance", "accuracy"}
    for kind, requests in (("performance", 8), ("accuracy", 5)):
        run = runs[kind]
        assert run.manifest.engine["package"].startswith("vllm")
        assert run.manifest.attempted == run.manifest.completed == requests
        assert "routing_conserves_tokens" in run.manifest.checks_passed
        assert run.routing.num_rows == 6 * run.passes.num_rows
    assert sum(runs["accuracy"].samples["score"].to_pylist()) >= 4

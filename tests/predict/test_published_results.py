"""The tables of docs/results about replays and collectives are what their data say, computed again."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs/results"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def rows(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_shipped_fit_and_its_tables_are_those_of_the_measured_times() -> None:
    module = script("fit_collectives")
    fits = module.fitted(module.read_csv())
    shipped = json.loads((ROOT / "moecap/predict/collectives.json").read_text())["fits"]
    assert len(fits) == len(shipped) == 2 * 4 * 3
    for new, old in zip(fits, shipped, strict=True):
        assert {key: new[key] for key in ("device", "operation", "num_gpus")}.items() <= old.items()
        for mine, theirs in zip(new["pieces"], old["pieces"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6)
    text = (RESULTS / "collectives.md").read_text(encoding="utf-8").splitlines()
    shown = rows(text)
    for wanted in rows([*module.error_table(fits), *module.fit_table(fits)]):
        assert wanted in shown


def test_errors_over_all_operations() -> None:
    """The short table, from the JSON, by weights of the points."""
    fits = json.loads((ROOT / "moecap/predict/collectives.json").read_text())["fits"]
    shown = rows((RESULTS / "collectives.md").read_text(encoding="utf-8").splitlines())
    for device in {one["device"] for one in fits}:
        for size in ("up to 64 KiB", "to 4 MiB", "above 4 MiB"):
            errors = [one["errors"][size] for one in fits if one["device"] == device]
            points = sum(one["points"] for one in errors)
            mean = 100 * sum(one["points"] * one["mean_abs"] for one in errors) / points
            worst = 100 * max(max(abs(one["low"]), abs(one["high"])) for one in errors)
            assert [device, size, str(points), f"{mean:.1f}", f"{worst:.1f}"] in shown


@pytest.mark.parametrize("trace", ["recorded", "zipf"])
def test_replay_tables_are_those_of_their_data(trace: str) -> None:
    module = script("replay_expert_parallel")
    documents = json.loads((RESULTS / f"ep-replay/{trace}.json").read_text())
    shown = rows((RESULTS / "ep-replay.md").read_text(encoding="utf-8").splitlines())
    for wanted in rows([*module.table(documents), *module.time_table(documents)]):
        assert wanted in shown


def test_the_recorded_replay_is_that_of_the_store() -> None:
    module = script("replay_expert_parallel")
    trace = module.recorded()
    shown = rows((RESULTS / "ep-replay.md").read_text(encoding="utf-8").splitlines())
    for wanted in rows(list(module.bounds_table(trace))):
        assert wanted in shown
    stored = json.loads((RESULTS / "ep-replay/recorded.json").read_text())
    for name, sweep in module.sweeps(trace).items():
        for found, old in zip(sweep, stored[name], strict=True):
            new: dict[str, Any] = module.document(found, trace.device)
            assert new["rank_assignments"] == old["rank_assignments"]
            assert new["bytes_per_layer"] == old["bytes_per_layer"]


def test_the_claim() -> None:
    """Told once more from the counts: the busiest of eight pairs of experts over the second half of the passes."""
    routing = script("replay_expert_parallel").recorded().routing
    pairs = routing.counts[routing.num_passes // 2 :].reshape(-1, 6, 8, 2).sum(axis=3)
    cost = float((pairs.max(axis=2) - pairs.mean(axis=2)).sum())
    uniform = json.loads((RESULTS / "ep-replay/recorded.json").read_text())["uniform routing, linear"][3]
    assert uniform["ep"] == 8
    assert f"{100 * (1 - uniform['straggler_assignments'] / cost):.1f}" == "64.7"
    ratio = float(pairs.max(axis=2).sum() / np.mean(pairs, axis=2).sum())
    text = " ".join((RESULTS / "ep-replay.md").read_text(encoding="utf-8").split())
    assert "hides 64.7 % of the straggler cost" in text and f"it really has {ratio:.2f} times" in text

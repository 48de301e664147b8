"""Sessions under open loops, on the fake engine's own clock: nothing is waited for, and everything can be computed."""

import json
from pathlib import Path
from typing import Any

import pytest

from moecap.errors import ConfigError
from moecap.records import (
    LoadSpec,
    ModelSpec,
    NodeInfo,
    Placement,
    PointSpec,
    RunSpec,
    SystemSpec,
    WindowSpec,
    WorkloadSpec,
)
from moecap.run import Session
from moecap.store import RunData
from moecap.telemetry.recorder import Recorder
from moecap.workload.arrivals import arrival_times_s

NODE = NodeInfo(node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="c", num_cpus=1, memory_bytes=1)
PASS_S, OUTPUT_TOKENS = 0.01, 4


def run(load: LoadSpec, window: WindowSpec, workload: WorkloadSpec | None = None, **args: Any) -> RunData:
    args = {"pass_s": PASS_S, "clock": "simulated"} | args
    system = SystemSpec(name="s", engine="fake", node="cpu", args=args)
    made = workload or WorkloadSpec(type="synthetic", options={"input_tokens": 4, "output_tokens": OUTPUT_TOKENS})
    point = PointSpec(model=ModelSpec(name="m"), system=system, workload=made, load=load, window=window)
    placement = Placement(node_id="n", hostname="h", kind="cpu")
    session = Session.open(model=point.model, system=system, placement=placement, node=NODE, peaks=())
    return session.run(RunSpec(point=point), study="t", telemetry=Recorder([], hz=1.0))


def test_requests_of_a_run_arrive_as_planned_and_the_first_ones_fill_the_system() -> None:
    load = LoadSpec(arrival="poisson", rate_per_s=50.0)
    data = run(load, WindowSpec(warmup_requests=3, requests=400))
    requests = data.requests.to_pylist()
    assert [one["request_id"] for one in requests] == [f"request-{i}" for i in range(403)]
    times = arrival_times_s(403, 50.0, seed=0)
    came = [(one["scheduled_ns"] - requests[0]["scheduled_ns"]) / 1e9 for one in requests]
    assert came == pytest.approx([time - times[0] for time in times], abs=2e-9)
    assert all(one["sent_ns"] == one["scheduled_ns"] for one in requests)
    (window,) = data.manifest.windows
    assert window.start_ns == max(one["end_ns"] for one in requests[:3])
    assert window.end_ns == requests[-1]["scheduled_ns"]
    assert data.manifest.checks_failed == {}
    assert "load_held" in data.manifest.checks_passed  # by Little's law


def test_a_system_that_can_not_keep_up_has_no_window() -> None:
    """A pass takes 10 s per request in it: none of the first ends before the last has come."""
    load = LoadSpec(arrival="poisson", rate_per_s=50.0)
    data = run(load, WindowSpec(warmup_requests=3, requests=20), pass_s_per_request=10.0)
    assert data.manifest.windows == ()
    assert "steady_window" in data.manifest.checks_failed


def trace(folder: Path) -> WorkloadSpec:
    rows = ({"arrival_s": i * 0.5, "input_tokens": 5 + i, "output_tokens": 2} for i in range(9))
    path = folder / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return WorkloadSpec(type="trace", options={"path": str(path), "speedup": 5.0})


def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    data = run(LoadSpec(arrival="trace"), WindowSpec(warmup_requests=2, requests=7), trace(tmp_path))
    requests = data.requests.to_pylist()
    came = [(one["scheduled_ns"] - requests[0]["scheduled_ns"]) / 1e9 for one in requests]
    assert came == pytest.approx([0.1 * i for i in range(9)])
    assert [one["input_tokens"] for one in requests] == list(range(5, 14))
    assert data.manifest.checks_failed == {}


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    planned = trace(tmp_path)
    options = {**planned.options, "content": "0" * 16}
    with pytest.raises(ConfigError, match="put the planned file there"):
        run(
            LoadSpec(arrival="trace"), WindowSpec(warmup_requests=2, requests=7),
            WorkloadSpec(type="trace", options=options),
        )  # fmt: skip

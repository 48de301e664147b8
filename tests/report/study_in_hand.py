"""Points, metrics, entries of cap.json and runs made by hand, with round numbers to check against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from moecap.records import (
    AccuracySpec,
    HeldWeights,
    LoadSpec,
    Manifest,
    Metric,
    ModelShape,
    ModelSpec,
    NodeInfo,
    PassRecord,
    Peaks,
    Phase,
    Placement,
    PointSpec,
    RepeatsSpec,
    RoutingRecord,
    RunSpec,
    StudyPlan,
    SystemSpec,
    Window,
    WindowSpec,
    WorkloadSpec,
)
from moecap.schema import PASSES, ROUTING, RUN_TABLES, table_of
from moecap.store import RunData

WORKLOAD = WorkloadSpec(type="synthetic", options={"input_tokens": 64})
TASKS = ("add", "sort", "edit", "choice", "multiply", "chain", "complete")


def performance_point(system: str, concurrency: int, model: str = "reference") -> PointSpec:
    return PointSpec(
        model=ModelSpec(name=model), system=SystemSpec(name=system, engine="fake", node="cpu"), workload=WORKLOAD,
        load=LoadSpec(concurrency=concurrency), window=WindowSpec(warmup_requests=1, requests=8),
    )  # fmt: skip


def accuracy_point(system: str, tasks: tuple[str, ...] = TASKS, model: str = "reference") -> PointSpec:
    return PointSpec(
        model=ModelSpec(name=model), system=SystemSpec(name=system, engine="fake", node="cpu"),
        accuracy=AccuracySpec(tasks=tasks),
    )  # fmt: skip


def plan_of(*points: PointSpec, name: str = "hand") -> StudyPlan:
    return StudyPlan(name=name, store="store", points=points, repeats=RepeatsSpec())


def row(point: PointSpec, metric: str, value: float | None, unit: str, **changes: Any) -> Metric:
    plain: dict[str, Any] = {
        "level": "point", "id": point.point_id, "phase": None, "scope": None, "stat": "value", "peak_source": None,
        "qualifiers": "{}", "missing_reason": None, "n": 3,
    }  # fmt: skip
    return Metric(metric=metric, value=value, unit=unit, **{**plain, **changes})


def entry(system: str, normalised: Sequence[float | None], **changes: Any) -> dict[str, Any]:
    """An entry of cap.json; the raw values are the normalised ones, times 10."""
    axes = dict(zip(("cost", "accuracy", "performance"), normalised, strict=True))
    raw = {axis: None if value is None else 10 * value for axis, value in axes.items()}
    whole: dict[str, Any] = {
        "model": "reference", "system": system, "device": "cpu", "load": "concurrency=1", "raw": raw,
        "normalised": axes, "ci95": dict.fromkeys(axes), "cap_area": None if None in normalised else 0.5,
        "class": None if None in normalised else "balanced", "pareto": None not in normalised, "marks": [],
    }  # fmt: skip
    return {**whole, **changes}


def cap_of(*entries: Mapping[str, Any], load: str = "concurrency=1") -> dict[str, Any]:
    shown = [{**one, "load": load} for one in entries]
    return {"sets": [{"workload": WORKLOAD.label, "load": load, "entries": shown}]}


def forward_pass(pass_id: int, ends_ns: int, *, valid: bool = True) -> PassRecord:
    """Lasts 10 ns."""
    return PassRecord(
        pass_id=pass_id, step_id=pass_id, replica=0, phase=Phase.DECODE, started_ns=ends_ns - 10,
        launched_ns=ends_ns - 10, duration_ns=10, num_requests=1, query_lens=(1,), context_lens=(4,),
        scheduled_tokens=1, cached_tokens=0, logits_tokens=1, padded_tokens=0, accepted_tokens=None, valid=valid,
    )  # fmt: skip


def routed(pass_id: int, layer: int, counts: Sequence[int]) -> RoutingRecord:
    distinct = sum(count > 0 for count in counts)
    return RoutingRecord(
        pass_id=pass_id, layer=layer, counts=tuple(counts), distinct=distinct, distinct_physical=distinct
    )


def run_of(
    point: PointSpec,
    windows: Sequence[Window],
    passes: Sequence[PassRecord] = (),
    routing: Sequence[RoutingRecord] = (),
    **changes: Any,
) -> RunData:
    node = NodeInfo(
        node_id="n1", hostname="host", kinds=frozenset({"cpu"}), cpu_model="Some CPU | 2.0 GHz", num_cpus=2,
        memory_bytes=8_000_000_000,
    )  # fmt: skip
    spec = RunSpec(point=point)
    stated: dict[str, Any] = {
        "packages": {"torch": "2.13.0"}, "checks_passed": ("x",), "checks_failed": {}, "flags": {}, "unknown": {},
    }  # fmt: skip
    manifest = Manifest(
        schema_version=1, study="hand", run_id=spec.run_id(node.fingerprint), point_id=point.point_id, spec=spec,
        placement=Placement(node_id="n1", hostname="host", kind="cpu", num_cpus=2), node=node,
        fingerprint=node.fingerprint, git_commit=None, engine={},
        shape=ModelShape(name="m", model_type="m", hidden_size=8, vocab_size=16, layers=(), embedding_params=0,
                         lm_head_params=0, lm_head_matrix_params=0, final_norm_params=0),
        held=HeldWeights(bytes_per_param={}, compute_dtype={}, kv_bytes_per_element=2, activation_bytes_per_element=2,
                         weight_bytes={}, resident_weight_bytes=8),
        peaks=(Peaks(source="calibrated", memory_bytes_per_s=1.5e10, flops_per_s={"bfloat16": 2e11},
                     method="triad", spread={"memory": 0.031}),),
        windows=tuple(windows), clock="monotonic", wall_offset_ns=5, attempted=1, served=1, completed=1,
        observer_ns=10, **{**stated, **changes},
    )  # fmt: skip
    tables: dict[str, pa.Table] = {name: schema.empty_table() for name, schema in RUN_TABLES.items()}
    tables |= {"passes": table_of(PASSES, passes), "routing": table_of(ROUTING, routing)}
    return RunData(manifest=manifest, **tables)

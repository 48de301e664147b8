"""Hand-made nodes, points and plans for tests of what `cluster` decides."""

from __future__ import annotations

from typing import Any

from moecap.records import (
    AccuracySpec,
    DeviceInfo,
    LoadSpec,
    ModelSpec,
    NodeInfo,
    NodeKind,
    PointSpec,
    RepeatsSpec,
    StudyPlan,
    SystemSpec,
    WindowSpec,
    WorkloadSpec,
)

GIB = 2**30
CPU_KINDS: tuple[NodeKind, ...] = ("cpu", "cpu-offload")


def node(
    name: str, *, kinds: tuple[NodeKind, ...] = CPU_KINDS, device: str = "", devices: int = 0, **other: Any
) -> NodeInfo:
    found = tuple(
        DeviceInfo(uuid=f"GPU-{name}-{i}", index=i, name=device, key=device, memory_bytes=80 * GIB)
        for i in range(devices)
    )
    fields: dict[str, Any] = {"cpu_model": "test cpu", "num_cpus": 8, "memory_bytes": 16 * GIB} | other
    return NodeInfo(node_id=f"id-{name}", hostname=name, kinds=frozenset(kinds), devices=found, **fields)


def point(
    system: str = "s",
    *,
    concurrency: int = 1,
    kind: NodeKind = "cpu",
    device: str = "any",
    model: str = "m",
    **args: Any,
) -> PointSpec:
    return PointSpec(
        model=ModelSpec(name=model),
        system=SystemSpec(name=system, engine="fake", node=kind, device=device, args=args),
        workload=WorkloadSpec(type="synthetic", options={"input_tokens": 4, "output_tokens": 3}),
        load=LoadSpec(concurrency=concurrency),
        window=WindowSpec(warmup_requests=1, requests=3 * concurrency),
    )


def accuracy_point(system: str = "s", kind: NodeKind = "cpu") -> PointSpec:
    return PointSpec(
        model=ModelSpec(name="m"),
        system=SystemSpec(name=system, engine="fake", node=kind),
        accuracy=AccuracySpec(tasks=("addition",)),
    )


def plan(*points: PointSpec, repeats: RepeatsSpec | None = None, **other: Any) -> StudyPlan:
    return StudyPlan(name="t", store="/nowhere", points=points, repeats=repeats or RepeatsSpec(min=1, max=1), **other)

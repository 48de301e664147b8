"""A study over time: what an edited study keeps of the edition before it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cluster.agenda import Held
from moecap.records import ModelSpec, NodeInfo, StudyPlan
from moecap.study import freeze_devices


def next_edition(plan: StudyPlan, earlier: StudyPlan | None, held: Held) -> StudyPlan:
    """`plan`, with the points that only an earlier edition of the study had, or that lie in the store, marked."""
    if earlier is None:
        return plan
    now = {point.point_id for point in plan.points}
    before = {point.point_id for point in earlier.points} | {*earlier.dropped_points}
    stored = {point_id for point_id, _, _ in held.whole.values()}
    return replace(plan, dropped_points=tuple(sorted((before | stored) - now)))


def freeze(plan: StudyPlan, earlier: StudyPlan | None, nodes: Iterable[NodeInfo]) -> StudyPlan:
    """Replace `device: each` by the device models that an earlier edition stood for, else those of the nodes of its
    kind."""
    keys = _devices_of_each(plan, earlier, list(nodes))
    frozen = [freeze_devices(replace(plan, points=(one,)), keys.get(one.system.name, ())).points for one in plan.points]
    return replace(plan, points=tuple(point for points in frozen for point in points))


def freeze_revisions(plan: StudyPlan, earlier: StudyPlan | None, commit_of: Callable[[str], str | None]) -> StudyPlan:
    """Give models without a revision the one that an earlier edition measured, else what `commit_of` says now."""
    before = {point.model.name: point.model.revision for point in (earlier.points if earlier else ())}

    def frozen(model: ModelSpec) -> ModelSpec:
        if model.revision is not None:
            return model
        return replace(model, revision=before[model.name] if model.name in before else commit_of(model.name))

    return replace(plan, points=tuple(replace(point, model=frozen(point.model)) for point in plan.points))


def _devices_of_each(plan: StudyPlan, earlier: StudyPlan | None, nodes: Sequence[NodeInfo]) -> dict[str, list[str]]:
    """System name -> device models that its `device: each` stands for."""
    each = {point.system.name: point.system.node for point in plan.points if point.system.device == "each"}
    present = {name: {node.device_key for node in nodes if kind in node.kinds} for name, kind in each.items()}
    frozen: dict[str, set[str]] = {name: set() for name in each}
    for point in earlier.points if earlier else ():
        if point.system.name in frozen and point.system.device not in ("any", "each"):
            frozen[point.system.name].add(point.system.device)
    return {name: sorted(frozen[name] or present[name]) for name in each}

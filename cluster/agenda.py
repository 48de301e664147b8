"""What a launch has to do: the plan, what the store holds of it already, and where the rest can run. Pure.

It decides before anything starts; the lifecycle decides from there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.messages import RunKey, RunState
from cluster.place import Placer, place_points
from cluster.repeats import agree
from moecap.records import NodeInfo, Placement, PointSpec, Refusal, StudyPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What the store holds of a study."""

    whole: Mapping[str, tuple[str, int, str]] = field(default_factory=dict)
    """run_id -> (point_id, repeat, fingerprint)."""
    failed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`<point_id>-<repeat>` -> its last error.json."""
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Point id -> output_tokens_per_s of its whole runs, where repeats may stop early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agenda:
    """Everything that is decided before a launch starts."""

    plan: StudyPlan
    nodes: tuple[NodeInfo, ...]
    points: Mapping[str, PointSpec]
    placements: Mapping[str, Placement | Refusal]
    todo: tuple[RunKey, ...]
    """Runs to start, in order."""
    ended: Mapping[RunKey, RunState]
    """Runs that start with an end state: stored or failed before, refused, unplaceable."""
    fingerprints: Mapping[str, str]
    """Point id -> hardware that its whole runs ran on."""
    rates: Mapping[str, tuple[float, ...]]
    left: tuple[RunKey, ...]
    """Runs that this launch leaves out because of `max_runs`."""
    attempts: Mapping[str, int]
    """`<point_id>-<repeat>` -> attempts that failed before."""
    weight_bytes: Mapping[str, int]
    """`weights_key` -> bytes of the weights, where known."""

    @property
    def all_refused(self) -> bool:
        """Whether no point of the study can run anywhere, and none did before."""
        runnable = self.todo or self.left
        return bool(self.ended) and not runnable and set(self.ended.values()) == {RunState.REFUSED}


def prepare(
    plan: StudyPlan,
    nodes: Sequence[NodeInfo],
    held: Held,
    *,
    retry_failed: bool = False,
    max_runs: int | None = None,
    weight_bytes: Mapping[str, int] | None = None,
) -> Agenda:
    """Compare the plan with the store and the fleet."""
    points = {point.point_id: point for point in plan.points}
    fingerprints = _fingerprints(held)
    placer = Placer(nodes=nodes, weight_bytes=weight_bytes or {})
    placements = place_points(points.items(), placer, fingerprints)
    stored = {RunKey(point_id, repeat) for point_id, repeat, _ in held.whole.values()}
    todo: list[RunKey] = []
    ended: dict[RunKey, RunState] = {}
    for run in _runs(plan, points):
        if run in stored:
            ended[run] = RunState.STORED
        elif not retry_failed and held.failed.get(str(run), {}).get("kind") == "own":
            ended[run] = RunState.FAILED
        elif agree(held.rates.get(run.point_id, ()), plan.repeats):
            ended[run] = RunState.NOT_NEEDED
        elif isinstance(placements[run.point_id], Refusal):
            ended[run] = RunState.UNPLACEABLE if run.point_id in fingerprints else RunState.REFUSED
        else:
            todo.append(run)
    cut = len(todo) if max_runs is None else max_runs
    return Agenda(
        plan=plan, nodes=tuple(nodes), points=points, placements=placements, todo=tuple(todo[:cut]), ended=ended,
        fingerprints=fingerprints, rates=held.rates, left=tuple(todo[cut:]),
        attempts={run: int(error["attempt"]) + 1 for run, error in held.failed.items()},
        weight_bytes=weight_bytes or {},
    )  # fmt: skip


def _runs(plan: StudyPlan, points: Mapping[str, PointSpec]) -> list[RunKey]:
    runs = [
        RunKey(point_id, repeat)
        for point_id, point in points.items()
        for repeat in range(1 if point.kind == "accuracy" else plan.repeats.max)
    ]
    if plan.order == "random":
        random.Random(plan.points[0].seed).shuffle(runs)
    return runs


def _fingerprints(held: Held) -> dict[str, str]:
    """Hardware that each point is tied to: that of most of its whole runs."""
    seen: dict[str, Counter[str]] = {}
    for point_id, _, fingerprint in held.whole.values():
        seen.setdefault(point_id, Counter())[fingerprint] += 1
    return {point_id: min(counts, key=lambda one: (-counts[one], one)) for point_id, counts in seen.items()}

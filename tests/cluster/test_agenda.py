from __future__ import annotations

from dataclasses import replace
from typing import Any

from fleet import node, plan, point

from cluster.agenda import Agenda, Held, prepare
from cluster.editions import freeze, freeze_revisions, next_edition
from cluster.messages import RunKey, RunState
from moecap.records import ModelSpec, RepeatsSpec

A, B = point("a"), point("b")
HERE = node("n")
TWICE = RepeatsSpec(min=2, max=2)


def failed(kind: str, attempt: int = 0) -> dict[str, Any]:
    return {f"{A.point_id}-0": {"kind": kind, "attempt": attempt}}


def todo(agenda: Agenda) -> list[tuple[str, int]]:
    names = {one.point_id: one.system.name for one in (A, B)}
    return [(names[run.point_id], run.repeat) for run in agenda.todo]


def test_listed_order_takes_points_one_by_one() -> None:
    assert todo(prepare(plan(A, B, repeats=TWICE), [HERE], Held())) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_random_order_is_the_same_every_time_and_loses_nothing() -> None:
    study = plan(A, B, repeats=RepeatsSpec(min=9, max=9), order="random")
    first, second = prepare(study, [HERE], Held()), prepare(study, [HERE], Held())
    assert first.todo == second.todo
    listed = prepare(plan(A, B, repeats=RepeatsSpec(min=9, max=9)), [HERE], Held()).todo
    assert first.todo != listed
    assert sorted(first.todo) == sorted(listed)


def test_what_is_whole_is_not_run_again() -> None:
    held = Held(whole={"r": (A.point_id, 1, HERE.fingerprint)})
    agenda = prepare(plan(A, B, repeats=TWICE), [HERE], held)
    assert todo(agenda) == [("a", 0), ("b", 0), ("b", 1)]
    assert agenda.ended == {RunKey(A.point_id, 1): RunState.STORED}


def test_own_failures_wait_for_retry_failed_and_system_failures_do_not() -> None:
    study = plan(A)
    assert prepare(study, [HERE], Held(failed=failed("own"))).ended == {RunKey(A.point_id, 0): RunState.FAILED}
    assert todo(prepare(study, [HERE], Held(failed=failed("own")), retry_failed=True)) == [("a", 0)]
    again = prepare(study, [HERE], Held(failed=failed("system", attempt=1)))
    assert todo(again) == [("a", 0)]
    assert again.attempts == {f"{A.point_id}-0": 2}


def test_a_failure_that_was_made_good_counts_no_more() -> None:
    held = Held(whole={"r": (A.point_id, 0, HERE.fingerprint)}, failed=failed("own"))
    assert prepare(plan(A), [HERE], held).ended == {RunKey(A.point_id, 0): RunState.STORED}


def test_max_runs_leaves_the_rest() -> None:
    agenda = prepare(plan(A, B, repeats=TWICE), [HERE], Held(), max_runs=3)
    assert todo(agenda) == [("a", 0), ("a", 1), ("b", 0)]
    assert agenda.left == (RunKey(B.point_id, 1),)


def test_a_point_without_a_node_is_refused_or_unplaceable_when_it_ran_before() -> None:
    gone = node("old", cpu_model="gone")
    held = Held(whole={"r": (A.point_id, 0, gone.fingerprint)})
    gpu = point("g", kind="gpu")
    agenda = prepare(plan(A, gpu, repeats=TWICE), [HERE], held)
    assert [agenda.ended[RunKey(A.point_id, repeat)] for repeat in (0, 1)] == [RunState.STORED, RunState.UNPLACEABLE]
    assert agenda.ended[RunKey(gpu.point_id, 0)] is RunState.REFUSED
    assert not agenda.all_refused
    assert prepare(plan(gpu), [HERE], Held()).all_refused


def test_dropped_points_are_marked_and_come_back() -> None:
    held = Held(whole={"r": (A.point_id, 0, HERE.fingerprint)})
    without = next_edition(plan(B), plan(A, B), held)
    assert without.dropped_points == (A.point_id,)
    assert next_edition(plan(A, B), without, held).dropped_points == ()


def test_each_device_becomes_a_point_per_device_of_the_kind_and_stays_so() -> None:
    each = point("e", kind="gpu", device="each")
    fleet = [
        HERE,
        node("g1", kinds=("gpu",), device="h100", devices=1),
        node("g2", kinds=("gpu",), device="a100", devices=1),
    ]
    frozen = freeze(plan(each, B), None, fleet)
    assert [(one.system.name, one.system.device) for one in frozen.points] == [
        ("e", "a100"),
        ("e", "h100"),
        ("b", "any"),
    ]
    later = freeze(plan(each, B), frozen, fleet[:2])  # g2 is off today
    assert later.points == frozen.points


def test_a_model_keeps_the_revision_that_an_earlier_edition_measured() -> None:
    bare = point("a", model="org/x")
    pinned = replace(point("b"), model=ModelSpec(name="org/y", revision="v2"))
    first = freeze_revisions(plan(bare, pinned), None, {"org/x": "c1"}.get)
    assert [one.model.revision for one in first.points] == ["c1", "v2"]
    later = freeze_revisions(plan(bare, pinned), first, {"org/x": "c2"}.get)
    assert later.points == first.points

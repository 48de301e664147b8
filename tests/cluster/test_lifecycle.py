from __future__ import annotations

from collections.abc import Sequence

from fleet import accuracy_point, node, plan, point

from cluster.agenda import Agenda, Held, prepare
from cluster.lifecycle import Lifecycle
from cluster.messages import (
    Begin,
    Cancelled,
    Command,
    EngineFailed,
    EngineStarted,
    EngineStopped,
    Finish,
    Hung,
    NodeLost,
    Record,
    RunFailed,
    RunKey,
    RunState,
    RunStored,
    RunSummary,
    StartEngine,
    StartRun,
    StopEngine,
    WorkerLost,
)
from moecap.records import NodeInfo, PointSpec, RepeatsSpec, StudyPlan

A, B = point("a"), point("b")


def agenda(study: StudyPlan, nodes: Sequence[NodeInfo] = (node("n"),), held: Held | None = None) -> Agenda:
    return prepare(study, nodes, held or Held())


def key(one: PointSpec, repeat: int = 0) -> RunKey:
    return RunKey(one.point_id, repeat)


def stored(engine_id: int, run: RunKey, rate: float | None = 100.0) -> RunStored:
    headline = {"output_tokens_per_s": rate}
    return RunStored(
        engine_id=engine_id, run=run, summary=RunSummary(run_id="r", headline=headline, flags={}, checks_failed={})
    )


def acts(commands: Sequence[Command]) -> list[str]:
    """Commands but for records, short: `start 1`, `run 1 <repeat>`, `stop 1`, `kill 1`, `finish`."""
    short = []
    for command in commands:
        match command:
            case StartEngine():
                short.append(f"start {command.engine_id}")
            case StartRun():
                short.append(f"run {command.engine_id} #{command.run.repeat}")
            case StopEngine():
                short.append(f"{'kill' if command.kill else 'stop'} {command.engine_id}")
            case Finish():
                short.append("finish")
    return short


def records(commands: Sequence[Command]) -> list[tuple[RunKey, RunState, str | None]]:
    return [(one.run, one.state, one.failure) for one in commands if isinstance(one, Record)]


def test_two_repeats_of_one_point_run_on_one_engine_and_finish() -> None:
    life = Lifecycle(agenda(plan(A, repeats=RepeatsSpec(min=2, max=2))))
    begun = life.handle(Begin())
    assert acts(begun) == ["start 1"]
    assert records(begun) == [(key(A), RunState.STARTING, None)]
    assert acts(life.handle(EngineStarted(engine_id=1))) == ["run 1 #0"]
    assert acts(life.handle(stored(1, key(A)))) == ["run 1 #1"]
    assert acts(life.handle(stored(1, key(A, 1)))) == ["stop 1"]
    assert acts(life.handle(EngineStopped(engine_id=1))) == ["finish"]
    assert life.states == {key(A): RunState.STORED, key(A, 1): RunState.STORED}


def test_the_next_system_starts_when_the_engine_before_it_is_gone() -> None:
    life = Lifecycle(agenda(plan(A, B)))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    assert acts(life.handle(stored(1, key(A)))) == ["stop 1"]
    assert acts(life.handle(EngineStopped(engine_id=1))) == ["start 2"]


def test_two_raylets_of_one_host_never_measure_at_once() -> None:
    twins = [node("n", num_cpus=4), node("n", num_cpus=4)]
    twins[1] = NodeInfo(**{name: getattr(twins[1], name) for name in twins[1].__slots__} | {"node_id": "id-second"})
    life = Lifecycle(agenda(plan(A, B), twins))
    assert {one.node_id for one in life.agenda.placements.values()} == {"id-n", "id-second"}  # type: ignore[union-attr]
    assert acts(life.handle(Begin())) == ["start 1"]


def test_two_hosts_measure_side_by_side() -> None:
    life = Lifecycle(agenda(plan(A, B), [node("n1"), node("n2")]))
    assert acts(life.handle(Begin())) == ["start 1", "start 2"]


def test_nothing_to_do_finishes_at_once_and_records_nothing_anew() -> None:
    held = Held(whole={"r": (A.point_id, 0, node("n").fingerprint)})
    life = Lifecycle(agenda(plan(A), held=held))
    assert life.handle(Begin()) == [Finish()]


def test_a_refused_point_is_recorded_and_the_others_run() -> None:
    gpu = point("g", kind="gpu")
    life = Lifecycle(agenda(plan(gpu, A)))
    begun = life.handle(Begin())
    assert records(begun) == [(key(gpu), RunState.REFUSED, None), (key(A), RunState.STARTING, None)]
    assert next(one for one in begun if isinstance(one, Record)).why.startswith("no node of kind 'gpu'; ")


def test_an_engine_that_cannot_start_fails_its_whole_group_and_no_other() -> None:
    life = Lifecycle(agenda(plan(A, point("a", concurrency=8), B)))
    life.handle(Begin())
    failed = life.handle(EngineFailed(engine_id=1, error="no such model"))
    assert acts(failed) == ["kill 1"]
    assert [(state, failure) for _, state, failure in records(failed)] == [(RunState.FAILED, "own")] * 2
    assert acts(life.handle(EngineStopped(engine_id=1))) == ["start 2"]


def test_an_own_failure_is_not_tried_again_and_the_next_run_gets_a_fresh_engine() -> None:
    life = Lifecycle(agenda(plan(A, repeats=RepeatsSpec(min=2, max=2))))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    failed = life.handle(RunFailed(engine_id=1, run=key(A), error="crash", kind="own"))
    assert (acts(failed), records(failed)) == (["stop 1"], [(key(A), RunState.FAILED, "own")])
    assert acts(life.handle(EngineStopped(engine_id=1))) == ["start 2"]
    assert acts(life.handle(EngineStarted(engine_id=2))) == ["run 2 #1"]


def test_a_lost_worker_costs_an_attempt_and_the_second_loss_the_run() -> None:
    life = Lifecycle(agenda(plan(A)))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    lost = life.handle(WorkerLost(engine_id=1, error="SIGKILL"))
    assert (acts(lost), records(lost)) == (["kill 1"], [(key(A), RunState.PLANNED, "system")])
    assert acts(life.handle(EngineStopped(engine_id=1))) == ["start 2"]
    life.handle(EngineStarted(engine_id=2))
    lost = life.handle(WorkerLost(engine_id=2, error="SIGKILL"))
    assert records(lost) == [(key(A), RunState.FAILED, "system")]
    assert acts(life.handle(EngineStopped(engine_id=2))) == ["finish"]


def test_workers_lost_twice_while_they_start_fail_the_group() -> None:
    life = Lifecycle(agenda(plan(A, repeats=RepeatsSpec(min=3, max=3))))
    life.handle(Begin())
    life.handle(WorkerLost(engine_id=1, error="out of memory"))
    life.handle(EngineStopped(engine_id=1))
    lost = life.handle(WorkerLost(engine_id=2, error="out of memory"))
    assert [state for _, state, _ in records(lost)] == [RunState.FAILED] * 3
    assert acts(life.handle(EngineStopped(engine_id=2))) == ["finish"]


def test_a_hung_run_is_killed_and_fails_and_the_others_go_on() -> None:
    life = Lifecycle(agenda(plan(A, repeats=RepeatsSpec(min=2, max=2))))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    hung = life.handle(Hung(engine_id=1, error="deadline"))
    assert (acts(hung), records(hung)) == (["kill 1"], [(key(A), RunState.FAILED, "own")])
    assert acts(life.handle(EngineStopped(engine_id=1))) == ["start 2"]


def test_a_hung_start_fails_the_group() -> None:
    life = Lifecycle(agenda(plan(A, repeats=RepeatsSpec(min=2, max=2))))
    life.handle(Begin())
    assert [state for _, state, _ in records(life.handle(Hung(engine_id=1, error="deadline")))] == [RunState.FAILED] * 2


def test_late_words_of_a_dead_engine_change_nothing() -> None:
    life = Lifecycle(agenda(plan(A)))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    life.handle(WorkerLost(engine_id=1, error="gone"))
    assert life.handle(stored(1, key(A))) == []
    life.handle(EngineStopped(engine_id=1))
    assert life.handle(stored(1, key(A))) == []
    assert life.states[key(A)] is RunState.STARTING


def test_repeats_stop_when_they_agree() -> None:
    """99, 100, 101: mean 100, s = 1, t(0.975, 2) = 4.303, full width 2 x 4.303 / sqrt(3) = 4.97 <= 5."""
    life = Lifecycle(agenda(plan(A, repeats=RepeatsSpec(min=2, max=5, ci95_rel_width=0.05))))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    assert acts(life.handle(stored(1, key(A, 0), 99.0))) == ["run 1 #1"]
    # 99, 101: t(0.975, 1) = 12.71, width 2 x 12.71 x 1.414 / 1.414 = 25 % > 5 %
    assert acts(life.handle(stored(1, key(A, 1), 101.0))) == ["run 1 #2"]
    done = life.handle(stored(1, key(A, 2), 100.0))
    assert acts(done) == ["stop 1"]
    assert [life.states[key(A, repeat)] for repeat in (3, 4)] == [RunState.NOT_NEEDED] * 2


def test_repeats_that_agree_in_the_store_are_not_needed_on_resume() -> None:
    whole = {f"r{i}": (A.point_id, i, node("n").fingerprint) for i in range(3)}
    held = Held(whole=whole, rates={A.point_id: (99.0, 101.0, 100.0)})
    life = Lifecycle(agenda(plan(A, repeats=RepeatsSpec(min=2, max=4)), held=held))
    begun = life.handle(Begin())
    assert life.states[key(A, 3)] is RunState.NOT_NEEDED
    assert acts(begun) == ["finish"]


def test_an_accuracy_point_has_one_repeat() -> None:
    once = accuracy_point("a")
    assert agenda(plan(A, once, repeats=RepeatsSpec(min=2, max=2))).todo == (key(A, 0), key(A, 1), key(once))


def test_a_lost_node_sends_its_runs_to_another_one() -> None:
    life = Lifecycle(agenda(plan(A, B), [node("n1"), node("n2")]))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    lost = life.handle(NodeLost(node_id="id-n1"))
    assert (acts(lost), records(lost)) == (["kill 1"], [(key(A), RunState.PLANNED, "system")])
    assert acts(life.handle(EngineStopped(engine_id=1))) == []  # n2 is busy with b
    life.handle(EngineStarted(engine_id=2))
    life.handle(stored(2, key(B)))
    restarted = life.handle(EngineStopped(engine_id=2))
    assert acts(restarted) == ["start 3"]
    assert [one.placement.hostname for one in restarted if isinstance(one, StartEngine)] == ["n2"]


def test_a_point_with_a_stored_repeat_cannot_move_to_other_hardware_but_an_untouched_one_can() -> None:
    other = node("n2", cpu_model="another")
    moving = point("a", concurrency=8)
    study = plan(A, moving, repeats=RepeatsSpec(min=2, max=2))
    life = Lifecycle(agenda(study, [node("n1"), other]))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    life.handle(stored(1, key(A)))
    lost = life.handle(NodeLost(node_id="id-n1"))
    assert life.states[key(A, 1)] is RunState.UNPLACEABLE
    assert [one.placement.hostname for one in lost if isinstance(one, StartEngine)] == ["n2"]
    assert life.states[key(moving)] is RunState.STARTING


def test_when_the_last_node_is_lost_what_waits_is_unplaceable() -> None:
    life = Lifecycle(agenda(plan(A, B)))
    life.handle(Begin())
    life.handle(NodeLost(node_id="id-n"))
    assert set(life.states.values()) == {RunState.UNPLACEABLE}
    assert acts(life.handle(EngineStopped(engine_id=1))) == ["finish"]


def test_cancelling_ends_every_run_that_has_not_ended_and_kills_engines() -> None:
    life = Lifecycle(agenda(plan(A, B, repeats=RepeatsSpec(min=2, max=2))))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    life.handle(stored(1, key(A)))
    cancelled = life.handle(Cancelled())
    assert acts(cancelled) == ["kill 1"]
    assert {state for _, state, _ in records(cancelled)} == {RunState.CANCELLED}
    assert life.states[key(A)] is RunState.STORED
    assert life.states[key(A, 1)] is RunState.RUNNING  # until its engine is gone, it may still become whole
    gone = life.handle(EngineStopped(engine_id=1))
    assert acts(gone) == ["finish"]
    assert [(run, state) for run, state, _ in records(gone)] == [(key(A, 1), RunState.CANCELLED)]


def test_a_run_that_became_whole_while_it_was_cancelled_is_stored() -> None:
    life = Lifecycle(agenda(plan(A, B, repeats=RepeatsSpec(min=2, max=2))))
    life.handle(Begin())
    assert life.run_cut_short(1) is None
    life.handle(EngineStarted(engine_id=1))
    life.handle(Cancelled())
    assert life.run_cut_short(1) == (key(A), life.agenda.placements[A.point_id])
    life.handle(Cancelled())  # again: changes nothing
    gone = life.handle(EngineStopped(engine_id=1, stored=stored(1, key(A)).summary))
    assert acts(gone) == ["finish"]
    assert life.states[key(A)] is RunState.STORED
    assert {state for run, state in life.states.items() if run != key(A)} == {RunState.CANCELLED}


def test_a_run_whose_engine_was_only_starting_is_cancelled_at_once() -> None:
    life = Lifecycle(agenda(plan(A)))
    life.handle(Begin())
    life.handle(Cancelled())
    assert life.run_cut_short(1) is None
    assert set(life.states.values()) == {RunState.CANCELLED}


def test_between_points_there_is_a_rest_but_not_between_repeats() -> None:
    study = plan(A, point("a", concurrency=8), repeats=RepeatsSpec(min=2, max=2), cooldown_s=5.0)
    life = Lifecycle(agenda(study))
    rests = []
    commands = life.handle(Begin()) + life.handle(EngineStarted(engine_id=1))
    while True:
        started = [one for one in commands if isinstance(one, StartRun)]
        if not started:
            break
        rests.append(started[0].cooldown_s)
        commands = life.handle(stored(1, started[0].run))
    assert rests == [0.0, 0.0, 5.0, 0.0]


def test_the_rest_before_another_point_is_kept_when_the_engine_changes() -> None:
    study = plan(A, point("b"), repeats=RepeatsSpec(min=1, max=1), cooldown_s=5.0)
    life = Lifecycle(agenda(study))
    life.handle(Begin())
    life.handle(EngineStarted(engine_id=1))
    life.handle(stored(1, key(A)))
    life.handle(EngineStopped(engine_id=1))
    (started,) = [one for one in life.handle(EngineStarted(engine_id=2)) if isinstance(one, StartRun)]
    assert started.cooldown_s == 5.0

"""One launch: from a plan, through the fleet, to the report.

It joins the parts and decides nothing that they don't; the command line only shows what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.agenda import Agenda, Held, prepare
from cluster.driver import Outcome, Progress, drive
from cluster.editions import freeze, freeze_revisions, next_edition
from cluster.inventory import LiveNode, connected, inventory
from cluster.messages import RunState
from cluster.reduce import reduce_store, report_beside
from cluster.weights import weight_bytes_of
from moecap.errors import ConfigError, StudyExistsError
from moecap.lease import Lease
from moecap.metrics.reduce import Reduction, check_reducible, headline
from moecap.model.hub import hub_commit
from moecap.records import Refusal, StudyPlan
from moecap.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchOptions:
    """What the user may ask of a launch beside the study."""

    address: str = "local"
    """`local`: a Ray inside this process; else where a cluster is."""
    resume: bool = False
    retry_failed: bool = False
    max_runs: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """A launch that ended."""

    agenda: Agenda
    outcome: Outcome
    reduction: Reduction | None
    """None when no run is whole."""
    report: tuple[Path, ...]
    """Files of the report; empty when the store is not on this machine's disk."""

    @property
    def nothing_to_run(self) -> bool:
        """Whether the launch started no run because none was missing."""
        return not self.agenda.todo and not self.agenda.left


def survey(plan: StudyPlan, options: LaunchOptions) -> Agenda:
    """What a launch would do, without doing any of it. ConfigError for a plan that could not be reduced."""
    check_reducible(plan)
    store = Store(plan.store, plan.name)
    with connected(options.address):
        return _agenda(plan, store, inventory(), options)


def launch(plan: StudyPlan, options: LaunchOptions, report: Callable[[Progress], None]) -> Launched:
    """Run what is missing of the study, reduce it and write its report.

    Raises StudyExistsError or LeaseHeldError when it may not, ConfigError when no point can run anywhere.
    """
    check_reducible(plan)
    store = Store(plan.store, plan.name)
    if not options.resume and store.read_plan() is not None:
        raise StudyExistsError(f"{plan.store} holds study {plan.name!r} already: pass --resume to run what is missing")
    agenda = _all_done(plan, store, options)
    if agenda is not None:
        with _leased(store) as lease:
            return _conclude(agenda, Outcome(states=agenda.ended, left=0), store, lease)
    with connected(options.address):
        nodes = inventory()
        with _leased(store) as lease:
            agenda = _agenda(plan, store, nodes, options)
            if agenda.all_refused:
                raise ConfigError(f"no point can run: {_refusals(agenda)}", "systems", remedy="nothing was started")
            store.write_plan(agenda.plan, agenda.placements)
            return _conclude(agenda, drive(agenda, nodes, store, lease, report), store, lease)


def _agenda(plan: StudyPlan, store: Store, nodes: Sequence[LiveNode], options: LaunchOptions) -> Agenda:
    earlier, held = store.read_plan(), _held(plan, store)
    infos = [node.info for node in nodes]
    revised = freeze_revisions(plan, earlier, hub_commit)
    frozen = next_edition(freeze(revised, earlier, infos), earlier, held)
    return prepare(
        frozen, infos, held, retry_failed=options.retry_failed, max_runs=options.max_runs,
        weight_bytes=weight_bytes_of(frozen.points),
    )  # fmt: skip


def _all_done(plan: StudyPlan, store: Store, options: LaunchOptions) -> Agenda | None:
    """The agenda, when this very study has nothing left to run: then no node is needed to say so."""
    agenda = _agenda(plan, store, (), options)
    at_end = set(agenda.ended.values()) <= {RunState.STORED, RunState.FAILED, RunState.NOT_NEEDED} and not agenda.todo
    return agenda if at_end and store.read_plan() == agenda.plan else None


def _held(plan: StudyPlan, store: Store) -> Held:
    """What the store holds; rates are read only where repeats could stop early."""
    whole = store.whole_runs()
    open_ended = plan.repeats.min < plan.repeats.max
    rates: dict[str, list[float]] = {}
    for run_id, (point_id, _, _) in sorted(whole.items() if open_ended else ()):
        rate = headline(store.load_run(run_id)).get("output_tokens_per_s")
        if rate is not None:
            rates.setdefault(point_id, []).append(rate)
    return Held(whole=whole, failed=store.failed_runs(), rates={key: tuple(found) for key, found in rates.items()})


def _conclude(agenda: Agenda, outcome: Outcome, store: Store, lease: Lease) -> Launched:
    reduction, files = None, tuple[Path, ...]()
    if RunState.STORED in outcome.states.values():
        lease.check()
        reduction = reduce_store(store)
        lease.check()
        files = tuple(report_beside(store))
    return Launched(agenda=agenda, outcome=outcome, reduction=reduction, report=files)


def _refusals(agenda: Agenda) -> str:
    """Every reason why a point can't run, once."""
    refused = [placement for placement in agenda.placements.values() if isinstance(placement, Refusal)]
    return " | ".join(dict.fromkeys(f"{one.reason}; {one.remedy}" for one in refused))


@contextmanager
def _leased(store: Store) -> Iterator[Lease]:
    lease = Lease.acquire(store.objects)
    try:
        yield lease
    finally:
        lease.release()

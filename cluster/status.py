"""Where every run of a study stands, read from the store alone: no Ray, so that it also works beside a live driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.console import table
from cluster.messages import RunKey, RunState
from moecap.lease import HEARTBEAT_S, living_holder
from moecap.records import StudyPlan
from moecap.store import Store

UNDER_WAY = (RunState.STARTING, RunState.RUNNING)
INTERRUPTED = "interrupted"
"""A run that was under way when its driver ended without a word."""
DAMAGED = "damaged"
"""A run that was stored and isn't whole any more."""
SILENT_S = 3 * HEARTBEAT_S
"""How long a driver on another machine may show no heartbeat until its runs are called interrupted."""
REMEDY = "launch --resume runs it again"


def run_status(store: Store, plan: StudyPlan) -> list[dict[str, Any]]:
    """One entry per planned run. A whole run is stored whatever the ledger says; else the ledger's last word counts,
    as far as there is a driver to keep it."""
    last = _last_words(store)
    driven = not _under_way(last.values()) or living_holder(store.objects, SILENT_S) is not None
    if not driven:
        last = _last_words(store)  # it may have ended well since
    whole, broken = store.runs()
    stored = {RunKey(point_id, repeat): run_id for run_id, (point_id, repeat, _) in whole.items()}
    runs = []
    for point in plan.points:
        for repeat in range(1 if point.kind == "accuracy" else plan.repeats.max):
            run = RunKey(point.point_id, repeat)
            entry = last.get(str(run), {})
            state, why = (RunState.STORED, None) if run in stored else _not_stored(entry, broken, driven=driven)
            runs.append(
                {
                    "point_id": run.point_id, "repeat": repeat, "label": point.label, "state": str(state),
                    "run_id": stored.get(run), "hostname": entry.get("hostname"), "why": why,
                }
            )  # fmt: skip
    return runs


def _last_words(store: Store) -> dict[str, dict[str, Any]]:
    return {entry["run"]: entry for entry in store.read_ledger()}


def _under_way(entries: Iterable[Mapping[str, Any]]) -> bool:
    return any(entry["state"] in UNDER_WAY for entry in entries)


def _not_stored(entry: Mapping[str, Any], broken: Mapping[str, str], *, driven: bool) -> tuple[str, str | None]:
    """State and reason of a run that isn't whole, from the ledger's last word on it."""
    state = RunState(entry.get("state", RunState.PLANNED))
    if state is RunState.STORED:
        return DAMAGED, f"{broken.get(entry['run_id'], 'manifest.json missing')}; {REMEDY}"
    if state in UNDER_WAY and not driven:
        return INTERRUPTED, f"its driver is gone; {REMEDY}"
    return state, entry.get("why")


def status_text(runs: list[dict[str, Any]]) -> str:
    """A table of the runs, and a count per state below it."""
    rows = [(run["label"], f"#{run['repeat']}", run["state"], run["hostname"] or "", run["why"] or "") for run in runs]
    counts = Counter(run["state"] for run in runs)
    total = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"{table(('what', 'repeat', 'state', 'host', 'why'), rows)}\n\n{total}"

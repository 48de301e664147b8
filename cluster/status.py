"""Where every run of a study stands, read from the store alone: no Ray, so that it also works beside a live driver."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cluster.console import table
from cluster.messages import RunKey, RunState
from moecap.records import StudyPlan
from moecap.store import Store


def run_status(store: Store, plan: StudyPlan) -> list[dict[str, Any]]:
    """One entry per planned run. A whole run is stored whatever the ledger says; else the ledger's last word counts."""
    whole = {RunKey(point_id, repeat): run_id for run_id, (point_id, repeat, _) in store.whole_runs().items()}
    last = {entry["run"]: entry for entry in store.read_ledger()}
    runs = []
    for point in plan.points:
        for repeat in range(1 if point.kind == "accuracy" else plan.repeats.max):
            run = RunKey(point.point_id, repeat)
            entry = last.get(str(run), {})
            state = RunState.STORED if run in whole else RunState(entry.get("state", RunState.PLANNED))
            runs.append(
                {
                    "point_id": run.point_id, "repeat": repeat, "label": point.label, "state": str(state),
                    "run_id": whole.get(run), "hostname": entry.get("hostname"), "why": entry.get("why"),
                }
            )  # fmt: skip
    return runs


def status_text(runs: list[dict[str, Any]]) -> str:
    """A table of the runs, and a count per state below it."""
    rows = [(run["label"], f"#{run['repeat']}", run["state"], run["hostname"] or "", run["why"] or "") for run in runs]
    counts = Counter(run["state"] for run in runs)
    total = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"{table(('what', 'repeat', 'state', 'host', 'why'), rows)}\n\n{total}"

"""From a store's runs to its metrics, CAP and report, in this process. No Ray: any machine with the files can do it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from moecap.errors import ConfigError, StoreError
from moecap.metrics.peaks import highest_calibrations, with_peaks
from moecap.metrics.reduce import Reduction, reduce_runs
from moecap.records import StudyPlan
from moecap.report import write_report
from moecap.store import RunData, Store, studies


def open_study(root: str, name: str | None) -> tuple[Store, StudyPlan]:
    """The study of that name, or the only one of the store. ConfigError when it isn't clear which one is meant."""
    held = studies(root)
    if not held:
        raise ConfigError("holds no study", "STORE", root, "name the root that was given to launch --store")
    if name is None and len(held) > 1:
        raise ConfigError("holds several studies", "STORE", root, f"pass --study with one of {', '.join(held)}")
    if name is not None and name not in held:
        raise ConfigError("is not in this store", "--study", name, f"it holds {', '.join(held)}")
    store = Store(root, name or held[0])
    plan = store.read_plan()
    if plan is None:
        raise StoreError(f"{root} lost the plan of study {store.study!r}")
    return store, plan


def whole_runs(store: Store) -> Iterator[RunData]:
    """Every whole run, loaded one at a time, against the highest calibrated peaks of its hardware."""
    run_ids = sorted(store.whole_runs())
    calibrated = highest_calibrations(map(store.load_manifest, run_ids))
    for run_id in run_ids:
        run = store.load_run(run_id)
        yield replace(run, manifest=with_peaks(run.manifest, calibrated))


def reduce_store(store: Store) -> Reduction:
    """Compute every metric anew from the runs, and write them to the store."""
    plan = store.read_plan()
    if plan is None:
        raise StoreError(f"{store.root} holds no study {store.study!r}")
    reduction = reduce_runs(whole_runs(store), plan)
    store.write_reduction(reduction.metrics, reduction.cap)
    return reduction


def report_to(store: Store, plan: StudyPlan, out: Path) -> list[Path]:
    """Write the report of a reduced study into the folder `out`."""
    return write_report(store.read_metrics(), store.read_cap(), whole_runs(store), plan, out)


def report_beside(store: Store) -> list[Path]:
    """Write the report into the study's own folder, if that is on a disk of this machine."""
    plan = store.read_plan()
    if plan is None or "://" in store.root:
        return []
    return report_to(store, plan, Path(store.base) / "report")

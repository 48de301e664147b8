"""What the report takes from the runs themselves: routing sums, machines, flags and failed checks.

Runs are read once and one at a time; only sums and names are kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from moecap.records import Manifest, Peaks, Phase, Window
from moecap.store import RunData

Counts = npt.NDArray[np.int64]
REPORTED = (Phase.STEADY, Phase.ACCURACY)
"""Phases of windows whose routing is shown."""


@dataclass(kw_only=True, slots=True)
class RoutingSums:
    """What the routers did in one kind of traffic: sums over the valid passes that end inside its windows."""

    counts: dict[int, Counts] = field(default_factory=dict)
    """MoE layer -> assignments per expert."""
    distinct: int = 0
    """Distinct experts, summed over passes and layers."""
    pass_layers: int = 0
    """(pass, layer) pairs that `distinct` sums over."""

    def add(self, layer: int, counts: Counts, distinct: int, passes: int) -> None:
        """Take in one layer's sums. Raises ValueError when the number of experts differs from before."""
        self.counts[layer] = self.counts.get(layer, np.zeros_like(counts)) + counts
        self.distinct += distinct
        self.pass_layers += passes


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Whose routing: `task` is None for the performance runs of a system."""

    model: str
    system: str
    task: str | None


@dataclass(kw_only=True, slots=True)
class Evidence:
    """Everything kept of the runs."""

    routing: dict[Traffic, RoutingSums] = field(default_factory=dict)
    dummy_models: set[str] = field(default_factory=set)
    """Models that ran with random weights."""
    machines: dict[str, Manifest] = field(default_factory=dict)
    """Hardware fingerprint -> manifest of the first run on it."""
    peaks: dict[tuple[str, int], tuple[Peaks, ...]] = field(default_factory=dict)
    """(CPU or device model, CPUs used) -> the peaks known there."""
    remarks: dict[str, dict[str, None]] = field(default_factory=dict)
    """Flag, failed check or unknown quantity -> labels of the systems that it holds for."""


def collect(runs: Iterable[RunData], dropped: Collection[str] = ()) -> Evidence:
    """Read every run once. Runs of the `dropped` points (their ids) are left out: the study no longer asks for them."""
    evidence = Evidence()
    for run in runs:
        if run.manifest.point_id in dropped:
            continue
        _note_manifest(evidence, run.manifest)
        for window in run.manifest.windows:
            if window.phase in REPORTED:
                _add_window(evidence, run, window)
    return evidence


SOME_SAMPLES = re.compile(r"\d+ of \d+ samples: ")
"""A quantity that only some samples lack is known."""


def _note_manifest(evidence: Evidence, manifest: Manifest) -> None:
    point = manifest.spec.point
    evidence.machines.setdefault(manifest.fingerprint, manifest)
    evidence.peaks.setdefault((_hardware(manifest), manifest.placement.num_cpus), manifest.peaks)
    if "dummy_weights" in manifest.flags:
        evidence.dummy_models.add(point.model.name)
    told = [
        *(f"{name.replace('_', ' ')}: {why}" for name, why in manifest.flags.items()),
        *(f"failed check {name}: {seen}" for name, seen in manifest.checks_failed.items()),
        *(f"unknown {name}: {why}" for name, why in manifest.unknown.items() if not SOME_SAMPLES.match(why)),
    ]
    for remark in told:
        evidence.remarks.setdefault(remark, {})[point.system.name] = None


def _hardware(manifest: Manifest) -> str:
    return manifest.node.device_key if manifest.placement.device_uuids else manifest.node.cpu_model


def _add_window(evidence: Evidence, run: RunData, window: Window) -> None:
    point = run.manifest.spec.point
    task = window.label if window.phase is Phase.ACCURACY else None
    routing = run.routing.filter(pc.is_in(run.routing["pass_id"], value_set=_passes_inside(run.passes, window)))
    if routing.num_rows == 0:
        return
    sums = evidence.routing.setdefault(
        Traffic(model=point.model.name, system=point.system.name, task=task), RoutingSums()
    )
    for layer in routing["layer"].unique().to_pylist():
        rows = routing.filter(pc.equal(routing["layer"], layer))
        counts = rows["counts"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
        sums.add(layer, counts.sum(axis=0, dtype=np.int64), int(pc.sum(rows["distinct"]).as_py()), rows.num_rows)


def _passes_inside(passes: pa.Table, window: Window) -> pa.Array:
    """Ids of the valid passes that end inside the window."""
    ends = pc.add(passes["started_ns"], passes["duration_ns"])
    inside = pc.and_(pc.greater(ends, window.start_ns), pc.less_equal(ends, window.end_ns))
    return passes.filter(pc.and_(inside, passes["valid"]))["pass_id"].combine_chunks()

"""The report of a study: figures, tables and a summary, from what the store holds. It measures and reduces nothing.

Importing this loads no matplotlib; drawing does.
"""

# ruff: noqa: PLC0415  (figures are imported when drawn)

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecap.errors import StoreError
from moecap.records import Metric, StudyPlan
from moecap.report.comparison import compare
from moecap.report.console import console_table
from moecap.report.evidence import Evidence, collect
from moecap.report.silicon import silicon
from moecap.report.summary import summary
from moecap.report.tables import write_csv, write_json, write_markdown
from moecap.store import RunData

__all__ = ["console_table", "write_report"]


def write_report(
    metrics: Sequence[Metric], cap: Mapping[str, Any], runs: Iterable[RunData], plan: StudyPlan, out: Path
) -> list[Path]:
    """Write every file of the report into `out`, made if absent; `runs` is read once. Returns the paths.

    Raises StoreError when a file can't be written.
    """
    evidence = collect(runs, plan.dropped_points)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [*_write_figures(metrics, cap, evidence, plan, out), *_write_texts(metrics, cap, evidence, plan, out)]
    except OSError as error:
        raise StoreError(f"can't write the report into {out}: {error}; choose a folder that can be written") from error


def _write_figures(
    metrics: Sequence[Metric], cap: Mapping[str, Any], evidence: Evidence, plan: StudyPlan, out: Path
) -> list[Path]:
    from moecap.report.canvas import save
    from moecap.report.heatmap import activation_figure
    from moecap.report.radar import radar_figure

    units = {row.metric: row.unit for row in metrics}
    radar, activation = out / "cap_radar.png", out / "expert_activation.png"
    save(radar_figure(cap, plan, units), radar)
    save(activation_figure(evidence, plan), activation)
    return [radar, activation]


def _write_texts(
    metrics: Sequence[Metric], cap: Mapping[str, Any], evidence: Evidence, plan: StudyPlan, out: Path
) -> list[Path]:
    files = [out / name for name in ("summary.md", "metrics.md", "metrics.csv", "metrics.json")]
    page, readable, table, document = files
    page.write_text(summary(compare(metrics, cap, plan), silicon(metrics, plan), evidence, plan), encoding="utf-8")
    write_markdown(metrics, plan, readable)
    write_csv(metrics, table)
    write_json(metrics, document)
    return files

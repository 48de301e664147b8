"""The metrics as files: every row in full precision (CSV, JSON), and the points' values for reading (Markdown)."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from moecap.records import Metric, StudyPlan, to_jsonable
from moecap.report.format import UNKNOWN, markdown_cell, quantity, shown
from moecap.report.index import point_labels

COLUMNS = tuple(one.name for one in fields(Metric))


def write_csv(metrics: Sequence[Metric], path: Path) -> None:
    """One line per row under a header; an unknown value is an empty field."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, name) for name in COLUMNS] for row in metrics)


def write_json(metrics: Sequence[Metric], path: Path) -> None:
    """A list of objects with the columns of metrics.parquet; an unknown value is null."""
    path.write_text(json.dumps(to_jsonable(metrics), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def write_markdown(metrics: Sequence[Metric], plan: StudyPlan, path: Path) -> None:
    """Point-level rows, rounded; an unknown value is `–` with its reason."""
    headers = ("point", "metric", "phase", "stat", "peaks", "qualifiers", "value", "95 % interval", "price range", "n")
    labels = point_labels(plan)
    rows = [_cells(row, labels.get(row.id, f"{row.id} (dropped)")) for row in metrics if row.level == "point"]
    path.write_text(f"# {markdown_cell(plan.name)}: metrics by point\n\n{markdown_table(headers, rows)}\n", "utf-8")


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose cells are text, whatever they hold."""
    lines = [headers, ["---"] * len(headers), *([markdown_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Metric, label: str) -> tuple[str, ...]:
    value = shown(row) if row.value is not None else f"{UNKNOWN} ({row.missing_reason or 'no reason was recorded'})"
    stated = ", ".join(f"{key} {value}" for key, value in sorted(json.loads(row.qualifiers or "{}").items()))
    return (
        label, row.metric, row.phase or "all", row.stat, row.peak_source or "", stated, value,
        _interval(row, row.ci95_low, row.ci95_high), _interval(row, row.price_low, row.price_high), str(row.n),
    )  # fmt: skip


def _interval(row: Metric, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return " to ".join(quantity(row.metric, end, row.unit) for end in (low, high))

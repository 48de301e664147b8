"""The comparison as text for a terminal, at most 120 columns wide. It decides nothing about what is shown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from moecap.records import Metric, StudyPlan
from moecap.report.comparison import HEADERS, Section, compare

WIDTH = 120
GAP = "  "


def console_table(metrics: Sequence[Metric], cap: Mapping[str, Any], plan: StudyPlan) -> str:
    """One table per compared set, then the notes. A system whose name is too long has a line for it alone."""
    found = compare(metrics, cap, plan)
    if not found.sections:
        return "\n".join(["nothing to compare: no performance run is whole", *_noted(found.notes)])
    parts = [line for section in found.sections for line in (*_table(section), "")]
    return "\n".join([*parts, *_noted(found.notes)]).rstrip()


def _table(section: Section) -> list[str]:
    cells = [tuple(title for title, _ in HEADERS), tuple(unit for _, unit in HEADERS), *section.rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - len(GAP) * (len(widths) - 1))
    rule = GAP.join("-" * width for width in widths)
    lines = [line for row in cells for line in _lines(row, widths)]
    return [*textwrap.wrap(section.title, WIDTH), "", *lines[:2], rule, *lines[2:]]


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    name, *values = row
    above = [] if len(name) <= widths[0] else textwrap.wrap(name, WIDTH)
    aligned = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
    return [*above, GAP.join(["".ljust(widths[0]) if above else name.ljust(widths[0]), *aligned]).rstrip()]


def _noted(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]

"""Which of a metric's rows stands for it where only one is shown: in tables, figures and CAP. It changes no row."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from moecap.records import CostSpec, Metric, StudyPlan

DETAILS = frozenset({"task", "tier", "form", "component", "reason"})
"""Qualifiers of rows that are a part of the metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a study wants to see, of all that is always computed side by side."""

    peak_source: str
    cost: CostSpec = field(default_factory=CostSpec)

    def holds(self, row: Metric) -> bool:
        """Whether the row is the metric itself, against these peaks and charged this way."""
        stated = json.loads(row.qualifiers or "{}")
        basis, kind = stated.get("cost_basis", self.cost.basis), stated.get("price_kind", self.cost.kind)
        charged = (basis, kind) == (self.cost.basis, self.cost.kind)
        return charged and row.peak_source in (None, self.peak_source) and not stated.keys() & DETAILS


def asked_by(plan: StudyPlan) -> Asked:
    """What the plan wants."""
    return Asked(peak_source=plan.peaks, cost=plan.cost)

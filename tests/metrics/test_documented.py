"""Everything that a table may show is explained in docs/metrics.md."""

from __future__ import annotations

from pathlib import Path

import pytest

import moecap.metrics.reduce  # noqa: F401 - declares every metric
from moecap.metrics.cost import HOURS_PER_YEAR
from moecap.metrics.declare import METRICS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_explained(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize(
    "mark",
    [
        "disturbed", "unsteady peaks", "slow client", "low priority", "no load meets the slo", "overhead-bound",
        "concurrency not held", "short energy window", "energy disagreement: ...", "throttled in ...",
    ],
)  # fmt: skip
def test_every_mark_is_explained(mark: str) -> None:
    assert f"| `{mark}` |" in PAGE


def test_the_year_is_as_long_as_documented() -> None:
    assert HOURS_PER_YEAR == 8766
    assert "a year of 365.25 d" in PAGE

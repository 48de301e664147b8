from __future__ import annotations

from cluster.repeats import agree
from moecap.records import RepeatsSpec


def test_agreement_by_hand() -> None:
    """99, 100, 101: s = 1, n = 3: full width 2 x 4.303 / sqrt(3) = 4.969, of a mean of 100."""
    assert agree([99.0, 100.0, 101.0], RepeatsSpec(min=2, max=5, ci95_rel_width=0.0497))
    assert not agree([99.0, 100.0, 101.0], RepeatsSpec(min=2, max=5, ci95_rel_width=0.0496))


def test_too_few_repeats_never_agree() -> None:
    assert not agree([100.0, 100.0], RepeatsSpec(min=3, max=5))
    assert not agree([100.0], RepeatsSpec(min=1, max=5))


def test_equal_repeats_agree() -> None:
    assert agree([100.0, 100.0], RepeatsSpec(min=2, max=5))

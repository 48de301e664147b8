"""A number with the range that it may lie in, as prices are known. Ranges are bounds, not statistics.

Sums and multiples carry the ranges along: all low ends together, all high ends together, since prices move together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator

HOW = "write a number, {value, low, high}, or {value, relative} with the half-width as a share of the value"


@dataclass(frozen=True, slots=True)
class Uncertain:
    """`low <= value <= high`, none below 0."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (isfinite(self.high) and 0 <= self.low <= self.value <= self.high):
            raise ValueError(f"is not 0 <= low <= value <= high: {self.low}, {self.value}, {self.high}; {HOW}")

    def __add__(self, other: Uncertain) -> Uncertain:
        return Uncertain(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, other: Uncertain | float) -> Uncertain:
        by = exactly(other) if isinstance(other, int | float) else other
        return Uncertain(self.value * by.value, self.low * by.low, self.high * by.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high end."""
        return self.low, self.high


def exactly(value: float) -> Uncertain:
    """A number whose range is itself."""
    return Uncertain(value, value, value)


def total(parts: list[Uncertain]) -> Uncertain:
    """Sum of the parts."""
    return sum(parts, exactly(0.0))


def read(raw: Any) -> Uncertain:
    """A number, {value, low, high} or {value, relative}, as it stands in YAML. ValueError for anything else."""
    if isinstance(raw, Uncertain):
        return raw
    given = raw if isinstance(raw, Mapping) else {"value": raw}
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in given.values()):
        raise ValueError(f"holds something that is no number; {HOW}")
    value = given.get("value", -1.0)
    if given.keys() == {"value"}:
        return exactly(value)
    if given.keys() == {"value", "relative"}:
        return Uncertain(value, value * (1 - given["relative"]), value * (1 + given["relative"]))
    if given.keys() == {"value", "low", "high"}:
        return Uncertain(value, given["low"], given["high"])
    raise ValueError(f"has the keys {', '.join(map(str, given)) or 'none'}; {HOW}")


def _at_least_one(raw: Any) -> Uncertain:
    number = read(raw)
    if number.low < 1:
        raise ValueError("is below 1; write at least 1")
    return number


def _positive(raw: Any) -> Uncertain:
    number = read(raw)
    if number.value <= 0:
        raise ValueError("is not above 0; leave out what is unknown")
    return number


NotNegative = Annotated[Uncertain, BeforeValidator(read)]
Price = Annotated[Uncertain, BeforeValidator(_positive)]
AtLeastOne = Annotated[Uncertain, BeforeValidator(_at_least_one)]

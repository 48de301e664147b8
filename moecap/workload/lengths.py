"""How long prompts and outputs are: a number of tokens, or a distribution of it. It makes no prompt."""

from __future__ import annotations

import random
from math import exp
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

Tokens = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LogNormal(_Strict):
    """`{median: 512, sigma: 0.8, min: 16, max: 4096}`: what is drawn beyond a bound is set to it."""

    median: float = Field(ge=1)
    sigma: float = Field(gt=0)
    """Standard deviation of the logarithm."""
    min: Tokens = 1
    max: Tokens

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, value: int, info: Any) -> int:
        if value < info.data.get("min", 1):
            raise ValueError(f"is below min ({info.data['min']}); write at least that")
        return value


class Distribution(_Strict):
    """`{uniform: [16, 64]}`, both ends included, or `{lognormal: {...}}`."""

    uniform: tuple[Tokens, Tokens] | None = None
    lognormal: LogNormal | None = None

    @field_validator("uniform")
    @classmethod
    def _ascending(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"begins above its end; write [{value[1]}, {value[0]}]")
        return value

    @model_validator(mode="after")
    def _one_of_them(self) -> Distribution:
        if (self.uniform is None) == (self.lognormal is None):
            raise ValueError("is no distribution; write one of uniform: [a, b] and lognormal: {median, sigma, max}")
        return self


def _kind(value: Any) -> str:
    return "distribution" if isinstance(value, dict | Distribution) else "number"


Length = Annotated[
    Annotated[Tokens, Tag("number")] | Annotated[Distribution, Tag("distribution")],
    Discriminator(_kind),
]
"""What a study may write for a length."""


def shortest(length: int | Distribution) -> int:
    """The fewest tokens that it can be."""
    if isinstance(length, int):
        return length
    return length.uniform[0] if length.uniform else length.lognormal.min if length.lognormal else 1


def draw_length(length: int | Distribution, draw: random.Random) -> int:
    """One length in tokens."""
    if isinstance(length, int):
        return length
    if length.uniform:
        return draw.randint(*length.uniform)
    shape = length.lognormal
    assert shape is not None, "a distribution is one of the two"
    return min(shape.max, max(shape.min, round(shape.median * exp(draw.gauss(0.0, shape.sigma)))))

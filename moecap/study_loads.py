"""The keys of a study that say how requests arrive, and the loads and windows that they expand to.

It knows no workload: when a trace's requests come is told to it. What it makes is checked once more by the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from moecap.records import Arrival, LoadSpec, SearchSpec, SloSpec, WindowSpec

AUTO: Literal["auto"] = "auto"
DURATION_S = 60.0
"""Of an open loop that neither `requests` nor `duration_s` bounds."""
FILLING_REQUESTS = 8
"""Arrivals that fill an open loop before its window, where `warmup` doesn't say."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def distinct(values: list[Any]) -> list[Any]:
    """The same list. ValueError when a value is in it twice."""
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice; list it once")
    return values


def _concurrency(value: Any) -> int | str:
    if value != AUTO and (type(value) is not int or value < 1):
        raise ValueError(f"is no concurrency; write a whole number of at least 1, or {AUTO}")
    return value  # type: ignore[no-any-return]


def _rate(value: Any) -> float | str:
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"is no rate; write requests per second, a finite number above 0, or {AUTO}")
    return float(value)


def _listed(value: Any) -> Any:
    return [value] if value == AUTO else value


LOADS = (BeforeValidator(_listed), AfterValidator(distinct), Field(min_length=1))
SEARCH_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in fields(SearchSpec) if field.default is not MISSING
}


class Search(_Strict):
    """How `auto` is found."""

    start: float = Field(default=SEARCH_DEFAULTS["start"], gt=0)
    largest: float = Field(default=SEARCH_DEFAULTS["largest"], gt=0)
    resolution: float = Field(default=SEARCH_DEFAULTS["resolution"], gt=0, le=1)
    trial_requests: int = Field(default=SEARCH_DEFAULTS["trial_requests"], ge=3)
    trial_s: float = Field(default=SEARCH_DEFAULTS["trial_s"], gt=0)
    trial_min_requests: int = Field(default=SEARCH_DEFAULTS["trial_min_requests"], ge=3)

    @field_validator("largest")
    @classmethod
    def _not_below_start(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("start", value):
            raise ValueError(f"is below start ({info.data['start']:g}); write at least that")
        return value


class Sweep(_Strict):
    """Loads, one point each: numbers, or `auto`."""

    concurrency: Annotated[list[Annotated[Any, PlainValidator(_concurrency)]], *LOADS] | None = None
    rate_per_s: Annotated[list[Annotated[Any, PlainValidator(_rate)]], *LOADS] | None = None
    search: Search = Search()

    @property
    def loads(self) -> list[Any]:
        """Whichever of the two is swept."""
        return self.concurrency or self.rate_per_s or []


class Requests(_Strict):
    """How many requests a run of a closed loop has."""

    per_concurrency: int = Field(default=4, ge=3)
    min: int = Field(default=8, ge=3)


class Slo(_Strict):
    """Limits that a request must hold."""

    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    e2e_s: float | None = Field(default=None, gt=0)
    share: float = Field(default=0.99, gt=0, le=1)


class LoadKeys(_Strict):
    """Part of a study. Field order matters: a validator sees the fields above its own."""

    arrival: Arrival = "closed"
    burstiness: float | None = Field(default=None, gt=0, validate_default=True)
    max_concurrency: int | None = Field(default=None, ge=1)
    staggered: bool = True
    """Whether the first requests of a closed loop start spread over one generation."""
    sweep: Sweep = Field(default=Sweep(), validate_default=True)
    warmup: int | None = Field(default=None, ge=0)
    """Requests before the measurement; default: as many as the concurrency, in an open loop FILLING_REQUESTS."""
    requests: int | Requests = Requests()
    duration_s: float | None = Field(default=None, gt=0)
    slo: Slo | None = Field(default=None, validate_default=True)

    @field_validator("burstiness")
    @classmethod
    def _of_bursts(cls, value: float | None, info: ValidationInfo) -> float | None:
        arrival = info.data.get("arrival")
        if value is None and arrival == "burst":
            raise ValueError("is absent; write the shape of the gaps' Gamma distribution, below 1 for bursts")
        if value is not None and arrival not in ("burst", None):
            raise ValueError(f"has no meaning with arrival {arrival}; write arrival: burst, or leave it out")
        return value

    @field_validator("max_concurrency")
    @classmethod
    def _of_open_loops(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("arrival") == "closed":
            raise ValueError("caps an open loop; write sweep.concurrency for a closed one")
        return value

    @field_validator("staggered")
    @classmethod
    def _of_closed_loops(cls, value: bool, info: ValidationInfo) -> bool:
        arrival = info.data.get("arrival")
        if not value and arrival not in ("closed", None):
            raise ValueError(f"has no meaning with arrival {arrival}; leave it out")
        return value

    @field_validator("sweep")
    @classmethod
    def _as_they_arrive(cls, sweep: Sweep, info: ValidationInfo) -> Sweep:
        arrival = info.data.get("arrival", "closed")
        wanted = {"closed": "concurrency", "poisson": "rate_per_s", "burst": "rate_per_s"}.get(arrival)
        for name in ("concurrency", "rate_per_s"):
            if name != wanted and getattr(sweep, name) is not None:
                right = f"write {wanted} instead" if wanted else "leave it out: the trace says when requests come"
                raise ValueError(f"has {name}, which arrival {arrival} doesn't take; {right}")
        if wanted == "rate_per_s" and sweep.rate_per_s is None:
            raise ValueError(f"has no rate_per_s, which arrival {arrival} needs; write sweep: {{rate_per_s: [2.0]}}")
        return sweep if wanted != "concurrency" or sweep.concurrency else sweep.model_copy(update={"concurrency": [1]})

    @field_validator("requests")
    @classmethod
    def _three_rounds(cls, requests: int | Requests, info: ValidationInfo) -> int | Requests:
        swept = info.data["sweep"].concurrency or [] if "sweep" in info.data else []
        most = max((one for one in swept if one != AUTO), default=1)
        if isinstance(requests, int) and requests < 3 * most:
            raise ValueError(f"is too few for a steady window at concurrency {most}; write at least {3 * most}")
        return requests

    @field_validator("duration_s")
    @classmethod
    def _in_place_of_requests(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("arrival") == "closed":
            raise ValueError("bounds an open loop; write requests for a closed one")
        if value is not None and isinstance(info.data.get("requests"), int):
            raise ValueError("bounds the run, and so does requests; write one of them")
        return value

    @field_validator("slo")
    @classmethod
    def _what_to_search_for(cls, slo: Slo | None, info: ValidationInfo) -> Slo | None:
        limits = () if slo is None else (slo.ttft_s, slo.tpot_s, slo.e2e_s)
        if "sweep" in info.data and AUTO in info.data["sweep"].loads and not any(limits):
            raise ValueError(f"sets no limit that a load of {AUTO} could be searched for; write slo: {{tpot_s: 0.05}}")
        return slo


def expand_loads(study: LoadKeys, arrivals_s: Sequence[float] | None) -> Iterator[tuple[LoadSpec, WindowSpec]]:
    """Every load of the study with its window; a replay needs the times that its workload recorded."""
    plain: dict[str, Any] = {
        "arrival": study.arrival, "burstiness": study.burstiness, "max_concurrency": study.max_concurrency,
        "staggered": study.staggered,
    }  # fmt: skip
    if study.arrival == "trace":
        assert arrivals_s is not None, "was checked"
        yield LoadSpec(**plain), trace_window(study, arrivals_s)
    for size in study.sweep.loads:
        if size == AUTO:
            search = SearchSpec(slo=slo_spec(study) or SloSpec(), **study.sweep.search.model_dump())
            yield LoadSpec(**plain, search=search), _window(study, None)
        else:
            name = "concurrency" if study.arrival == "closed" else "rate_per_s"
            yield LoadSpec(**plain, **{name: size}), _window(study, size)


def slo_spec(study: LoadKeys) -> SloSpec | None:
    """As records hold it."""
    return SloSpec(**study.slo.model_dump()) if study.slo else None


def _window(study: LoadKeys, size: float | None) -> WindowSpec:
    """For a load of `size` in flight, or per second; None: of a size that is searched for."""
    wanted, is_open = study.requests, study.arrival != "closed"
    least = wanted if isinstance(wanted, int) else wanted.min
    per_load = 0.0
    if not isinstance(wanted, int):
        per_load = (study.duration_s or DURATION_S) if is_open else wanted.per_concurrency
    if size is None:
        filling = FILLING_REQUESTS if is_open else 0  # in a closed loop the trials are its warm-up
        warmup = filling if study.warmup is None else study.warmup
        return WindowSpec(warmup_requests=warmup, requests=least, per_load=float(max(per_load, 0 if is_open else 3)))
    warmup = study.warmup if study.warmup is not None else FILLING_REQUESTS if is_open else int(size)
    return WindowSpec(warmup_requests=warmup, requests=max(least, math.ceil(per_load * size)))


def trace_window(study: LoadKeys, arrivals_s: Sequence[float]) -> WindowSpec:
    """The first arrivals fill the system; after them all the others, `requests` of them, or those of `duration_s`."""
    warmup = min(FILLING_REQUESTS, len(arrivals_s) // 4) if study.warmup is None else study.warmup
    if isinstance(study.requests, int):
        return WindowSpec(warmup_requests=warmup, requests=study.requests)
    after = arrivals_s[warmup:]
    if study.duration_s is not None and after:
        after = [time_s for time_s in after if time_s <= after[0] + study.duration_s]
    return WindowSpec(warmup_requests=warmup, requests=len(after))

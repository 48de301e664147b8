"""Study YAML -> StudyPlan: one typed step that expands sweeps and names every impossible point.

Pydantic checks the file; everything after it sees frozen records. All problems of a file are reported at once, each
with key, value and remedy. It looks at no node and starts nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from moecap.accuracy import check_tasks
from moecap.engine import ENGINES
from moecap.errors import ConfigError, Problem, StudyError
from moecap.model.source import model_spec
from moecap.overrides import apply_overrides
from moecap.packaged import config_path
from moecap.prices import Prices, merged_prices
from moecap.records import (
    AccuracySpec,
    CapSpec,
    CostSpec,
    NodeKind,
    PointSpec,
    RepeatsSpec,
    StudyPlan,
    SystemSpec,
    WorkloadSpec,
)
from moecap.registry import known_names, resolve
from moecap.store import NAME
from moecap.study_loads import LoadKeys, distinct, expand_loads, slo_spec, trace_window
from moecap.workload import WORKLOADS
from moecap.workload.base import Workload

LAPTOP_STUDY = "studies/laptop.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("is no usable name; use letters, digits, '.', '_' and '-' (at most 100)")
    return value


def _engine(value: str) -> str:
    names = known_names(ENGINES, "moecap.engines")
    if value not in names:
        raise ValueError(f"no such engine; use one of {', '.join(names)}")
    return value


Name = Annotated[str, AfterValidator(_name)]
Share = Annotated[float, Field(ge=0, le=1)]


class _System(_Strict):
    name: Name
    engine: Annotated[str, AfterValidator(_engine)]
    node: NodeKind
    device: str = "any"
    args: dict[str, Any] = {}
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kv_dtype: Literal["auto"] = "auto"
    quantization: Literal["int8"] | None = None
    resident_share: Share | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None


class _Accuracy(_Strict):
    tasks: Annotated[tuple[str, ...], AfterValidator(check_tasks)] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)


class _Repeats(_Strict):
    min: int = Field(default=3, ge=1)
    max: int = Field(default=3, ge=1)
    ci95_rel_width: float = Field(default=0.05, gt=0)

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("min", 1):
            raise ValueError(f"is below repeats.min ({info.data['min']}); write at least that")
        return value


class _Cost(_Strict):
    basis: Literal["node", "footprint"] = "node"
    kind: Literal["purchase", "rental"] = "purchase"


class _Axes(_Strict):
    cost: str = CapSpec().cost
    accuracy: str = CapSpec().accuracy
    performance: str = CapSpec().performance


class _Cap(_Strict):
    axes: _Axes = _Axes()
    reference: str | None = None


class _Study(LoadKeys):
    """The file. Field order matters: a validator sees the fields above its own, those of LoadKeys first."""

    name: Name
    store: str = "moecap-store"
    models: Annotated[list[str], AfterValidator(distinct)] = Field(min_length=1)
    systems: list[_System] = Field(min_length=1)
    workloads: Annotated[list[dict[str, Any]], AfterValidator(distinct)] = Field(default=[])
    seed: int = 0
    deadline_s: float = Field(default=600.0, gt=0)
    order: Literal["listed", "random"] = "listed"
    cooldown_s: float = Field(default=0.0, ge=0)
    routing: Literal["counts", "tokens"] = "counts"
    accuracy: _Accuracy | None = Field(default=None, validate_default=True)
    repeats: _Repeats = _Repeats()
    peaks: Literal["catalogue", "calibrated"] = "calibrated"
    cost: _Cost = _Cost()
    cap: _Cap = _Cap()
    prices: dict[str, Any] = Field(default={})

    @field_validator("systems")
    @classmethod
    def _distinct_names(cls, systems: list[_System]) -> list[_System]:
        names = [system.name for system in systems]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"used twice: {', '.join(map(repr, twice))}; give each system its own name")
        return systems

    @field_validator("accuracy")
    @classmethod
    def _something_to_do(cls, accuracy: _Accuracy | None, info: ValidationInfo) -> _Accuracy | None:
        if accuracy is None and info.data.get("workloads") == []:
            raise ValueError("is absent, and so is workloads: nothing to measure; write workloads, accuracy or both")
        return accuracy


def load_study(
    path: Path | None, overrides: Sequence[str] = (), metric_names: Collection[str] | None = None
) -> StudyPlan:
    """Read, check and expand a study; None: the packaged laptop study.

    `overrides` are `a.b.0.c=YAML` (or `a+=YAML`). `metric_names` are what a CAP axis can be; None: not checked here.
    Raises StudyError with every problem, ConfigError for an unreadable file.
    """
    source = config_path(LAPTOP_STUDY) if path is None else path
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", "STUDY", str(source), "name a study file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", "STUDY", str(source), "mend the line it names") from error
    if not isinstance(raw, dict):
        raise ConfigError("holds no mapping", "STUDY", str(source), "write `name: ...`, `models: ...`, `systems: ...`")
    return parse_study(apply_overrides(raw, overrides), str(source), metric_names)


def parse_study(
    raw: Mapping[str, Any], source: str = "study", metric_names: Collection[str] | None = None
) -> StudyPlan:
    """A study as a mapping -> the plan. Raises StudyError with every problem."""
    problems: list[Problem] = []
    study: _Study | None = None
    try:
        study = _Study.model_validate(dict(raw))
    except ValidationError as error:
        problems += [_problem(dict(found), _Study) for found in error.errors()]
    workloads = list(_workloads(raw.get("workloads"), problems))
    _check_trace(study, workloads, problems)
    _check_prices(raw.get("prices"), problems)
    _check_cap(raw, metric_names, problems)
    models = list(_models(raw.get("models"), problems))
    if problems or study is None:
        raise StudyError(source, tuple(problems))
    return StudyPlan(
        name=study.name,
        store=study.store,
        points=tuple(_points(study, models, workloads)),
        repeats=RepeatsSpec(**study.repeats.model_dump()),
        order=study.order,
        cooldown_s=study.cooldown_s,
        deadline_s=study.deadline_s,
        slo=slo_spec(study),
        peaks=study.peaks,
        cost=CostSpec(**study.cost.model_dump()),
        cap=CapSpec(**study.cap.axes.model_dump(), reference=study.cap.reference),
        prices=study.prices,
    )


def freeze_devices(plan: StudyPlan, device_keys: Sequence[str]) -> StudyPlan:
    """`device: each` -> one point per device model present (none present: the point stays, and will be refused)."""
    points: list[PointSpec] = []
    for point in plan.points:
        keys = sorted(set(device_keys)) if point.system.device == "each" and device_keys else [point.system.device]
        points += [replace(point, system=replace(point.system, device=key)) for key in keys]
    return replace(plan, points=tuple(points))


def _models(raw: Any, problems: list[Problem]) -> Iterator[Any]:
    for index, name in enumerate(raw if isinstance(raw, list) else []):
        if isinstance(name, str):
            try:
                yield model_spec(name)
            except ConfigError as error:
                problems.append(Problem(key=f"models.{index}", value=name, message=error.message, remedy=error.remedy))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prompts:
    """A workload that was checked."""

    spec: WorkloadSpec
    arrivals_s: Sequence[float] | None
    """When its requests came, if it recorded that."""


def _workloads(raw: Any, problems: list[Problem]) -> Iterator[_Prompts]:
    known = known_names(WORKLOADS, "moecap.workloads")
    for index, entry in enumerate(raw if isinstance(raw, list) else []):
        if not isinstance(entry, dict):
            continue  # reported with the study's own fields
        if entry.get("type") not in known:
            key, remedy = f"workloads.{index}.type", f"use one of {', '.join(known)}"
            problems.append(Problem(key=key, value=entry.get("type"), message="no such workload", remedy=remedy))
            continue
        options = {key: value for key, value in entry.items() if key != "type"}
        kind: type[Workload] = resolve(WORKLOADS, "moecap.workloads", entry["type"])
        try:
            checked = kind.model_validate(options)
        except ValidationError as error:
            for found in error.errors():
                problem = _problem(dict(found), kind)
                problems.append(replace(problem, key=f"workloads.{index}.{problem.key}".rstrip(".")))
        else:
            spec = WorkloadSpec(type=entry["type"], options=checked.model_dump(mode="json", exclude_none=True))
            yield _Prompts(spec=spec, arrivals_s=checked.arrivals_s())


def _check_trace(study: _Study | None, workloads: Sequence[_Prompts], problems: list[Problem]) -> None:
    """A replay needs workloads that recorded times, and enough of them."""
    if study is None or study.arrival != "trace":
        return
    for index, one in enumerate(workloads):
        if one.arrivals_s is None:
            problems.append(
                Problem(
                    key=f"workloads.{index}.type", value=one.spec.type, message="recorded no arrival times",
                    remedy="use a workload of type trace, or another arrival",
                )
            )  # fmt: skip
            continue
        window = trace_window(study, one.arrivals_s)
        if window.requests < 3 or window.warmup_requests + window.requests > len(one.arrivals_s):
            told = f"is more or less than a trace of {len(one.arrivals_s)} requests can give after warm-up"
            remedy = f"plan 3 to {len(one.arrivals_s) - window.warmup_requests}, or fewer for warmup"
            problems.append(Problem(key="requests", value=window.requests, message=told, remedy=remedy))


def _check_prices(raw: Any, problems: list[Problem]) -> None:
    if not isinstance(raw, dict):
        return  # absent, or reported with the study's own fields
    try:
        Prices.model_validate(merged_prices(raw))
    except ValidationError as error:
        found = [_problem(dict(one), Prices) for one in error.errors()]
        problems += [replace(problem, key=f"prices.{problem.key}") for problem in found]


def _check_cap(raw: Mapping[str, Any], metric_names: Collection[str] | None, problems: list[Problem]) -> None:
    """Axes that are no metric, and a reference that is no system, whatever else is wrong with the systems."""
    cap, systems = raw.get("cap"), raw.get("systems")
    if not isinstance(cap, dict):
        return  # absent, or reported with the study's own fields
    axes = cap.get("axes")
    for axis, name in axes.items() if isinstance(axes, dict) else ():
        if axis in _Axes.model_fields and metric_names is not None and name not in metric_names:
            near = difflib.get_close_matches(str(name), metric_names, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(sorted(metric_names))}"
            problems.append(Problem(key=f"cap.axes.{axis}", value=name, message="is no metric", remedy=remedy))
    names = [one.get("name") for one in systems if isinstance(one, dict)] if isinstance(systems, list) else []
    reference = cap.get("reference")
    if reference is not None and reference not in names:
        remedy = f"use one of {', '.join(map(str, names))}"
        problems.append(
            Problem(key="cap.reference", value=reference, message="is no system of this study", remedy=remedy)
        )


def _points(study: _Study, models: Sequence[Any], workloads: Sequence[_Prompts]) -> Iterator[PointSpec]:
    """Points of one (model, system) stand together: they share a warm engine."""
    for model in models:
        for entry in study.systems:
            system = SystemSpec(**entry.model_dump())
            for workload in workloads:
                for load, window in expand_loads(study, workload.arrivals_s):
                    yield PointSpec(
                        model=model, system=system, workload=workload.spec, window=window, load=load, seed=study.seed,
                        routing=study.routing,
                    )  # fmt: skip
            if study.accuracy is not None:
                accuracy = AccuracySpec(**study.accuracy.model_dump())
                yield PointSpec(model=model, system=system, accuracy=accuracy, seed=study.seed, routing=study.routing)


def _problem(found: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    """One pydantic error of `model` as key, value, message and remedy."""
    location = [part for part in found["loc"] if part not in UNION_TAGS]
    key, last = ".".join(map(str, location)), str(location[-1]) if location else ""  # none: of the mapping as a whole
    if found["type"] == "extra_forbidden":
        known = sorted(_fields(model, location[:-1]))
        near = difflib.get_close_matches(last, known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return Problem(key=key, value=found["input"], message="unknown key", remedy=remedy)
    if found["type"] == "missing":
        return Problem(key=key, value=None, message="is missing", remedy=f"write {last}: ...")
    if found["type"] == "literal_error":
        remedy = f"use {found['ctx']['expected']}"
        return Problem(key=key, value=found["input"], message="is not one of the choices", remedy=remedy)
    # our validators write "what is wrong; what to do"; pydantic's messages say what the input should be
    message, _, remedy = found["msg"].removeprefix("Value error, ").partition("; ")
    if not remedy:
        message, remedy = "is not allowed", message.replace("Input should", "it should")
    return Problem(key=key, value=found["input"], message=message, remedy=remedy)


UNION_TAGS = ("int", "Requests", "number", "distribution", "[key]")
"""Pydantic puts the tried member of a union, or that a key is wrong, into the location; no reader's file has these."""


def _fields(model: type[BaseModel], location: Sequence[int | str]) -> dict[str, Any]:
    """Fields of the model at `location` below `model`."""
    fields: dict[str, Any] = dict(model.model_fields)
    for part in location:
        if isinstance(part, str) and part in fields:  # a mapping's keys are the reader's own
            fields = _inner_fields(fields[part].annotation)
    return fields


def _inner_fields(annotation: Any) -> dict[str, Any]:
    """Fields of the first pydantic model inside an annotation such as `list[_System]` or `_Slo | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict(annotation.model_fields)
    return next(filter(None, map(_inner_fields, getattr(annotation, "__args__", ()))), {})

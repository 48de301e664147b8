"""What recording vLLM workers wrote: as a file, and as the passes and routing of a run. It imports nothing of vLLM.

One file per worker that records: of every data-parallel replica, one per pipeline stage. Stages of a replica see the
same steps in the same order, each its own layers; replicas step on their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecap.errors import EngineError
from moecap.probe.counts import broken_invariant
from moecap.probe.vllm_counters import Counted
from moecap.probe.vllm_steps import Step
from moecap.records import LayerShape, ModelShape, PassRecord, Phase, RoutingRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Which worker of a deployment."""

    replica: int
    """Data-parallel rank."""
    pipeline: int
    num_pipeline: int
    tensor: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """One worker's recording. Times are monotonic_ns of its host, one per step."""

    ranks: Ranks
    layers: tuple[int, ...]
    """Decoder layers whose routers were observed."""
    steps: tuple[Step, ...]
    step_ids: tuple[int, ...]
    """Shared by the steps that replicas take together."""
    begun_ns: tuple[int, ...]
    """The device came to the step."""
    ended_ns: tuple[int, ...]
    observed_ns: int
    """Host time that was spent recording between the begin and end of steps."""
    counted: Counted | None
    """None: this worker has no MoE layers."""


def write_recording(folder: Path, recorded: Recorded) -> Path:
    """Into a file of its own in `folder`."""
    steps, ranks = recorded.steps, recorded.ranks
    arrays: dict[str, Any] = {
        "phase": np.array([step.phase.value for step in steps], dtype="U8"),
        "requests": np.array([len(step.query_lens) for step in steps], np.int32),
        "query_lens": np.array([length for step in steps for length in step.query_lens], np.int32),
        "context_lens": np.array([length for step in steps for length in step.context_lens], np.int32),
        "cached_tokens": np.array([step.cached_tokens for step in steps], np.int64),
        "logits_tokens": np.array([step.logits_tokens for step in steps], np.int64),
        "after_idle": np.array([step.after_idle for step in steps], np.bool_),
        "step_ids": np.array(recorded.step_ids, np.int64),
        "begun_ns": np.array(recorded.begun_ns, np.int64),
        "ended_ns": np.array(recorded.ended_ns, np.int64),
    }
    if recorded.counted is not None:
        counted = recorded.counted
        arrays |= {"rows": counted.rows, "counts": counted.counts, "padding": counted.padding}
        arrays |= {} if counted.token_ids is None else {"token_ids": counted.token_ids}
    about = {"ranks": asdict(ranks), "layers": recorded.layers, "observed_ns": recorded.observed_ns}
    path = folder / f"replica{ranks.replica}-stage{ranks.pipeline}-rank{ranks.tensor}.npz"
    with path.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)
    return path


def read_recording(path: Path) -> Recorded:
    """What `write_recording` wrote."""
    with np.load(path) as file:
        held: dict[str, NDArray[Any]] = dict(file)
    about = json.loads(str(held["about"]))
    ends = np.cumsum(held["requests"])[:-1]
    queries, contexts = (np.split(held[name], ends) for name in ("query_lens", "context_lens"))
    steps = tuple(
        Step(
            phase=Phase(str(held["phase"][i])), query_lens=tuple(queries[i].tolist()),
            context_lens=tuple(contexts[i].tolist()), cached_tokens=int(held["cached_tokens"][i]),
            logits_tokens=int(held["logits_tokens"][i]), after_idle=bool(held["after_idle"][i]),
        )
        for i in range(len(held["requests"]))
    )  # fmt: skip
    counted = (
        Counted(rows=held["rows"], counts=held["counts"], padding=held["padding"], token_ids=held.get("token_ids"))
        if "rows" in held
        else None
    )
    return Recorded(
        ranks=Ranks(**about["ranks"]), layers=tuple(about["layers"]), steps=steps,
        step_ids=tuple(held["step_ids"].tolist()), begun_ns=tuple(held["begun_ns"].tolist()),
        ended_ns=tuple(held["ended_ns"].tolist()), observed_ns=about["observed_ns"], counted=counted,
    )  # fmt: skip


def records_of(
    recordings: Sequence[Recorded], shape: ModelShape
) -> tuple[tuple[PassRecord, ...], tuple[RoutingRecord, ...]]:
    """Passes in the order in which they ended, and what their routers did. EngineError where stages don't fit
    together."""
    replicas: dict[int, list[Recorded]] = {}
    for one in sorted(recordings, key=lambda one: one.ranks.pipeline):
        if one.ranks.tensor == 0:
            replicas.setdefault(one.ranks.replica, []).append(one)
    drafts = sorted(
        (draft for stages in replicas.values() for draft in _drafts(stages)),
        key=lambda draft: draft.ended_ns,
    )
    passes, routing = [], list[RoutingRecord]()
    for pass_id, draft in enumerate(drafts):
        found = tuple(draft.routing(pass_id, shape))
        passes.append(draft.record(pass_id, found, shape))
        routing += found
    return tuple(passes), tuple(routing)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """A pass that has no id yet."""

    index: int
    stages: Sequence[Recorded]
    token: int
    """First of its tokens in what was kept."""
    previous_end_ns: int | None

    @property
    def step(self) -> Step:
        return self.stages[0].steps[self.index]

    @property
    def ended_ns(self) -> int:
        return self.stages[-1].ended_ns[self.index]

    def record(self, pass_id: int, routing: Sequence[RoutingRecord], shape: ModelShape) -> PassRecord:
        step, first = self.step, self.stages[0]
        begun_ns = first.begun_ns[self.index]
        after_idle = step.after_idle or self.previous_end_ns is None
        started_ns = begun_ns if after_idle or self.previous_end_ns is None else self.previous_end_ns
        rows = max(
            (int(stage.counted.rows[self.index]) for stage in self.stages if stage.counted is not None), default=0
        )
        reason = _broken(step, routing, shape, rows)
        return PassRecord(
            pass_id=pass_id, step_id=first.step_ids[self.index], replica=first.ranks.replica, phase=step.phase,
            started_ns=started_ns, launched_ns=begun_ns, duration_ns=self.ended_ns - started_ns,
            num_requests=len(step.query_lens), query_lens=step.query_lens, context_lens=step.context_lens,
            scheduled_tokens=step.tokens, cached_tokens=step.cached_tokens, logits_tokens=step.logits_tokens,
            padded_tokens=max(0, rows - step.tokens), accepted_tokens=None, valid=reason is None,
            invalid_reason=reason,
        )  # fmt: skip

    def routing(self, pass_id: int, shape: ModelShape) -> Iterator[RoutingRecord]:
        for stage in self.stages:
            if stage.counted is None or not stage.counted.rows[self.index]:
                continue
            for position, layer in enumerate(stage.layers):
                yield self._layer(pass_id, stage.counted, position, shape.layers[layer])

    def _layer(self, pass_id: int, counted: Counted, position: int, layer: LayerShape) -> RoutingRecord:
        counts = counted.counts[self.index, position]
        fired = counts > 0
        last = self.token + self.step.tokens
        ids = None if counted.token_ids is None else counted.token_ids[self.token : last, position]
        return RoutingRecord(
            pass_id=pass_id, layer=layer.index, counts=tuple(counts[: layer.num_experts].tolist()),
            distinct=int(np.count_nonzero(fired)),
            distinct_physical=int(np.count_nonzero(fired | counted.padding[self.index, position])),
            token_experts=None if ids is None else tuple(map(tuple, ids.tolist())),
        )  # fmt: skip


def _drafts(stages: Sequence[Recorded]) -> Iterator[_Draft]:
    """Of one replica, all of whose stages must be there."""
    ranks = stages[0].ranks
    if [one.ranks.pipeline for one in stages] != list(range(ranks.num_pipeline)):
        raise EngineError(f"replica {ranks.replica}: {len(stages)} of {ranks.num_pipeline} pipeline stages recorded")
    lengths = {len(one.steps) for one in stages}
    if len(lengths) > 1:
        raise EngineError(f"replica {ranks.replica}: pipeline stages recorded {sorted(lengths)} steps")
    token, previous_end_ns = 0, None
    for index, step in enumerate(stages[0].steps):
        yield _Draft(index=index, stages=stages, token=token, previous_end_ns=previous_end_ns)
        token += step.tokens
        previous_end_ns = stages[-1].ended_ns[index]


def _broken(step: Step, routing: Sequence[RoutingRecord], shape: ModelShape, rows: int) -> str | None:
    layers: Mapping[int, LayerShape] = {layer.index: layer for layer in shape.layers if layer.num_experts}
    if not layers:
        return None
    if rows < step.tokens:
        return f"the routers saw {rows} rows of {step.tokens} tokens"
    seen = [one.layer for one in routing]
    if seen != list(layers):
        return f"{len(seen)} of {len(layers)} MoE layers were observed"
    broken = [
        f"layer {one.layer}: {why}"
        for one in routing
        if (why := broken_invariant(
            one.counts, one.distinct, step.tokens, layers[one.layer].top_k, layers[one.layer].num_experts
        ))
    ]  # fmt: skip
    return "; ".join(broken) or None

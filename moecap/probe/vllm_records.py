"""Recordings of all workers of a vLLM deployment -> the passes and routing of a run.

Every worker of every data-parallel replica must be there: a server tells what one replica's workers answer, so that
nobody would miss the others. Routing is kept in columns: 20,000 passes of 48 layers are a million records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moecap.errors import EngineError
from moecap.probe.counts import broken_invariant
from moecap.probe.vllm_counters import Counted
from moecap.probe.vllm_recording import Recorded
from moecap.probe.vllm_steps import Step
from moecap.records import LayerShape, ModelShape, PassRecord, RoutingRecord
from moecap.schema import ROUTING, Rows

CHUNK_VALUES = 2**24
"""Counts, and ids, that are brought into columns at a time: far below the 2**31 that one list column can hold."""


def records_of(recordings: Sequence[Recorded], shape: ModelShape) -> tuple[tuple[PassRecord, ...], Rows[RoutingRecord]]:
    """Passes in the order in which they ended, and what their routers did. EngineError where recordings are missing or
    stages don't fit together."""
    _check_complete(recordings)
    replicas: dict[int, list[Recorded]] = {}
    for one in sorted(recordings, key=lambda one: one.ranks.pipeline):
        if one.ranks.tensor == 0:
            replicas.setdefault(one.ranks.replica, []).append(one)
    drafts = sorted(chain.from_iterable(map(_drafts, replicas.values())), key=lambda draft: draft.ended_ns)
    first_step = min((draft.step_id for draft in drafts), default=0)
    layers = {layer.index: layer for layer in shape.layers if layer.num_experts}
    passes, tables = list[PassRecord](), [ROUTING.empty_table()]
    for chunk in _chunks(drafts):
        table, seen = _routing(chunk, len(passes), layers)
        tables.append(table)
        passes += [
            draft.record(len(passes) + place, first_step, _broken(draft.step, seen[place], layers, draft.rows))
            for place, draft in enumerate(chunk)
        ]
    return tuple(passes), Rows(pa.concat_tables(tables), RoutingRecord)


def _check_complete(recordings: Sequence[Recorded]) -> None:
    if not recordings:
        raise EngineError("no worker recorded")
    first = recordings[0].ranks
    found = {(one.ranks.replica, one.ranks.pipeline, one.ranks.tensor) for one in recordings}
    wanted = set(product(range(first.num_replicas), range(first.num_pipeline), range(first.num_tensor)))
    if found != wanted:
        raise EngineError(
            f"of {len(wanted)} workers that record together, those of (replica, stage, rank) "
            f"{sorted(wanted - found)} did not, and {sorted(found - wanted)} are not among them"
        )


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
    def step_id(self) -> int:
        return self.stages[0].step_ids[self.index]

    @property
    def ended_ns(self) -> int:
        return self.stages[-1].ended_ns[self.index]

    @property
    def rows(self) -> int:
        """That its routers saw."""
        return max(
            (int(stage.counted.rows[self.index]) for stage in self.stages if stage.counted is not None), default=0
        )

    @property
    def routed(self) -> Iterator[tuple[Counted, tuple[int, ...]]]:
        """Stages that its tokens were routed in, with their layers."""
        for stage in self.stages:
            if stage.counted is not None and stage.counted.rows[self.index]:
                yield stage.counted, stage.layers

    def record(self, pass_id: int, first_step: int, broken: str | None) -> PassRecord:
        step, first = self.step, self.stages[0]
        begun_ns = first.begun_ns[self.index]
        after_idle = step.after_idle or self.previous_end_ns is None
        started_ns = begun_ns if after_idle or self.previous_end_ns is None else self.previous_end_ns
        return PassRecord(
            pass_id=pass_id, step_id=self.step_id - first_step, replica=first.ranks.replica, phase=step.phase,
            started_ns=started_ns, launched_ns=begun_ns, duration_ns=self.ended_ns - started_ns,
            num_requests=len(step.query_lens), query_lens=step.query_lens, context_lens=step.context_lens,
            scheduled_tokens=step.tokens, cached_tokens=step.cached_tokens, logits_tokens=step.logits_tokens,
            padded_tokens=max(0, self.rows - step.tokens), accepted_tokens=None, valid=broken is None,
            invalid_reason=broken,
        )  # fmt: skip


def _drafts(stages: Sequence[Recorded]) -> Iterator[_Draft]:
    """Of one replica."""
    lengths = {len(one.steps) for one in stages}
    if len(lengths) > 1:
        replica = stages[0].ranks.replica
        raise EngineError(f"replica {replica}: pipeline stages recorded {sorted(lengths)} steps")
    token, previous_end_ns = 0, None
    for index, step in enumerate(stages[0].steps):
        yield _Draft(index=index, stages=stages, token=token, previous_end_ns=previous_end_ns)
        token += step.tokens
        previous_end_ns = stages[-1].ended_ns[index]


def _chunks(drafts: Sequence[_Draft]) -> Iterator[Sequence[_Draft]]:
    """Neighbouring passes, as many as make about CHUNK_VALUES counts or ids."""
    begin, values = 0, 0
    for place, draft in enumerate(drafts):
        values += sum(_num_values(counted, draft.step.tokens) for counted, _ in draft.routed)
        if values > CHUNK_VALUES:
            yield drafts[begin : place + 1]
            begin, values = place + 1, 0
    if begin < len(drafts):
        yield drafts[begin:]


def _num_values(counted: Counted, tokens: int) -> int:
    """Of one pass, in its largest column."""
    _, layers, experts = counted.counts.shape
    top_k = 0 if counted.token_ids is None else counted.token_ids.shape[2]
    return int(layers * max(experts, tokens * top_k))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What was seen of one pass, by layer."""

    layers: Sequence[int]
    assigned: Sequence[int]
    distinct: Sequence[int]


def _routing(drafts: Sequence[_Draft], first_id: int, layers: Mapping[int, LayerShape]) -> tuple[pa.Table, list[_Seen]]:
    """Rows of these passes, in their order."""
    parts = [(draft, counted) for draft in drafts for counted, _ in draft.routed]
    if not parts:
        return ROUTING.empty_table(), [_Seen(layers=(), assigned=(), distinct=())] * len(drafts)
    in_passes = [[layer for _, own in draft.routed for layer in own] for draft in drafts]
    experts = max(layer.num_experts for layer in layers.values())  # a router may be built for redundant ones too
    counts = np.concatenate([counted.counts[draft.index, :, :experts] for draft, counted in parts]).astype(np.uint32)
    padding = np.concatenate([counted.padding[draft.index, :, :experts] for draft, counted in parts])
    fired = counts > 0
    assigned, distinct = counts.sum(axis=1), np.count_nonzero(fired, axis=1)
    sizes = [len(found) for found in in_passes]
    table = pa.table(
        {
            "pass_id": np.repeat(np.arange(first_id, first_id + len(drafts)), sizes),
            "layer": np.fromiter(chain.from_iterable(in_passes), np.int32),
            "counts": _lists(counts),
            "distinct": distinct.astype(np.int32),
            "distinct_physical": np.count_nonzero(fired | padding, axis=1).astype(np.int32),
            "token_experts": _token_experts(parts),
        },
        schema=ROUTING,
    )  # fmt: skip
    ends = np.cumsum(sizes)[:-1]
    seen = [
        _Seen(layers=found, assigned=one.tolist(), distinct=other.tolist())
        for found, one, other in zip(in_passes, np.split(assigned, ends), np.split(distinct, ends), strict=True)
    ]
    return table, seen


def _lists(rows: NDArray[Any]) -> pa.Array:
    """[rows, n] as lists of n."""
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, rows.reshape(-1))


def _token_experts(parts: Sequence[tuple[_Draft, Counted]]) -> pa.Array:
    """By row, the experts of each token; nulls where no ids were kept."""
    num_layers = [counted.counts.shape[1] for _, counted in parts]
    tokens = [draft.step.tokens for draft, _ in parts]
    ids = [
        counted.token_ids[draft.token : draft.token + count].transpose(1, 0, 2).reshape(layers * count, -1)
        for (draft, counted), layers, count in zip(parts, num_layers, tokens, strict=True)
        if counted.token_ids is not None
    ]
    if len(ids) < len(parts):
        return pa.nulls(sum(num_layers), ROUTING.field("token_experts").type)
    offsets = np.concatenate([[0], np.cumsum(np.repeat(tokens, num_layers))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, _lists(np.concatenate(ids).astype(np.int32)))


def _broken(step: Step, seen: _Seen, layers: Mapping[int, LayerShape], rows: int) -> str | None:
    if not layers:
        return None
    if rows < step.tokens:
        return f"the routers saw {rows} rows of {step.tokens} tokens"
    if list(seen.layers) != list(layers):
        return f"{len(seen.layers)} of {len(layers)} MoE layers were observed"
    broken = [
        f"layer {layer.index}: {why}"
        for layer, assigned, distinct in zip(layers.values(), seen.assigned, seen.distinct, strict=True)
        if (why := broken_invariant(assigned, distinct, step.tokens, layer.top_k, layer.num_experts))
    ]
    return "; ".join(broken) or None

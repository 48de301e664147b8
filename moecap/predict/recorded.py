"""Stored runs -> routing to be replayed: their valid passes, in order. Reads tables; decides nothing about layouts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.errors import StoreError
from moecap.predict.routing import Ints, Routing
from moecap.records import ModelShape, Phase
from moecap.store import RunData

COUNTED_PHASES = (Phase.STEADY, Phase.ACCURACY)


def recorded_routing(runs: Iterable[RunData], phase: str | None = None) -> Routing:
    """All valid passes of the runs that end inside a measurement window, one run after the other; of one `phase`
    (prefill, decode), or of all.

    Every pass is taken as one step of the deployment. Tokens' experts are kept if every pass has them. StoreError when
    there is no routing, or layers differ in experts or top-k.
    """
    found = [one for run in runs if (one := _of_run(run, phase)) is not None]
    if not found:
        raise StoreError(f"the store has no routing of valid {phase or ''} passes; launch a study that records some")
    first = found[0]
    if any((one.layers, one.top_k, one.num_experts) != (first.layers, first.top_k, first.num_experts) for one in found):
        raise StoreError("the store's runs have models of different layers, experts or top-k; pass --study with one")
    ids = [one.token_experts for one in found if one.token_experts is not None]
    return Routing(
        layers=first.layers, top_k=first.top_k, tokens=np.concatenate([one.tokens for one in found]),
        counts=np.concatenate([one.counts for one in found]),
        token_experts=np.concatenate(ids) if len(ids) == len(found) else None,
    )  # fmt: skip


def experts_of(shape: ModelShape) -> tuple[tuple[int, ...], int, int]:
    """MoE layers, experts and top-k, the same in all of them. StoreError where they differ."""
    moe = [layer for layer in shape.layers if layer.num_experts]
    kinds = {(layer.num_experts, layer.top_k) for layer in moe}
    if len(kinds) != 1:
        told = "has no MoE layer" if not moe else f"has layers of different experts or top-k ({sorted(kinds)})"
        raise StoreError(f"{shape.name} {told}; expert parallelism is replayed for equal MoE layers only")
    ((num_experts, top_k),) = kinds
    return tuple(layer.index for layer in moe), num_experts, top_k


def _of_run(run: RunData, phase: str | None) -> Routing | None:
    layers, num_experts, top_k = experts_of(run.manifest.shape)
    passes = _counted(run, phase)
    routing = run.routing.filter(pc.is_in(run.routing["pass_id"], value_set=passes["pass_id"]))
    if routing.num_rows == 0:
        return None
    routing = routing.sort_by([("pass_id", "ascending"), ("layer", "ascending")]).combine_chunks()
    if routing.num_rows != passes.num_rows * len(layers):
        raise StoreError(f"run {run.manifest.run_id} lacks routing of some layers of its valid passes; run it again")
    tokens = passes["scheduled_tokens"].to_numpy().astype(np.int64)
    shape = (passes.num_rows, len(layers), -1)
    counts = routing["counts"].combine_chunks().flatten().to_numpy().reshape(shape)[:, :, :num_experts]
    return Routing(
        layers=layers, top_k=top_k, tokens=tokens, counts=counts.astype(np.int64),
        token_experts=_token_experts(routing["token_experts"], tokens, len(layers), top_k),
    )  # fmt: skip


def _counted(run: RunData, phase: str | None) -> pa.Table:
    """Valid passes that end inside a window, by pass id."""
    ends = pc.add(run.passes["started_ns"], run.passes["duration_ns"])
    chosen = pa.array(np.zeros(run.passes.num_rows, dtype=np.bool_))
    for window in run.manifest.windows:
        if window.phase in COUNTED_PHASES:
            inside = pc.and_(pc.greater(ends, window.start_ns), pc.less_equal(ends, window.end_ns))
            chosen = pc.or_(chosen, inside)
    chosen = pc.and_(chosen, run.passes["valid"])
    if phase is not None:
        chosen = pc.and_(chosen, pc.equal(run.passes["phase"], phase))
    return run.passes.filter(chosen).sort_by("pass_id")


def _token_experts(column: pa.ChunkedArray, tokens: Ints, layers: int, top_k: int) -> Ints | None:
    """Rows are pass after pass, layer after layer, tokens inside -> [all tokens, layers, top_k]; None: not kept."""
    if column.null_count:
        return None
    flat = column.combine_chunks().flatten().flatten().to_numpy().reshape(-1, top_k)
    starts = np.repeat(np.cumsum(tokens) - tokens, tokens)
    of_pass = np.repeat(tokens, tokens)
    within = np.arange(len(starts)) - starts
    rows = (starts * layers + within)[:, None] + of_pass[:, None] * np.arange(layers)
    found: Ints = flat[rows]
    return found

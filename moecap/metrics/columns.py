"""Recorded tables as numpy columns: the types that metrics compute with. Which rows count is decided in `view`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moecap.records import Phase

NS = 1e-9
PHASES: tuple[str | None, ...] = (None, Phase.PREFILL.value, Phase.DECODE.value)
"""None: all passes, mixed ones too."""
NO_PASSES = "no valid pass of the phase ended inside the window"

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """The counted passes of a window, one element per pass; `query`, `context` and `row` one per (pass, request)."""

    pass_id: Ints
    replica: Ints
    phase: NDArray[np.str_]
    started_ns: Ints
    launched_ns: Ints
    duration_s: Floats
    num_requests: Ints
    scheduled_tokens: Ints
    logits_tokens: Ints
    padded_tokens: Ints
    query: Ints
    """Tokens computed."""
    context: Ints
    """Tokens attended at the pass's end."""
    row: Ints
    """Index of the pass."""

    def __len__(self) -> int:
        return len(self.pass_id)

    def where(self, phase: str | None) -> Bools:
        """Passes of a phase."""
        return np.ones(len(self), dtype=np.bool_) if phase is None else self.phase == phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Per counted pass (rows) and MoE layer (columns, in layer order)."""

    layers: Ints
    distinct: Ints
    distinct_physical: Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Every request of the run that was served or failed, one element each."""

    scheduled_ns: Ints
    """-1: it had no time."""
    sent_ns: Ints
    first_token_ns: Ints
    """-1: none."""
    end_ns: Ints
    input_tokens: Ints
    output_tokens: Ints
    ok: Bools
    chunk_ns: Ints
    """One per (request, chunk), as `chunk_tokens` and `chunk_row`."""
    chunk_tokens: Ints
    """-1: unknown."""
    chunk_row: Ints

    def __len__(self) -> int:
        return len(self.sent_ns)


def column(table: pa.Table, name: str) -> Ints:
    """An integer column; null as -1."""
    values: Ints = pc.fill_null(table[name], -1).to_numpy().astype(np.int64)
    return values


def flat(lists: Any) -> tuple[Ints, Ints]:
    """A list column -> its values one after the other, null as -1, and the row that each comes from."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    values: Ints = pc.fill_null(pc.list_flatten(lists).cast(pa.int64()), -1).to_numpy()
    return values, np.repeat(np.arange(len(lengths)), lengths)


def passes_of(table: pa.Table) -> Passes:
    """Rows of the table of passes."""
    query, row = flat(table["query_lens"])
    context, _ = flat(table["context_lens"])
    return Passes(
        pass_id=column(table, "pass_id"), replica=column(table, "replica"),
        phase=np.array(table["phase"].to_pylist(), dtype=np.str_),
        started_ns=column(table, "started_ns"), launched_ns=column(table, "launched_ns"),
        duration_s=column(table, "duration_ns") * NS, num_requests=column(table, "num_requests"),
        scheduled_tokens=column(table, "scheduled_tokens"), logits_tokens=column(table, "logits_tokens"),
        padded_tokens=column(table, "padded_tokens"), query=query, context=context, row=row,
    )  # fmt: skip


def routing_of(table: pa.Table, passes: Passes) -> Routing:
    """Distinct experts of these passes; a valid pass has a row for every MoE layer."""
    ids = passes.pass_id
    table = table.filter(pc.is_in(table["pass_id"], value_set=pa.array(ids, pa.int64())))
    layers = np.unique(column(table, "layer"))
    at = (
        np.searchsorted(ids, column(table, "pass_id"), sorter=(order := np.argsort(ids, kind="stable"))),
        np.searchsorted(layers, column(table, "layer")),
    )
    rows = order[at[0]]
    found = {}
    for name in ("distinct", "distinct_physical"):
        matrix = np.zeros((len(ids), len(layers)), dtype=np.int64)
        matrix[rows, at[1]] = column(table, name)
        found[name] = matrix
    return Routing(layers=layers, **found)

"""Arrow schemas of the store's tables (versioned), and records to and from them. It knows no path and no file.

Columns may be added; a change of meaning raises SCHEMA_VERSION.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar, overload

import pyarrow as pa

SCHEMA_VERSION = 1
TOKENS = pa.list_(pa.int32())
ROWS_AT_A_TIME = 1024

PASSES = pa.schema(
    [
        ("pass_id", pa.int64()), ("step_id", pa.int64()), ("replica", pa.int32()), ("phase", pa.string()),
        ("started_ns", pa.int64()), ("launched_ns", pa.int64()), ("duration_ns", pa.int64()),
        ("num_requests", pa.int32()), ("query_lens", TOKENS), ("context_lens", TOKENS),
        ("scheduled_tokens", pa.int32()), ("cached_tokens", pa.int32()), ("logits_tokens", pa.int32()),
        ("padded_tokens", pa.int32()), ("accepted_tokens", pa.int32()), ("valid", pa.bool_()),
        ("invalid_reason", pa.string()),
    ]
)  # fmt: skip
ROUTING = pa.schema(
    [
        ("pass_id", pa.int64()), ("layer", pa.int32()), ("counts", pa.list_(pa.uint32())), ("distinct", pa.int32()),
        ("distinct_physical", pa.int32()), ("token_experts", pa.list_(TOKENS)),
    ]
)  # fmt: skip
TIERS = pa.schema(
    [
        ("pass_id", pa.int64()), ("tier", pa.string()), ("bytes_read", pa.int64()), ("expert_hits", pa.int32()),
        ("expert_misses", pa.int32()), ("stall_ns", pa.int64()),
    ]
)  # fmt: skip
REQUESTS = pa.schema(
    [
        ("request_id", pa.string()), ("attempt", pa.int32()), ("item_index", pa.int64()), ("replica", pa.int32()),
        ("scheduled_ns", pa.int64()), ("sent_ns", pa.int64()), ("first_token_ns", pa.int64()), ("end_ns", pa.int64()),
        ("chunk_ns", pa.list_(pa.int64())), ("chunk_tokens", TOKENS), ("input_tokens", pa.int32()),
        ("cached_tokens", pa.int32()), ("output_tokens", pa.int32()), ("status", pa.string()), ("error", pa.string()),
    ]
)  # fmt: skip
HOSTS = pa.schema(
    [
        ("time_ns", pa.int64()), ("host", pa.string()), ("cpu_utilisation", pa.float64()),
        ("memory_used_bytes", pa.int64()), ("engine_rss_bytes", pa.int64()), ("package_energy_j", pa.float64()),
        ("dram_energy_j", pa.float64()), ("disk_read_bytes", pa.int64()), ("disk_written_bytes", pa.int64()),
        ("network_sent_bytes", pa.int64()), ("network_received_bytes", pa.int64()),
    ]
)  # fmt: skip
DEVICES = pa.schema(
    [
        ("time_ns", pa.int64()), ("device_id", pa.string()), ("energy_j", pa.float64()), ("power_w", pa.float64()),
        ("power_average_w", pa.float64()), ("module_power_w", pa.float64()), ("memory_power_w", pa.float64()),
        ("gpu_utilisation", pa.float64()), ("memory_utilisation", pa.float64()), ("memory_used_bytes", pa.int64()),
        ("sm_clock_hz", pa.int64()), ("memory_clock_hz", pa.int64()), ("temperature_c", pa.float64()),
        ("memory_temperature_c", pa.float64()), ("throttle_reasons", pa.list_(pa.string())),
        ("pcie_sent_bytes_per_s", pa.float64()), ("pcie_received_bytes_per_s", pa.float64()),
        ("nvlink_sent_bytes", pa.int64()), ("nvlink_received_bytes", pa.int64()), ("dram_active_s", pa.float64()),
        ("sm_active_s", pa.float64()), ("tensor_active_s", pa.float64()), ("gpm_pcie_sent_bytes", pa.float64()),
        ("gpm_pcie_received_bytes", pa.float64()), ("gpm_nvlink_sent_bytes", pa.float64()),
        ("gpm_nvlink_received_bytes", pa.float64()),
    ]
)  # fmt: skip
SAMPLES = pa.schema(
    [
        ("task", pa.string()), ("item_id", pa.string()), ("repeat", pa.int32()), ("raw_output", pa.string()),
        ("score", pa.float64()), ("status", pa.string()),
    ]
)  # fmt: skip
METRICS = pa.schema(
    [
        ("level", pa.string()), ("id", pa.string()), ("metric", pa.string()), ("phase", pa.string()),
        ("scope", pa.string()), ("stat", pa.string()), ("peak_source", pa.string()), ("qualifiers", pa.string()),
        ("unit", pa.string()), ("value", pa.float64()), ("missing_reason", pa.string()), ("n", pa.int64()),
        ("ci95_low", pa.float64()), ("ci95_high", pa.float64()), ("price_low", pa.float64()),
        ("price_high", pa.float64()),
    ]
)  # fmt: skip
RUN_TABLES: dict[str, pa.Schema] = {
    "passes": PASSES, "routing": ROUTING, "tiers": TIERS, "requests": REQUESTS, "hosts": HOSTS, "devices": DEVICES,
    "samples": SAMPLES,
}  # fmt: skip


R = TypeVar("R")


class Rows(Sequence[R]):
    """Rows of a table as records, each made when it is looked at: a long recording fits memory as columns only."""

    def __init__(self, table: pa.Table, record: type[R]) -> None:
        self.table, self._record = table, record

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[R]:
        for batch in self.table.to_batches(max_chunksize=ROWS_AT_A_TIME):
            yield from rows_of(batch, self._record)

    @overload
    def __getitem__(self, at: int) -> R: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[R]: ...
    def __getitem__(self, at: int | slice) -> R | Sequence[R]:
        if isinstance(at, slice):
            return [self[row] for row in range(len(self))[at]]
        return rows_of(self.table.slice(range(len(self))[at], 1), self._record)[0]  # IndexError beyond the last


def table_of(schema: pa.Schema, records: Iterable[Any]) -> pa.Table:
    """Records as an Arrow table: one column per schema field, read from the attribute of the same name."""
    if isinstance(records, Rows):
        return records.table.cast(schema)
    rows = list(records)
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


def rows_of(table: pa.Table | pa.RecordBatch, record: type[R]) -> list[R]:
    """The reverse of `table_of`."""
    names = [f.name for f in fields(record)]  # type: ignore[arg-type]
    return [record(**{name: _frozen(row[name]) for name in names}) for row in table.to_pylist()]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value

"""The store: runs as Parquet tables and manifests, the plan, the ledger, the results and the study's lease.

Everything is written as whole new objects through `pyarrow.fs` (local path, `s3://`, `gs://`); a run's manifest is
written last. The layout is here, the columns are in `moecap/schema.py`. It knows no engine, no Ray and no metric.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from moecap.errors import ConfigError, LeaseHeldError, StoreError
from moecap.records import Manifest, Metric, Placement, Refusal, StudyPlan, to_jsonable
from moecap.schema import METRICS, RUN_TABLES, SCHEMA_VERSION, rows_of, table_of

LEASE_TIMEOUT_S = 60.0
"""A lease without a heartbeat for this long is dead."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a study may be called: names become paths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """One run as it lies in the store. Tables that the run didn't write are empty, never absent."""

    manifest: Manifest
    passes: pa.Table
    routing: pa.Table
    tiers: pa.Table
    requests: pa.Table
    hosts: pa.Table
    samples: pa.Table


class Store:
    """One study in one store root."""

    def __init__(self, root: str, study: str) -> None:
        """Open, creating nothing. ConfigError for a study name that can't be a path, StoreError for a bad root."""
        if not NAME.fullmatch(study):
            raise ConfigError("is no study name", "name", study, "use letters, digits, '.', '_' and '-' (at most 100)")
        self.root, self.study = root, study
        self.fs, base = _filesystem(root)
        self.base = f"{base}/{study}"

    # -- plan

    def write_plan(self, plan: StudyPlan, placements: Mapping[str, Placement | Refusal]) -> None:
        """The resolved study and where each point goes (point_id -> placement or refusal)."""
        self._write_json("plan.json", {"plan": to_jsonable(plan), "placements": to_jsonable(placements)})

    def read_plan(self) -> StudyPlan | None:
        """The plan; None when the store doesn't hold this study."""
        found = self._read_json("plan.json")
        return None if found is None else _decode(StudyPlan, found["plan"], f"{self.base}/plan.json")

    # -- runs

    def whole_runs(self) -> dict[str, tuple[str, int, str]]:
        """run_id -> (point_id, repeat, fingerprint) of every run whose manifest is present."""
        found = {}
        for run_id in self._names("runs"):
            manifest = self._read_json(f"runs/{run_id}/manifest.json")
            if manifest is not None:
                found[run_id] = (manifest["point_id"], manifest["spec"]["repeat"], manifest["fingerprint"])
        return found

    def is_whole(self, run_id: str) -> bool:
        """Whether this run's manifest is present."""
        return self._exists(f"runs/{run_id}/manifest.json")

    def write_run(self, run: RunData) -> None:
        """Tables first, the manifest last. What an attempt that was interrupted left there is removed before."""
        folder = f"runs/{run.manifest.run_id}"
        self._remove(folder)
        for name, schema in RUN_TABLES.items():
            table: pa.Table = getattr(run, name)
            if table.num_rows:
                self._write_table(f"{folder}/{name}.parquet", table, schema)
        self._write_json(f"{folder}/manifest.json", to_jsonable(run.manifest))

    def load_run(self, run_id: str) -> RunData:
        """One whole run. Raises StoreError when it has no manifest or can't be read."""
        folder = f"runs/{run_id}"
        raw = self._read_json(f"{folder}/manifest.json")
        if raw is None:
            raise StoreError(f"{self.base}/{folder} holds no whole run: manifest.json is missing")
        if raw["schema_version"] != SCHEMA_VERSION:
            raise StoreError(f"{self.base}/{folder} has schema version {raw['schema_version']}, not {SCHEMA_VERSION}")
        tables = {name: self._read_table(f"{folder}/{name}.parquet", schema) for name, schema in RUN_TABLES.items()}
        return RunData(manifest=_decode(Manifest, raw, f"{self.base}/{folder}/manifest.json"), **tables)

    # -- failures

    def write_failure(
        self, *, point_id: str, repeat: int, attempt: int, run_id: str, error: str, kind: str, log: str = ""
    ) -> None:
        """Keep why a run failed. `kind`: `own` (its own doing) or `system` (a lost node or worker)."""
        entry = {"point_id": point_id, "repeat": repeat, "attempt": attempt, "run_id": run_id, "kind": kind}
        folder = f"failed/{run_id}-{attempt}"
        if log:
            self._write_bytes(f"{folder}/engine.log", log.encode())
        self._write_json(f"{folder}/error.json", {**entry, "error": error, "time_unix_s": time.time()})

    def failed_runs(self) -> dict[str, dict[str, Any]]:
        """`<point_id>-<repeat>` -> the last error.json of that run."""
        found: dict[str, dict[str, Any]] = {}
        for name in self._names("failed"):
            entry = self._read_json(f"failed/{name}/error.json")
            if entry is not None:
                key = f"{entry['point_id']}-{entry['repeat']}"
                if key not in found or entry["time_unix_s"] >= found[key]["time_unix_s"]:
                    found[key] = entry
        return found

    # -- ledger

    def append_ledger(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """State changes, as one new object."""
        lines = "".join(json.dumps(to_jsonable(entry), ensure_ascii=False) + "\n" for entry in entries)
        self._write_bytes(f"ledger/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl", lines.encode())

    def read_ledger(self) -> list[dict[str, Any]]:
        """Every entry, oldest first."""
        lines = [line for name in self._names("ledger") for line in self._read(f"ledger/{name}").splitlines()]
        return [json.loads(line) for line in lines]

    # -- results

    def write_reduction(self, metrics: Sequence[Metric], cap: Mapping[str, Any]) -> None:
        """The reducer's results."""
        self._write_table("metrics.parquet", table_of(METRICS, metrics), METRICS)
        self._write_json("cap.json", cap)

    def read_metrics(self) -> list[Metric]:
        """Rows of metrics.parquet; StoreError when the study was not reduced yet."""
        if not self._exists("metrics.parquet"):
            raise StoreError(f"{self.base} was not reduced yet: run `moecap-cluster reduce {self.root}`")
        return rows_of(self._read_table("metrics.parquet", METRICS), Metric)

    def read_cap(self) -> dict[str, Any]:
        """cap.json; StoreError when the study was not reduced yet."""
        cap: dict[str, Any] | None = self._read_json("cap.json")
        if cap is None:
            raise StoreError(f"{self.base} was not reduced yet: run `moecap-cluster reduce {self.root}`")
        return cap

    # -- objects

    def _remove(self, folder: str) -> None:
        try:
            self.fs.delete_dir_contents(f"{self.base}/{folder}", missing_dir_ok=True)
        except OSError as error:
            raise StoreError(f"can't remove what an interrupted run left in {self.base}/{folder}: {error}") from error

    def _exists(self, path: str) -> bool:
        return bool(self.fs.get_file_info(f"{self.base}/{path}").type == fs.FileType.File)

    def _names(self, folder: str) -> list[str]:
        selector = fs.FileSelector(f"{self.base}/{folder}", allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def _read(self, path: str) -> bytes:
        with self.fs.open_input_stream(f"{self.base}/{path}") as stream:
            return bytes(stream.read())

    def _read_json(self, path: str) -> Any:
        """The document, or None when it isn't there. Objects are written whole: one that doesn't parse is wrong."""
        if not self._exists(path):
            return None
        try:
            return json.loads(self._read(path))
        except ValueError as error:
            raise StoreError(f"{self.base}/{path} is not valid JSON: {error}") from error

    def _write_json(self, path: str, document: Any) -> None:
        try:
            text = json.dumps(to_jsonable(document), indent=1, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise StoreError(f"{self.base}/{path} can't be written: {error}") from error
        self._write_bytes(path, text.encode())

    def _write_bytes(self, path: str, data: bytes) -> None:
        """Whole or not at all: local files are renamed into place; object stores publish on close."""
        target = f"{self.base}/{path}"
        try:
            self.fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
            local = isinstance(self.fs, fs.LocalFileSystem)
            written = f"{target}.{uuid.uuid4().hex[:8]}.part" if local else target
            with self.fs.open_output_stream(written) as stream:
                stream.write(data)
            if local:
                Path(written).replace(target)
        except OSError as error:
            raise StoreError(f"can't write {target}: {error}") from error

    def _write_table(self, path: str, table: pa.Table, schema: pa.Schema) -> None:
        sink = pa.BufferOutputStream()
        stamped = table.cast(schema).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})
        pq.write_table(stamped, sink, compression="zstd")
        self._write_bytes(path, sink.getvalue().to_pybytes())

    def _read_table(self, path: str, schema: pa.Schema) -> pa.Table:
        if not self._exists(path):
            return schema.empty_table()
        found = pq.read_table(f"{self.base}/{path}", filesystem=self.fs)
        for field in schema:
            if field.name not in found.column_names:  # written before the column was added
                found = found.append_column(field, pa.nulls(len(found), field.type))
        return found.select(schema.names).cast(schema)


class Lease:
    """The right to drive a study: an object with a heartbeat. One driver per study."""

    def __init__(self, store: Store) -> None:
        self._store, self._token = store, uuid.uuid4().hex

    @classmethod
    def acquire(cls, store: Store) -> Lease:
        """Take it, or raise LeaseHeldError with who holds it. A holder that died on this host, or that was silent for
        LEASE_TIMEOUT_S, holds nothing."""
        held = store._read_json("lease.json")
        if held is not None and _alive(held):
            raise LeaseHeldError(
                f"study {store.study!r} is driven by process {held['pid']} on {held['host']} "
                f"(last heartbeat {time.time() - held['heartbeat_unix_s']:.0f} s ago); wait for it or end it"
            )
        lease = cls(store)
        lease._write()
        lease.heartbeat()
        return lease

    def heartbeat(self) -> None:
        """Renew. Raises LeaseHeldError when another driver took over meanwhile."""
        held = self._store._read_json("lease.json")
        if held is None or held["token"] != self._token:
            raise LeaseHeldError(f"another driver took over study {self._store.study!r}: {held}")
        self._write()

    def release(self) -> None:
        """Give it back, if it is still ours."""
        held = self._store._read_json("lease.json")
        if held is not None and held["token"] == self._token:
            self._store.fs.delete_file(f"{self._store.base}/lease.json")

    def _write(self) -> None:
        me = psutil.Process()
        self._store._write_json(
            "lease.json",
            {
                "token": self._token, "host": socket.gethostname(), "pid": os.getpid(),
                "process_started_unix_s": me.create_time(), "heartbeat_unix_s": time.time(),
            },
        )  # fmt: skip


def studies(root: str) -> list[str]:
    """Names of the studies that a store root holds."""
    filesystem, base = _filesystem(root)
    infos = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
    names = sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)
    return [n for n in names if filesystem.get_file_info(f"{base}/{n}/plan.json").type == fs.FileType.File]


def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    if "://" not in root:
        return fs.LocalFileSystem(), str(Path(root).expanduser().absolute())
    try:
        filesystem, base = fs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"store {root!r} can't be opened: {error}; use a path, s3://... or gs://...") from error
    return filesystem, base.rstrip("/")


def _decode(record: type[Any], raw: Any, where: str) -> Any:
    try:
        return TypeAdapter(record).validate_python(raw)
    except ValidationError as error:
        raise StoreError(f"{where} is not a {record.__name__} of this version: {error}") from error


def _alive(held: Mapping[str, Any]) -> bool:
    if time.time() - held["heartbeat_unix_s"] > LEASE_TIMEOUT_S:
        return False
    if held["host"] != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(held["pid"]).create_time() - held["process_started_unix_s"]) < 1.0)
    except psutil.NoSuchProcess:
        return False

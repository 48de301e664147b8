"""The store: runs as Parquet tables and manifests, the plan, the ledger and the results of one study.

Everything is written as whole new objects (`moecap/objects.py`); a run's manifest is written last and says how many
rows each of its tables has. The layout is here, the columns are in `moecap/schema.py`, the right to drive a study in
`moecap/lease.py`. It knows no engine, no Ray and no metric.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from moecap.errors import ConfigError, StoreError
from moecap.objects import Objects, open_root
from moecap.records import Manifest, Metric, Placement, Refusal, StudyPlan, to_jsonable
from moecap.schema import METRICS, RUN_TABLES, SCHEMA_VERSION, rows_of, table_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a study may be called: names become paths."""
MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """One run as it lies in the store. Tables that the run didn't write are empty, never absent."""

    manifest: Manifest
    passes: pa.Table
    routing: pa.Table
    tiers: pa.Table
    requests: pa.Table
    hosts: pa.Table
    devices: pa.Table
    samples: pa.Table


class Store:
    """One study in one store root."""

    def __init__(self, root: str, study: str) -> None:
        """Open, creating nothing. ConfigError for a study name that can't be a path, StoreError for a bad root."""
        if not NAME.fullmatch(study):
            raise ConfigError("is no study name", "name", study, "use letters, digits, '.', '_' and '-' (at most 100)")
        self.root, self.study = root, study
        held = open_root(root)
        self.base = f"{held.base}/{study}"
        self.objects = Objects(held.fs, self.base)
        self._told: set[str] = set()

    # -- plan

    def write_plan(self, plan: StudyPlan, placements: Mapping[str, Placement | Refusal]) -> None:
        """The resolved study and where each point goes (point_id -> placement or refusal)."""
        self.objects.write_json("plan.json", {"plan": to_jsonable(plan), "placements": to_jsonable(placements)})

    def read_plan(self) -> StudyPlan | None:
        """The plan; None when the store doesn't hold this study."""
        found = self.objects.read_json("plan.json")
        return None if found is None else _decode(StudyPlan, found["plan"], f"{self.base}/plan.json")

    # -- runs

    def whole_runs(self) -> dict[str, tuple[str, int, str]]:
        """run_id -> (point_id, repeat, fingerprint) of every run that is whole. Says once which are broken."""
        whole, broken = self.runs()
        for run_id in broken.keys() - self._told:
            self._told.add(run_id)
            log.warning("run %s in %s is broken and counts as missing: %s", run_id, self.base, broken[run_id])
        return whole

    def runs(self) -> tuple[dict[str, tuple[str, int, str]], dict[str, str]]:
        """What `whole_runs` gives; and run_id -> what is wrong, of runs that have a manifest and aren't whole."""
        whole, broken = {}, {}
        for run_id, names in self._run_folders().items():
            identity = self._identity(run_id, names)
            if isinstance(identity, str):
                broken[run_id] = identity
            else:
                whole[run_id] = identity
        return whole, broken

    def is_whole(self, run_id: str) -> bool:
        """Whether this run's manifest is there and can be read, and so are the tables that it names."""
        names = self.objects.names(f"runs/{run_id}")
        return MANIFEST in names and not isinstance(self._identity(run_id, names), str)

    def write_run(self, run: RunData) -> None:
        """Tables first, the manifest last. What an attempt that was interrupted left there is removed before."""
        folder = f"runs/{run.manifest.run_id}"
        self.objects.remove(folder)
        self._write_run(folder, run)

    def load_run(self, run_id: str) -> RunData:
        """One whole run. Raises StoreError when it has no manifest, can't be read or lost rows."""
        folder, manifest = f"runs/{run_id}", self.load_manifest(run_id)
        return RunData(manifest=manifest, **{name: self._read_table(folder, name, manifest) for name in RUN_TABLES})

    def load_manifest(self, run_id: str) -> Manifest:
        """Of one whole run, without its tables. Raises StoreError when there is none or it can't be read."""
        folder = f"runs/{run_id}"
        raw = self.objects.read_json(f"{folder}/{MANIFEST}")
        if raw is None:
            raise StoreError(f"{self.base}/{folder} holds no whole run: {MANIFEST} is missing")
        if raw["schema_version"] != SCHEMA_VERSION:
            raise StoreError(f"{self.base}/{folder} has schema version {raw['schema_version']}, not {SCHEMA_VERSION}")
        manifest: Manifest = _decode(Manifest, raw, f"{self.base}/{folder}/{MANIFEST}")
        return manifest

    def _write_run(self, folder: str, run: RunData) -> None:
        tables: dict[str, pa.Table] = {name: getattr(run, name) for name in RUN_TABLES}
        for name, table in tables.items():
            if table.num_rows:
                self.objects.write_table(f"{folder}/{name}.parquet", table, RUN_TABLES[name])
        rows = {name: table.num_rows for name, table in tables.items()}
        self.objects.write_json(f"{folder}/{MANIFEST}", replace(run.manifest, tables=rows))

    def _read_table(self, folder: str, name: str, manifest: Manifest) -> pa.Table:
        path, schema = f"{folder}/{name}.parquet", RUN_TABLES[name]
        found = self.objects.read_table(path, schema) if self.objects.exists(path) else schema.empty_table()
        if manifest.tables and len(found) != manifest.tables.get(name, 0):
            raise StoreError(
                f"{self.base}/{path} has {len(found)} rows, its manifest says {manifest.tables.get(name, 0)}: "
                f"restore it, or remove {self.base}/{folder} and launch with --resume to run it again"
            )
        return found

    def _run_folders(self) -> dict[str, list[str]]:
        """run_id -> names of its objects, of every run that has a manifest."""
        folders: dict[str, list[str]] = {}
        for path in self.objects.below("runs"):
            run_id, _, name = path.partition("/")
            folders.setdefault(run_id, []).append(name)
        return {run_id: names for run_id, names in folders.items() if MANIFEST in names}

    def _identity(self, run_id: str, names: Collection[str]) -> tuple[str, int, str] | str:
        """(point_id, repeat, fingerprint) of a run that is whole; what is wrong with one that isn't."""
        data = self.objects.read(f"runs/{run_id}/{MANIFEST}")  # outside: what can't be reached isn't broken
        try:
            manifest = json.loads(data)
            tables = {name: int(rows) for name, rows in manifest.get("tables", {}).items()}
            identity = (manifest["point_id"], manifest["spec"]["repeat"], manifest["fingerprint"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{MANIFEST} can't be read ({type(error).__name__}: {error})"
        missing = [f"{name}.parquet" for name, rows in tables.items() if rows and f"{name}.parquet" not in names]
        return f"{', '.join(missing)} missing" if missing else identity

    # -- failures

    def write_failure(self, *, point_id: str, repeat: int, attempt: int, run_id: str, error: str, kind: str) -> None:
        """Keep why a run failed. `kind`: `own` (its own doing) or `system` (a lost node or worker)."""
        entry = {"point_id": point_id, "repeat": repeat, "attempt": attempt, "run_id": run_id, "kind": kind}
        path = f"{_failed(run_id, attempt)}/error.json"
        self.objects.write_json(path, {**entry, "error": error, "time_unix_s": time.time()})

    def write_failed_run(self, run: RunData, attempt: int) -> None:
        """Keep what an attempt recorded before it failed. It is never read as a run."""
        self._write_run(_failed(run.manifest.run_id, attempt), run)

    def write_engine_log(self, run_id: str, attempt: int, text: str) -> None:
        """Keep what the engine of a failed attempt printed."""
        self.objects.write(f"{_failed(run_id, attempt)}/engine.log", text.encode())

    def failed_runs(self) -> dict[str, dict[str, Any]]:
        """`<point_id>-<repeat>` -> the last error.json of that run."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.objects.names("failed"):
            entry = self.objects.read_json(f"failed/{name}/error.json")
            if entry is not None:
                key = f"{entry['point_id']}-{entry['repeat']}"
                if key not in found or entry["time_unix_s"] >= found[key]["time_unix_s"]:
                    found[key] = entry
        return found

    # -- ledger

    def append_ledger(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """State changes, as one new object."""
        lines = "".join(json.dumps(to_jsonable(entry), ensure_ascii=False) + "\n" for entry in entries)
        self.objects.write(f"ledger/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl", lines.encode())

    def read_ledger(self) -> list[dict[str, Any]]:
        """Every entry, oldest first. StoreError for one that is no JSON."""
        entries = []
        for name in self.objects.names("ledger"):
            try:
                entries += [json.loads(line) for line in self.objects.read(f"ledger/{name}").splitlines()]
            except ValueError as error:
                raise StoreError(
                    f"{self.base}/ledger/{name} is not valid JSON: {error}; no run depends on it: remove it"
                ) from error
        return entries

    # -- results

    def write_reduction(self, metrics: Sequence[Metric], cap: Mapping[str, Any]) -> None:
        """The reducer's results."""
        self.objects.write_table("metrics.parquet", table_of(METRICS, metrics), METRICS)
        self.objects.write_json("cap.json", cap)

    def read_metrics(self) -> list[Metric]:
        """Rows of metrics.parquet; StoreError when the study was not reduced yet."""
        if not self.objects.exists("metrics.parquet"):
            raise StoreError(f"{self.base} was not reduced yet: run `moecap-cluster reduce {self.root}`")
        return rows_of(self.objects.read_table("metrics.parquet", METRICS), Metric)

    def read_cap(self) -> dict[str, Any]:
        """cap.json; StoreError when the study was not reduced yet."""
        cap: dict[str, Any] | None = self.objects.read_json("cap.json")
        if cap is None:
            raise StoreError(f"{self.base} was not reduced yet: run `moecap-cluster reduce {self.root}`")
        return cap


def studies(root: str) -> list[str]:
    """Names of the studies that a store root holds."""
    held = open_root(root)
    return [name for name in held.names("") if held.exists(f"{name}/plan.json")]


def _failed(run_id: str, attempt: int) -> str:
    return f"failed/{run_id}-{attempt}"


def _decode(record: type[Any], raw: Any, where: str) -> Any:
    try:
        return TypeAdapter(record).validate_python(raw)
    except ValidationError as error:
        raise StoreError(f"{where} is not a {record.__name__} of this version: {error}") from error

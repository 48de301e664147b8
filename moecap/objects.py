"""Whole objects under one folder of a `pyarrow.fs` file system: bytes, JSON documents and Parquet tables.

An object is there whole or not at all. It knows the name of no object and what none means. Whatever a file system or
a broken object raises becomes a StoreError here.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from moecap.errors import ConfigError, StoreError
from moecap.records import to_jsonable
from moecap.schema import SCHEMA_VERSION

PART = ".part"
"""How the name of a local file ends while it is written. What a kill left of one is no object."""
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems answer that have no way to make a folder's entries durable."""


class Objects:
    """Everything below `base`, named by paths relative to it."""

    def __init__(self, filesystem: fs.FileSystem, base: str) -> None:
        self.fs, self.base = filesystem, base

    @property
    def folder(self) -> Path | None:
        """Where they lie on a disk that this machine mounts; None for object stores."""
        return Path(self.base) if isinstance(self.fs, fs.LocalFileSystem) else None

    def exists(self, path: str) -> bool:
        """Whether this object is there."""
        with self.translated("look for", path):
            return bool(self.fs.get_file_info(f"{self.base}/{path}").type == fs.FileType.File)

    def names(self, folder: str) -> list[str]:
        """Names of the objects and folders in `folder` (`""`: in all of it), sorted."""
        return sorted(self._listed(folder, recursive=False))

    def below(self, folder: str) -> list[str]:
        """Paths, relative to `folder`, of everything at any depth below it, sorted."""
        return sorted(self._listed(folder, recursive=True))

    def remove(self, folder: str) -> None:
        """All that is in `folder`."""
        with self.translated("remove", folder):
            self.fs.delete_dir_contents(f"{self.base}/{folder}", missing_dir_ok=True)

    def delete(self, path: str) -> None:
        """One object."""
        with self.translated("remove", path):
            self.fs.delete_file(f"{self.base}/{path}")

    def read(self, path: str) -> bytes:
        """StoreError when it isn't there or can't be read."""
        with self.translated("read", path), self.fs.open_input_stream(f"{self.base}/{path}") as stream:
            return bytes(stream.read())

    def read_json(self, path: str) -> Any:
        """The document, or None when it isn't there. Objects are written whole: StoreError for one that doesn't
        parse."""
        if not self.exists(path):
            return None
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise StoreError(f"{self.base}/{path} is not valid JSON: {error}") from error

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table:
        """A table that is there, with exactly the columns of `schema`; columns from after its time are null."""
        with self.translated("read", path):
            found = pq.read_table(f"{self.base}/{path}", filesystem=self.fs)
            for field in schema:
                if field.name not in found.column_names:  # written before the column was added
                    found = found.append_column(field, pa.nulls(len(found), field.type))
            return found.select(schema.names).cast(schema)

    def write_json(self, path: str, document: Any, *, lasting: bool = True) -> None:
        """As `write`. StoreError for NaN and infinity, which JSON doesn't have."""
        try:
            text = json.dumps(to_jsonable(document), indent=1, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise StoreError(f"{self.base}/{path} can't be written: {error}") from error
        self.write(path, text.encode(), lasting=lasting)

    def write_table(self, path: str, table: pa.Table, schema: pa.Schema) -> None:
        """With the version of the schemas in its metadata."""
        sink = pa.BufferOutputStream()
        stamped = table.cast(schema).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})
        pq.write_table(stamped, sink, compression="zstd")
        self.write(path, sink.getvalue().to_pybytes())

    def write(self, path: str, data: bytes, *, lasting: bool = True) -> None:
        """Whole or not at all: object stores publish on close, on a disk a file is renamed into place. On a disk what
        isn't `lasting` may be gone, or be empty, after a loss of power; it costs no wait for the medium."""
        target = f"{self.base}/{path}"
        with self.translated("write", path):
            if self.folder is not None:
                _write_file(Path(target), data, lasting=lasting)
            else:
                self.fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
                with self.fs.open_output_stream(target) as stream:
                    stream.write(data)

    def _listed(self, folder: str, *, recursive: bool) -> Iterator[str]:
        root = f"{self.base}/{folder}".rstrip("/")
        selector = fs.FileSelector(root, allow_not_found=True, recursive=recursive)
        with self.translated("list", folder):
            infos = self.fs.get_file_info(selector)
        for info in infos:
            if not info.path.endswith(PART):
                yield info.path.removeprefix(f"{root}/")

    @contextmanager
    def translated(self, what: str, path: str) -> Iterator[None]:
        """The seam where errors of Arrow and of file systems become ours."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"can't {what} {self.base}/{path}: {error}") from error


def open_root(root: str) -> Objects:
    """What lies under a local path, `s3://...` or `gs://...`. StoreError when that can't be opened, ConfigError for a
    file."""
    if "://" not in root:
        path = Path(root).expanduser().absolute()
        if path.is_file():
            raise ConfigError("is a file", "STORE", root, "name a folder, or the URI of one")
        return Objects(fs.LocalFileSystem(), str(path))
    try:
        filesystem, base = fs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"store {root!r} can't be opened: {error}; use a path, s3://... or gs://...") from error
    return Objects(filesystem, base.rstrip("/"))


def _write_file(target: Path, data: bytes, *, lasting: bool) -> None:
    """Whenever this ends early, `target` is as it was."""
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    for folder in (target.parent, *(one.parent for one in made)) if lasting else ():
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(opened)

"""Rows of a JSONL file, and what identifies its content. What the rows mean is the workloads' business."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from moecap.workload.base import Workload


class FromFile(Workload):
    """A workload that reads a JSONL file, by its path on whichever machine makes the requests."""

    path: str
    """Relative ones from where the process runs."""
    content: str | None = Field(default=None, pattern="^[0-9a-f]{16}$")
    """16 hexadecimal digits of the file's SHA-256, filled in when the study is read: another content is another
    point, and a node that holds another file refuses it."""

    @model_validator(mode="before")
    @classmethod
    def _identify(cls, options: Any) -> Any:
        """ValueError, which pydantic reports, for a file that isn't there or isn't the one that was planned with."""
        if not isinstance(options, dict) or not isinstance(options.get("path"), str):
            return options  # reported with the fields
        found = content_of(options["path"])
        if options.get("content") not in (None, found):
            raise ValueError(
                f"{options['path']} has the content {found}, not {options['content']}; "
                "put the planned file there, or leave content out"
            )
        return {**options, "content": found}


def content_of(path: str) -> str:
    """16 hexadecimal digits of SHA-256. ValueError when the file can't be read."""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); name a JSONL file") from error


def rows_of(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`<file>:<line>` and the mapping of every line that isn't empty. ValueError names the one that is none."""
    for number, line in enumerate(Path(path).expanduser().read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON ({error}); write one JSON object per line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no JSON object; write one per line")
        yield where, row


def count_in(row: dict[str, Any], key: str, where: str) -> int:
    """A number of tokens. ValueError names file and line of one that can't be."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where} has {key} = {value!r}; write a whole number of tokens above 0")
    return value

"""What an engine's processes print: where it goes, and its end, for the record of a failure.

The last words of a process that was killed are in its files only: who reads them is another process of the same node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

TAIL_BYTES = 64 * 1024
"""Kept of each file."""
MARKERS = re.compile(r"^:(job_id|actor_name|task_name):.*\n?", re.MULTILINE)
"""Lines that Ray writes for itself."""
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY", re.IGNORECASE)
SECRET_LENGTH = 8
"""Shorter values are no secrets, and would blot out too much."""


def output_files() -> tuple[str, ...]:
    """Files that this process, and what it starts, print to; empty when that is a pipe or a terminal."""
    found = []
    for number in (1, 2):
        try:
            found.append(str(Path(f"/proc/self/fd/{number}").readlink()))
        except OSError:  # closed, or not Linux
            continue
    return tuple(path for path in dict.fromkeys(found) if Path(path).is_file())


def read_log(files: Iterable[str], environment: Mapping[str, str]) -> str | None:
    """The end of each file under its name, without the values of variables that hold secrets; None when there is no
    file to read."""
    parts = [f"--- {Path(path).name}\n{_tail(Path(path))}" for path in files if Path(path).is_file()]
    return _without_secrets("\n".join(parts), environment) if parts else None


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read(TAIL_BYTES).decode(errors="replace")
    cut = f"[{size - TAIL_BYTES} bytes before this are left out]\n" if size > TAIL_BYTES else ""
    return cut + MARKERS.sub("", text)


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        if SECRET_NAME.search(name) and len(value) >= SECRET_LENGTH:
            text = text.replace(value, f"[{name}]")
    return text

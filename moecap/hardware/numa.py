"""NUMA nodes of this machine, as the kernel's sysfs shows them. It binds nothing."""

from __future__ import annotations

import re
from pathlib import Path

from moecap.records import NumaNode

NODES = Path("/sys/devices/system/node")
TOTAL = re.compile(r"MemTotal:\s+(\d+) kB")


def numa_nodes(root: Path = NODES) -> tuple[NumaNode, ...]:
    """By index; none where the kernel shows none. A node without CPUs, or without memory, is one too."""
    folders = {int(folder.name[4:]): folder for folder in root.glob("node[0-9]*")}
    return tuple(
        NumaNode(index=index, cpus=_text(folder / "cpulist"), memory_bytes=_memory_bytes(folder / "meminfo"))
        for index, folder in sorted(folders.items())
    )


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _memory_bytes(file: Path) -> int | None:
    found = TOTAL.search(_text(file) or "")
    return int(found[1]) * 1024 if found else None

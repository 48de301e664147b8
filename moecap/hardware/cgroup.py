"""What the control groups of this process leave it of CPUs and memory (versions 1 and 2). It changes nothing.

A limit counts wherever it is set on the way up from the process's own group; inside a container that group is the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")


def cpu_quota(root: Path = CGROUP_ROOT, membership: Path = SELF_CGROUP) -> float | None:
    """CPUs' worth of time that the tightest quota grants; None without one."""
    quotas = []
    for group in _groups(root, membership, "cpu"):
        quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
        if quota == "max":
            quota, period = _text(group / "cpu.cfs_quota_us") or "-1", _text(group / "cpu.cfs_period_us") or "100000"
        if int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = CGROUP_ROOT, membership: Path = SELF_CGROUP) -> int | None:
    """The tightest memory limit; None without one. Version 1 says "none" by a number larger than any memory."""
    limits = []
    for group in _groups(root, membership, "memory"):
        limit = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes") or "max"
        if limit != "max":
            limits.append(int(limit))
    return min(limits, default=None)


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of the process's own group and all above it, for version 2 and for `controller` of version 1."""
    for line in (_text(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", controller) or controller in controllers.split(","):
            top = root / controllers if controllers else root
            yield top
            own = Path(path.lstrip("/"))
            yield from (top / group for group in (own, *own.parents) if group != Path())


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None

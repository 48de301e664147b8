"""The right to drive a study: an object with a heartbeat. One driver per study.

On a disk it is taken and renewed under a kernel lock of the study's folder, so that of several who ask one gets it.
Where there is no such lock (object stores, some network disks) the last who wrote has it: who wrote waits, reads again
and gives way; should two get through all the same, the next heartbeat of one of them finds the other's.

No two clocks are compared. Whether a holder on this machine lives is asked of the kernel; one elsewhere lives when its
heartbeat is seen to change.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import TypeAdapter, ValidationError

from moecap.errors import LeaseHeldError, StoreError
from moecap.objects import Objects

LEASE = "lease.json"
HEARTBEAT_S = 5.0
LEASE_TIMEOUT_S = 60.0
"""A lease whose heartbeat was not seen to change for this long is dead."""
SETTLE_S = 2.0
"""Without a lock: from writing the lease to reading whose it is. Longer than another takes from reading to writing."""
LOOK_S = 0.5
"""Period of looking for a change."""
LOCK_WAIT_S = 30.0
"""For the kernel lock, which is held for milliseconds."""
NO_LOCK = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What file systems answer that can't lock a folder; NFS: EBADF."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Whose a lease is, as it lies in the store."""

    token: str
    host: str
    pid: int
    process_start: str
    """Tells the process from later ones with its id."""
    machine: str
    """Tells where its process id means something."""
    beat: int
    """Changes with every heartbeat."""
    heartbeat_unix_s: float
    """For people."""


class Lease:
    """A lease that this process has: renewed by a thread of its own until `release`."""

    def __init__(self, objects: Objects) -> None:
        self._objects, self._token, self._beat = objects, uuid.uuid4().hex, 0
        self._renewed_s = time.monotonic()
        self._lost = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @classmethod
    def acquire(cls, objects: Objects, *, silent_s: float = LEASE_TIMEOUT_S) -> Lease:
        """Take the lease of the study below `objects`, or raise LeaseHeldError with who has it. A holder elsewhere is
        watched for up to `silent_s`."""
        lease = cls(objects)
        lease._take(silent_s)
        lease._thread.start()
        return lease

    def check(self) -> None:
        """Raise LeaseHeldError when another driver took over, StoreError when it can't be renewed any more."""
        if self._lost:
            raise LeaseHeldError(self._lost)
        if time.monotonic() - self._renewed_s > LEASE_TIMEOUT_S:  # the thread fails, or all of this process slept
            self.heartbeat()

    def heartbeat(self) -> None:
        """Renew. Raises LeaseHeldError when another driver took over meanwhile."""
        with _locked(self._objects):
            holder = _decoded(_read(self._objects))
            if holder is None or holder.token != self._token:
                whose = f"process {holder.pid} on {holder.host}" if holder else "its lease is gone"
                raise LeaseHeldError(f"another driver took over {self._objects.base}: {whose}")
            self._write()

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(LOCK_WAIT_S)
        if not self._objects.exists(LEASE):
            return
        with _locked(self._objects):
            holder = _decoded(_read(self._objects))
            if holder is not None and holder.token == self._token:
                self._objects.delete(LEASE)

    def _take(self, silent_s: float) -> None:
        if self._objects.folder is not None:
            self._objects.folder.mkdir(parents=True, exist_ok=True)
        while True:
            seen = _read(self._objects)
            _refuse(self._objects, _living(self._objects, seen, silent_s))
            with _locked(self._objects) as locked:
                if _read(self._objects) == seen:  # else another was faster: look at who
                    self._write()
                    break
        if not locked:
            time.sleep(SETTLE_S)
            self.heartbeat()  # gives way to whoever wrote last

    def _write(self) -> None:
        self._beat += 1
        mine = Holder(
            token=self._token, host=socket.gethostname(), pid=os.getpid(),
            process_start=_process_start(os.getpid()) or "", machine=_machine(), beat=self._beat,
            heartbeat_unix_s=time.time(),
        )  # fmt: skip
        self._objects.write_json(LEASE, mine, lasting=False)
        self._renewed_s = time.monotonic()

    def _renew(self) -> None:
        while not self._stopping.wait(HEARTBEAT_S):
            try:
                self.heartbeat()
            except LeaseHeldError as error:
                self._lost = str(error)
                return
            except Exception as error:  # noqa: BLE001 - said here, and raised by `check` if it doesn't pass
                log.warning("the lease could not be renewed: %s", error)


def living_holder(objects: Objects, silent_s: float) -> Holder | None:
    """Who drives the study below `objects`; None when nobody does. A holder elsewhere is watched until its heartbeat
    changes, for up to `silent_s`."""
    return _living(objects, _read(objects), silent_s)


def _living(objects: Objects, seen: bytes | None, silent_s: float) -> Holder | None:
    """The holder that `seen` names, if it lives. A lease that can't be read (power was lost) is nobody's."""
    holder = _decoded(seen)
    if holder is None:
        return None
    if holder.machine == _machine():
        return holder if _process_start(holder.pid) == holder.process_start else None
    log.warning("waiting up to %.0f s for a heartbeat of process %d on %s", silent_s, holder.pid, holder.host)
    end_s = time.monotonic() + silent_s
    while time.monotonic() < end_s:
        time.sleep(min(LOOK_S, silent_s))
        now = _read(objects)
        if now != seen:
            return _decoded(now)
    return None


def _refuse(objects: Objects, holder: Holder | None) -> None:
    if holder is not None:
        raise LeaseHeldError(
            f"{objects.base} is driven by process {holder.pid} on {holder.host}; wait for it or end it"
        )


def _read(objects: Objects) -> bytes | None:
    try:
        return objects.read(LEASE) if objects.exists(LEASE) else None
    except StoreError:
        if objects.exists(LEASE):
            raise
        return None  # given back between the two


def _decoded(data: bytes | None) -> Holder | None:
    if data is None:
        return None
    try:
        return TypeAdapter(Holder).validate_json(data)
    except ValidationError as error:
        log.warning("a lease that can't be read counts as nobody's: %s", error)
        return None


@contextmanager
def _locked(objects: Objects) -> Iterator[bool]:
    """Alone with the study's folder; the kernel ends it with the process. False where there is no such lock."""
    if objects.folder is None:
        yield False
        return
    with objects.translated("lock", LEASE):
        opened = os.open(objects.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _flock(opened, objects)
    finally:
        os.close(opened)


def _flock(opened: int, objects: Objects) -> bool:
    end_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end_s:
                raise LeaseHeldError(f"{objects.base} stays locked by another driver") from error
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in NO_LOCK:
                raise
            return False
        else:
            return True


def _machine() -> str:
    """One boot of one kernel, and one space of process ids in it: a container is another machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """When a process started; None when there is none, or a zombie. On Linux in clock ticks since boot: psutil's time
    of day moves when the clock is set."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if Path("/proc/self/stat").exists():
            state, *fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            return None if state == "Z" else fields[18]
        return str(psutil.Process(pid).create_time())
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return None

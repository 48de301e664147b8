"""The lease: one driver per study, whoever asks at once, whoever died, whatever the clocks say."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from moecap import lease as module
from moecap.errors import LeaseHeldError, StoreError
from moecap.lease import Lease, living_holder
from moecap.objects import Objects

ELSEWHERE = {"host": "elsewhere", "machine": "another kernel"}


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(fs.LocalFileSystem(), str(tmp_path / "s"))


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """A folder as object stores show theirs: not on a disk of this machine."""
    monkeypatch.setattr(module, "SETTLE_S", 1.0)
    (tmp_path / "s").mkdir()
    return Objects(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "s")


@pytest.fixture
def network_disk(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """NFS locks only what is open for writing, which a folder never is."""

    def refuse(opened: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(module, "SETTLE_S", 1.0)
    return objects


@pytest.fixture
def beating(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    yield


def written(objects: Objects) -> dict[str, Any]:
    document: dict[str, Any] = objects.read_json("lease.json")
    return document


def take(objects: Objects, gate: threading.Barrier, got: list[Lease], refused: list[str]) -> None:
    gate.wait()
    try:
        got.append(Lease.acquire(objects))
    except LeaseHeldError as error:
        refused.append(str(error))


def race(objects: Objects, contenders: int = 2) -> tuple[list[Lease], list[str]]:
    gate, got, refused = threading.Barrier(contenders), list[Lease](), list[str]()
    threads = [threading.Thread(target=take, args=(objects, gate, got, refused)) for _ in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got, refused


def test_a_second_driver_is_refused_and_told_who_holds_the_study(objects: Objects) -> None:
    lease = Lease.acquire(objects)
    with pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on "):
        Lease.acquire(objects)
    lease.release()
    assert not objects.exists("lease.json")
    Lease.acquire(objects).release()


def test_of_two_who_ask_at_once_one_gets_it(objects: Objects) -> None:
    for _ in range(100):
        got, refused = race(objects)
        assert (len(got), len(refused)) == (1, 1)
        got[0].release()


def test_of_two_who_find_a_dead_one_at_once_one_gets_it(objects: Objects) -> None:
    Lease.acquire(objects).release()
    for _ in range(100):
        lease = Lease.acquire(objects)
        dead = {**written(objects), "pid": 2**22 + 1}
        lease.release()
        objects.write_json("lease.json", dead)
        got, refused = race(objects)
        assert (len(got), len(refused)) == (1, 1)
        got[0].release()


def test_of_those_who_ask_a_disk_without_locks_at_once_one_gets_it(network_disk: Objects) -> None:
    for _ in range(3):
        got, refused = race(network_disk, 4)
        assert (len(got), len(refused)) == (1, 3)
        got[0].release()


def test_who_was_overwritten_in_a_store_without_locks_gives_way(
    remote: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rival that had found the lease free writes a little after us."""
    lease = Lease.acquire(remote)
    rival = {**written(remote), **ELSEWHERE, "token": "another"}
    lease.release()
    write, timers = remote.write_json, list[threading.Timer]()

    def write_and_be_overwritten(path: str, document: Any, *, lasting: bool = True) -> None:
        write(path, document, lasting=lasting)
        timers.append(threading.Timer(0.1, write, (path, rival)))
        timers[0].start()

    monkeypatch.setattr(remote, "write_json", write_and_be_overwritten)
    with pytest.raises(LeaseHeldError, match="elsewhere"):
        Lease.acquire(remote)
    assert len(timers) == 1
    assert written(remote)["token"] == "another"


def test_of_processes_that_ask_at_once_one_gets_it(objects: Objects) -> None:
    program = f"""
import sys, time
from pyarrow import fs
from moecap.errors import LeaseHeldError
from moecap.lease import Lease
from moecap.objects import Objects
print("ready", flush=True)
sys.stdin.readline()
try:
    Lease.acquire(Objects(fs.LocalFileSystem(), {objects.base!r}))
    print("got", flush=True)
except LeaseHeldError:
    print("refused", flush=True)
sys.stdin.readline()
"""
    asking = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for state in ("ready", None):
        told = []
        for process in asking:
            assert process.stdout is not None
            told.append(process.stdout.readline().strip())
        for process in asking:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert state is None or set(told) == {state}
    assert sorted(told) == ["got", "refused", "refused", "refused"]
    for process in asking:
        process.communicate(timeout=60)
    Lease.acquire(objects).release()  # all of them ended without giving it back


def test_a_live_process_of_this_machine_holds_its_lease_whatever_the_clock_says(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease.acquire(objects)
    objects.write_json("lease.json", {**written(objects), "heartbeat_unix_s": 0.0})
    with pytest.raises(LeaseHeldError):
        Lease.acquire(objects, silent_s=0.1)
    # The clock was set: psutil gives process starts as times of day, and would give another one now.
    monkeypatch.setattr("psutil.Process.create_time", lambda self: 12345.0)
    with pytest.raises(LeaseHeldError):
        Lease.acquire(objects, silent_s=0.1)
    lease.release()


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"process_start": "1"}], ids=["gone", "its id is another's"])
def test_a_dead_process_of_this_machine_holds_nothing(change: dict[str, Any], objects: Objects) -> None:
    lease = Lease.acquire(objects)
    dead = {**written(objects), **change}
    lease.release()
    objects.write_json("lease.json", dead)
    Lease.acquire(objects).release()


def test_a_process_that_nobody_buried_is_dead(objects: Objects) -> None:
    with subprocess.Popen(["true"]) as child:
        deadline_s = time.monotonic() + 30
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline_s
        assert module._process_start(child.pid) is None
    assert module._process_start(os.getpid()) is not None


def test_a_holder_elsewhere_is_judged_by_its_heartbeats_and_not_by_its_clock(objects: Objects) -> None:
    """Its clock is a year ahead, or behind; it is alive as long as it beats."""
    lease = Lease.acquire(objects)
    mine = written(objects)
    lease.release()
    for skew_s in (-3.2e7, 3.2e7):
        held = {**mine, **ELSEWHERE, "heartbeat_unix_s": time.time() + skew_s}
        objects.write_json("lease.json", held)
        timer = threading.Timer(0.3, objects.write_json, ("lease.json", {**held, "beat": 2}))
        timer.start()
        with pytest.raises(LeaseHeldError, match="elsewhere"):
            Lease.acquire(objects, silent_s=5.0)
        timer.join()
        began_s = time.monotonic()
        Lease.acquire(objects, silent_s=0.6).release()
        assert time.monotonic() - began_s >= 0.6


def test_a_holder_elsewhere_that_gives_back_while_it_is_watched_is_followed_at_once(objects: Objects) -> None:
    lease = Lease.acquire(objects)
    held = {**written(objects), **ELSEWHERE}
    lease.release()
    objects.write_json("lease.json", held)
    timer = threading.Timer(0.3, objects.delete, ("lease.json",))
    timer.start()
    began_s = time.monotonic()
    Lease.acquire(objects, silent_s=20.0).release()
    assert time.monotonic() - began_s < 10
    timer.join()


def test_a_lease_that_a_loss_of_power_emptied_is_nobodys(objects: Objects) -> None:
    objects.write("lease.json", b"")
    assert living_holder(objects, 0.1) is None
    Lease.acquire(objects).release()


def test_it_beats_by_itself(objects: Objects, beating: None) -> None:
    lease = Lease.acquire(objects)
    first = written(objects)["beat"]
    deadline_s = time.monotonic() + 30
    while written(objects)["beat"] < first + 3:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    lease.check()
    lease.release()
    time.sleep(0.2)
    assert not objects.exists("lease.json")  # no beat after the end


def test_a_driver_that_was_overtaken_notices(objects: Objects, beating: None) -> None:
    lease = Lease.acquire(objects)
    objects.write_json("lease.json", {**written(objects), "token": "another"})
    with pytest.raises(LeaseHeldError, match="took over"):
        lease.heartbeat()
    deadline_s = time.monotonic() + 30
    with pytest.raises(LeaseHeldError, match="took over"):
        while time.monotonic() < deadline_s:
            lease.check()
            time.sleep(0.01)
    lease.release()
    assert written(objects)["token"] == "another"  # not ours to remove


def test_a_store_that_is_away_for_a_moment_costs_nothing_and_for_longer_the_lease(
    objects: Objects, beating: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease.acquire(objects)
    away = Path(objects.base).rename(f"{objects.base}-away")
    time.sleep(0.3)
    lease.check()
    monkeypatch.setattr(module, "LEASE_TIMEOUT_S", 0.2)
    with pytest.raises(StoreError):
        lease.check()
    away.rename(objects.base)
    lease.check()  # a beat that succeeds is enough
    lease.release()

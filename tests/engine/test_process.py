"""Process groups of engines, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moecap.engine.process import ProcessGroup, cause_of, processes_of

SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
WAIT_S = 60.0


def wait_until(what: object, true: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> int:
    """Marks the processes of one test."""
    monkeypatch.setattr(os, "getpgrp", lambda: 4_000_000 + os.getpid())
    return 4_000_000 + os.getpid()


def test_the_whole_group_ends_with_it(tmp_path: Path, mark: int) -> None:
    group = ProcessGroup(
        [sys.executable, "-c", SLEEPER + "print('up', flush=True); time.sleep(600)"], os.environ, tmp_path / "log"
    )
    wait_until("it runs", lambda: "up" in group.tail())
    assert group.exit_code is None
    assert len(processes_of(mark)) == 3  # the leader, the program, what the program started
    group.end()
    assert processes_of(mark) == []
    group.end()


def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path, mark: int) -> None:
    group = ProcessGroup(
        [sys.executable, "-c", SLEEPER + "sys.exit('ValueError: no such model')"], os.environ, tmp_path / "log"
    )
    wait_until("it ends", lambda: group.exit_code is not None)
    assert group.exit_code == 1
    assert group.cause == "ValueError: no such model"
    assert processes_of(mark) == []


def test_it_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    """Not even when that is killed outright."""
    starter = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time, pathlib\n"
         "from moecap.engine.process import ProcessGroup\n"
         f"group = ProcessGroup([sys.executable, '-c', {SLEEPER + 'time.sleep(600)'!r}], os.environ, "
         f"pathlib.Path({str(tmp_path / 'log')!r}))\n"
         "print('started', flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert starter.stdout is not None
    assert starter.stdout.readline() == "started\n"
    wait_until("all run", lambda: len(processes_of(starter.pid)) == 3)
    os.kill(starter.pid, signal.SIGKILL)
    wait_until("all are gone", lambda: not processes_of(starter.pid))
    starter.wait()


def test_a_cause_is_the_last_error_that_is_no_wrapping() -> None:
    log = (
        "INFO start\n(EngineCore pid=7) ERROR [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
        "Traceback (most recent call last):\nRuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert cause_of(log) == "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    listed = "x.ValidationError: 1 validation error\n  Value error, too long\n    see there\n    and there\nbye\n"
    assert cause_of(listed) == "x.ValidationError: 1 validation error Value error, too long see there"
    assert cause_of("no error\nlast words\n") == "last words"
    assert cause_of("") == "it printed nothing"

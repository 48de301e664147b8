"""A program that serves an engine, as a process group of its own that never outlives the process that started it.

Run as a module it leads that group: it starts the program, and ends the whole group when the program ends, when it is
told to (its input is closed), or when who started it dies, however that came about, since that closes its input too.
What the program prints goes to a file, from which the cause of a failure is told. Nothing here knows what it serves.

The group stays in its starter's session: Linux shares CPUs between sessions (autogroup), and a server of many busy
threads in a session of its own kept its client waiting for 100 ms and more at a time, seen on 2 CPUs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

OWNER = "MOECAP_ENGINE_OWNER"
"""Environment variable of every process of the group: id of the process group that started it."""
GRACE_S = 10.0
"""For an orderly end; then processes are killed."""
TAIL_BYTES = 64 * 1024
CAUSE = re.compile(r"\b(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)): .+")
WRAPPING = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineCore encountered an issue")
"""Messages that only say that something else went wrong."""


class ProcessGroup:
    """A running program."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, inherited: Sequence[int] = ()
    ) -> None:
        """Start `command`, everything it prints going to `log`; it has the file descriptors `inherited` too."""
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(log), *command], stdin=subprocess.PIPE,
            env={**environment, OWNER: str(os.getpgrp())}, process_group=0, pass_fds=inherited,
        )  # fmt: skip

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def cause(self) -> str:
        """What it printed last that tells why it failed; else its last line."""
        return cause_of(self.tail())

    def tail(self) -> str:
        """The end of what it printed."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")

    def end(self) -> None:
        """End every process of the group, and wait for it; safe to call twice."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2 * GRACE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def processes_of(group_id: int) -> list[psutil.Process]:
    """All that lives of what a process group started through here, whatever groups it is in itself."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(OWNER) == str(group_id):
                found.append(process)
    return found


def cause_of(text: str) -> str:
    """The last error that a log names; the last line when it names none."""
    found = [one for one in CAUSE.findall(text) if not any(wrapping in one for wrapping in WRAPPING)]
    lines = text.strip().splitlines()
    return found[-1].strip() if found else lines[-1].strip() if lines else "it printed nothing"


def _lead(log: str, command: Sequence[str]) -> int:
    """Start the program in this group and end the group with it."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the group's end, sent below, is not this process's
    with Path(log).open("ab") as out:
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, close_fds=False
        )
    threading.Thread(target=_end_when_told, args=(program,), daemon=True).start()
    code = program.wait()
    _end_others()
    return code


def _end_when_told(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    program.terminate()
    try:
        program.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        program.kill()


def _end_others() -> None:
    """Whatever the program left behind in the group: asked to end, then killed, this process last."""
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while _others() and time.monotonic() < deadline:
        time.sleep(0.05)
    if _others():
        os.killpg(0, signal.SIGKILL)


def _others() -> list[int]:
    group, found = os.getpgrp(), []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.pid != os.getpid() and os.getpgid(process.pid) == group:
                found.append(process.pid)
    return found


if __name__ == "__main__":
    os._exit(_lead(sys.argv[1], sys.argv[2:]) & 0xFF)  # not waiting for the thread that listens

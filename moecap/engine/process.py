"""A program that serves an engine, as a process group of its own that never outlives the process that started it.

Run as a module it leads that group: it starts the program, and ends the whole group when the program ends, when it is
told to (its input is closed), or when who started it dies, however that came about, since that closes its input too.
What the program prints goes to a file, from which the cause of a failure is told, and to where its starter prints.
Nothing here knows what it serves.

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
from itertools import takewhile
from pathlib import Path

import psutil

OWNER = "MOECAP_ENGINE_OWNER"
"""Environment variable of every process of the group: id of the process group that started it."""
GRACE_S = 10.0
"""For an orderly end; then processes are killed."""
TAIL_BYTES = 64 * 1024
CAUSE = re.compile(r"\b(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)): .+")
CAUSE_LINES = 2
"""At most, below the line that names the error."""
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
    """All that lives of what a process group started through here: every process group with a marked process in it, as
    programs that rename themselves overwrite what they were marked with."""
    living = {process: _group_of(process) for process in psutil.process_iter()}
    groups = {group for process, group in living.items() if group is not None and _owner_of(process) == str(group_id)}
    return [process for process, group in living.items() if group in groups]


def _group_of(process: psutil.Process) -> int | None:
    """None: it is gone."""
    with suppress(ProcessLookupError, psutil.Error):
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    return None


def _owner_of(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        return process.environ().get(OWNER)
    return None


def cause_of(text: str) -> str:
    """The last error that a log names, with what is indented below it; the last line when it names none."""
    lines = text.strip().splitlines()
    for index in reversed(range(len(lines))):
        found = CAUSE.search(lines[index])
        if found and not any(wrapping in found[0] for wrapping in WRAPPING):
            below = takewhile(lambda line: line.startswith((" ", "\t")), lines[index + 1 : index + 1 + CAUSE_LINES])
            return " ".join([found[0].strip(), *(line.strip() for line in below)])
    return lines[-1].strip() if lines else "it printed nothing"


def _lead(log: str, command: Sequence[str]) -> int:
    """Start the program in this group and end the group with it."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the group's end, sent below, is not this process's
        signal.signal(number, lambda *_: None)
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, close_fds=False
    )
    assert program.stdout is not None
    keeper = threading.Thread(target=_keep, args=(program.stdout.fileno(), log), daemon=True)
    keeper.start()
    threading.Thread(target=_end_when_told, args=(program,), daemon=True).start()
    code = program.wait()
    _end_others()
    keeper.join(timeout=GRACE_S)
    return code


def _keep(output: int, log: str) -> None:
    """What is printed goes to the log, from which causes are told, and to where who started this prints."""
    with Path(log).open("ab", buffering=0) as file:
        while printed := os.read(output, 65536):
            file.write(printed)
            with suppress(OSError):  # who started this may be gone
                os.write(1, printed)


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


def _others() -> list[psutil.Process]:
    me, group = os.getpid(), os.getpgrp()
    return [one for one in psutil.process_iter() if one.pid != me and _group_of(one) == group]


if __name__ == "__main__":
    os._exit(_lead(sys.argv[1], sys.argv[2:]) & 0xFF)  # not waiting for the thread that listens

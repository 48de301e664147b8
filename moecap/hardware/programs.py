"""Runs modules of this package as programs of their own, side by side, and reads what the first one prints.

For what must leave nothing behind in the calling process (a CUDA context), or needs several processes (collectives).
None of them outlives its limit, not even when who started it dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import IO

from moecap.errors import CalibrationError

Program = subprocess.Popen[bytes]
POLL_S = 0.05
LIMITED = """\
import runpy, signal, sys
signal.alarm(int(sys.argv.pop(1)))
runpy.run_module(sys.argv.pop(1), {}, "__main__")
"""
"""Ends itself by the kernel's clock, whatever it waits for; then it is as `python -m`."""


def run_programs(
    module: str, arguments: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], limit_s: float
) -> str:
    """What `python -m module arguments[0]` printed to stdout, after it and all others ended well.

    Each gets `environments[i]` on top of this process's. Raises CalibrationError, with the last line of what the failed
    one said, when one fails or all together take longer than `limit_s`; the others are then ended.
    """
    with ExitStack() as files:
        streams = [[files.enter_context(tempfile.TemporaryFile()) for _ in range(2)] for _ in arguments]
        limited = [sys.executable, "-c", LIMITED, str(int(limit_s) + 1)]
        programs = [
            _start([*limited, module, *some], environment, both)
            for some, environment, both in zip(arguments, environments, streams, strict=True)
        ]
        try:
            failed = _wait(programs, time.monotonic() + limit_s)
        finally:
            for program in programs:
                program.kill()
                program.wait()
        if failed is not None:
            raise CalibrationError(_why(programs[failed].returncode, streams[failed][1], limit_s))
        return _read(streams[0][0])


def _start(command: Sequence[str], environment: Mapping[str, str], streams: Sequence[IO[bytes]]) -> Program:
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    out, err = streams
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=found)


def _wait(programs: Sequence[Program], deadline_s: float) -> int | None:
    """Index of one that failed, or that was late; None when all ended well."""
    while True:
        codes = [program.poll() for program in programs]
        bad = next((index for index, code in enumerate(codes) if code), None)
        if bad is not None or None not in codes:
            return bad
        if time.monotonic() > deadline_s:
            return codes.index(None)
        time.sleep(POLL_S)


def _why(code: int, err: IO[bytes], limit_s: float) -> str:
    said = _read(err).strip().splitlines()
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        return f"it took longer than {limit_s:.0f} s, or was killed" + (f"; it last said: {said[-1]}" if said else "")
    return said[-1] if said else f"it ended with code {code} and said nothing"


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")

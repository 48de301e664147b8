"""Programs side by side: what is read of them, and that none outlives its limit."""

import time
from pathlib import Path

import psutil
import pytest

from moecap.errors import CalibrationError
from moecap.hardware.programs import run_programs

PROGRAM = """
import os, sys, time
from pathlib import Path
what, file = sys.argv[1:]
Path(file).write_text(str(os.getpid()))
print("seen", os.environ.get("WHAT"))
if what == "fail":
    raise ValueError("no such unit")
if what == "hang":
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "a_program"


def test_what_the_first_one_prints_is_read(module: str, tmp_path: Path) -> None:
    arguments = [["end", str(tmp_path / name)] for name in ("one", "two")]
    assert run_programs(module, arguments, [{"WHAT": "a"}, {"WHAT": "b"}], 30) == "seen a\n"


def test_the_cause_of_the_one_that_failed_is_told_and_the_others_are_ended(module: str, tmp_path: Path) -> None:
    arguments = [["hang", str(tmp_path / "one")], ["fail", str(tmp_path / "two")]]
    begin_s = time.monotonic()
    with pytest.raises(CalibrationError, match=r"^ValueError: no such unit$"):
        run_programs(module, arguments, [{}, {}], 60)
    assert time.monotonic() - begin_s < 30
    if (tmp_path / "one").exists():  # it may not have come so far
        assert not psutil.pid_exists(int((tmp_path / "one").read_text()))


def test_one_that_hangs_is_ended_at_its_limit(module: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="longer than 2 s, or was killed; it last said: waiting"):
        run_programs(module, [["hang", str(tmp_path / "one")]], [{}], 2)
    assert not psutil.pid_exists(int((tmp_path / "one").read_text()))

"""Other work on the CPUs, by hand."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from moecap.hardware import otherload


def test_what_else_ran_is_counted_niced_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 s: 6 s plain, 8 s niced, 1 s of the kernel and 1 s of interrupts; of them 4.5 s are this process's
    own, 1.5 s its child's, and 2 s those of the child's children that have ended."""
    clock = iter([100.0, 110.0])
    host = iter([Times(), Times(user=6.0, nice=8.0, system=1.0, irq=1.0, idle=4.0, steal=5.0)])
    own = iter([Times(), Times(user=4.0, system=0.5)])
    waited_for = {"children_user": 1.5, "children_system": 0.5}
    child = iter([Times(), SimpleNamespace(user=1.0, system=0.5, **waited_for)])
    monkeypatch.setattr(otherload.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(otherload.psutil, "cpu_times", lambda: next(host))
    children = [SimpleNamespace(cpu_times=lambda: next(child))]
    me = SimpleNamespace(cpu_times=lambda: next(own), children=lambda recursive: children if recursive else [])
    monkeypatch.setattr(otherload.psutil, "Process", lambda: me)
    seen = otherload.OtherLoad().seen().told
    assert seen == "meanwhile other processes kept 0.80 CPUs busy and 0.50 were stolen"


@pytest.mark.parametrize(("others", "stolen", "disturbs"), [(0.3, 0.1, False), (0.3, 0.2, True), (0.0, 0.5, True)])
def test_a_fifth_of_the_cpus_in_use_is_too_much(others: float, stolen: float, disturbs: bool) -> None:
    assert otherload.Seen(others=others, stolen=stolen).disturbs(2) is disturbs


def Times(**seconds: float) -> SimpleNamespace:
    kinds = ("user", "nice", "system", "idle", "irq", "softirq", "steal")
    return SimpleNamespace(**{kind: seconds.get(kind, 0.0) for kind in kinds})


def test_a_grandchild_counts_alive_and_ended() -> None:
    """It keeps a CPU busy for 0.3 s of CPU time and three ticks, by which /proc may cut off (user, system, and once for
    the sum of floats), says so, and waits."""
    wait = "import sys, time; sys.stdin.read()"
    burn = f"import time\nwhile time.process_time() < 0.33: pass\nprint('burnt', flush=True); {wait}"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); {wait}"
    before_s = otherload.family_cpu_s()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "burnt\n"
        alive_s = otherload.family_cpu_s() - before_s
        child.stdin.close()
        child.wait(10)
    ended_s = otherload.family_cpu_s() - before_s
    assert 0.299 <= alive_s <= ended_s


def test_one_that_ends_while_it_is_looked_at_is_nothing() -> None:
    with subprocess.Popen(["true"]) as child:
        gone = otherload.psutil.Process(child.pid)
    assert otherload._cpu_s(gone) == 0.0

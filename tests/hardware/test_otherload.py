"""Other work on the CPUs, by hand."""

from types import SimpleNamespace

import pytest

from moecap.hardware import otherload


def test_what_else_ran_is_counted_niced_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 s: 6 s plain, 8 s niced, 1 s of the kernel and 1 s of interrupts; 8 s of them are this process's own."""
    clock = iter([100.0, 110.0])
    host = iter([Times(), Times(user=6.0, nice=8.0, system=1.0, irq=1.0, idle=4.0, steal=5.0)])
    own = iter([Times(), Times(user=7.0, system=1.0)])
    monkeypatch.setattr(otherload.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(otherload.psutil, "cpu_times", lambda: next(host))
    monkeypatch.setattr(otherload.psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: next(own)))
    seen = otherload.OtherLoad().seen().told
    assert seen == "meanwhile other processes kept 0.80 CPUs busy and 0.50 were stolen"


def Times(**seconds: float) -> SimpleNamespace:
    kinds = ("user", "nice", "system", "idle", "irq", "softirq", "steal")
    return SimpleNamespace(**{kind: seconds.get(kind, 0.0) for kind in kinds})

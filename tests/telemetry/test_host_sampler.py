"""The host sampler against /proc and psutil read another way."""

import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from moecap.telemetry.host import FAMILY_REFRESH_NS, HostSampler

pytestmark = pytest.mark.skipif(not Path("/proc/diskstats").exists(), reason="needs procfs")


def _opened(pid: int | None) -> HostSampler:
    sampler = HostSampler()
    sampler.open(pid)
    return sampler


def _status_bytes(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.fixture
def idle_child() -> Iterator[subprocess.Popen[str]]:
    """A process that has started up and now only waits."""
    code = "import sys; held = bytearray(64 * 2**20); print('up', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        yield child
        assert child.stdin is not None
        child.stdin.close()


def test_engine_memory_is_that_of_its_process(idle_child: subprocess.Popen[str]) -> None:
    rss = _opened(idle_child.pid).sample(0).values["engine_rss_bytes"]
    assert rss == pytest.approx(_status_bytes(idle_child.pid, "VmRSS:"), rel=0.02)
    assert rss > 64 * 2**20


def test_engine_memory_counts_its_descendants(idle_child: subprocess.Popen[str]) -> None:
    rss = _opened(os.getpid()).sample(0).values["engine_rss_bytes"]
    everyone = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    assert idle_child.pid in everyone
    assert rss == pytest.approx(sum(_status_bytes(pid, "VmRSS:") for pid in everyone), rel=0.05)


def test_descendants_are_found_again_from_time_to_time() -> None:
    sampler = _opened(os.getpid())
    alone = sampler.sample(0).values["engine_rss_bytes"]
    code = "held = bytearray(64 * 2**20); print('up', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        assert sampler.sample(FAMILY_REFRESH_NS - 1).values["engine_rss_bytes"] < alone + 32 * 2**20
        assert sampler.sample(FAMILY_REFRESH_NS).values["engine_rss_bytes"] > alone + 64 * 2**20
        child.stdin.write(b"\n")
    assert sampler.sample(FAMILY_REFRESH_NS + 1).values["engine_rss_bytes"] < alone + 32 * 2**20  # it ended


def test_counters_are_those_of_procfs() -> None:
    disks = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    whole = {folder.name for folder in Path("/sys/block").iterdir()}
    before = sum(int(disk[5]) * 512 for disk in disks if disk[2] in whole)
    values = _opened(None).sample(0).values
    assert before <= values["disk_read_bytes"] <= before + 2**30
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    received = {line.split(":")[0].strip(): int(line.split(":")[1].split()[0]) for line in lines}
    outside = sum(count for name, count in received.items() if name != "lo")
    assert outside - 2**30 <= values["network_received_bytes"] <= outside


def test_memory_used_is_near_what_meminfo_leaves_unavailable() -> None:
    used = _opened(None).sample(0).values["memory_used_bytes"]
    lines = Path("/proc/meminfo").read_text().splitlines()
    meminfo = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    assert used == pytest.approx(meminfo["MemTotal"] - meminfo["MemAvailable"], abs=2**30)


Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest")


def test_utilisation_is_the_busy_share_since_the_sample_before(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = Times(*[0.0] * 9)
    later = zero._replace(user=3.0, system=1.0, steal=1.0, idle=4.0, iowait=1.0, guest=2.0)
    readings = iter([zero, later, later])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    sampler = _opened(None)
    assert sampler.sample(0).unknown["cpu_utilisation"] == "utilisation needs an earlier sample"
    # user (guests included), system and stolen: 5 busy seconds of 10
    assert sampler.sample(1).values["cpu_utilisation"] == 0.5
    assert "did not tick" in sampler.sample(2).unknown["cpu_utilisation"]


def test_a_lost_engine_makes_only_its_memory_unknown() -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    reading = _opened(child.pid).sample(0)
    assert set(reading.unknown) == {"engine_rss_bytes", "cpu_utilisation"}
    assert str(child.pid) in reading.unknown["engine_rss_bytes"]


def test_each_quantity_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> SimpleNamespace:
        raise PermissionError(13, "Permission denied", "/proc/net/dev")

    monkeypatch.setattr(psutil, "net_io_counters", refused)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: None)
    reading = _opened(os.getpid()).sample(0)
    assert "/proc/net/dev" in reading.unknown["network_sent_bytes"]
    assert reading.unknown["disk_read_bytes"] == "this host shows no disk"
    assert {"memory_used_bytes", "engine_rss_bytes"} <= set(reading.values)


def test_counters_are_read_once_a_second_and_at_both_edges() -> None:
    sampler = _opened(None)
    read = [k for k in range(31) if "disk_read_bytes" in sampler.sample(k * 10**8, edge=k in (0, 27)).values]
    assert read == [0, 10, 20, 27]
    assert "memory_used_bytes" in sampler.sample(31 * 10**8, edge=False).values


def test_every_quantity_is_either_known_or_explained() -> None:
    reading = _opened(os.getpid()).sample(0)
    assert {*reading.values, *reading.unknown} == set(HostSampler.quantities)
    assert not set(reading.values) & set(reading.unknown)

"""What a node's CPUs, memory, clock, counters, disk and store mean for measuring. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from moecap.doctor.facts import NodeFacts, StoreAnswers
from moecap.doctor.finding import Finding, State

SLOW_CLOCK_NS = 1000.0
"""Passes take milliseconds; reading the clock a few times for each must not show."""
LITTLE_BYTES = 5 * 10**9
NO_BYTES = 10**8
"""Free at the store: a run takes 1 to 100 MB."""


def judge_host(facts: NodeFacts) -> Iterator[Finding]:
    """Everything but software and accelerators."""
    yield _store(facts.store)
    yield _cpus(facts)
    yield _memory(facts)
    yield _governor(facts)
    yield _clock(facts)
    yield _host(facts)
    yield from _rapl(facts)
    yield _disk(facts)


def _store(store: StoreAnswers) -> Finding:
    if store.folder is None or store.free_bytes is None:
        return Finding(what="store", state="ok", detail=f"{store.uri}: an object store, which was not tried")
    free = f"{store.free_bytes / 1e9:.1f} GB free at {store.folder}"
    if not store.writable:
        remedy = "give --store a folder that may be written"
        return Finding(what="store", state="missing", detail=f"{free}, not writable", remedy=remedy, needed=True)
    if store.free_bytes < LITTLE_BYTES:
        full = store.free_bytes < NO_BYTES
        remedy = "free some: a run takes 1 to 100 MB"
        return Finding(what="store", state="missing" if full else "limited", detail=free, remedy=remedy, needed=full)
    return Finding(what="store", state="ok", detail=free)


def _cpus(facts: NodeFacts) -> Finding:
    allowed, quota = facts.allowed_cpus, facts.cpu_quota
    if quota is not None and quota < allowed:
        detail = f"a quota of {quota:g} CPUs' time on {allowed} CPUs: whoever exceeds it stands still for a while"
        remedy = "raise the quota, or pin whole CPUs (cpuset; Kubernetes: static CPU manager, whole CPUs requested)"
        return Finding(what="CPUs", state="limited", detail=detail, remedy=remedy)
    return Finding(what="CPUs", state="ok", detail=f"{allowed} of the machine's {facts.machine_cpus}, no quota")


def _memory(facts: NodeFacts) -> Finding:
    whole, limit = facts.memory_bytes, facts.memory_limit_bytes
    if limit is not None and limit < whole:
        detail = f"limited to {limit / 2**30:.1f} of {whole / 2**30:.1f} GiB"
        return Finding(what="memory", state="limited", detail=detail, remedy="raise the control group's memory limit")
    return Finding(what="memory", state="ok", detail=f"{whole / 2**30:.1f} GiB, no limit")


def _governor(facts: NodeFacts) -> Finding:
    found = facts.governors
    if not found:
        detail = "the system shows no frequency governor, as virtual machines: frequency is up to the host"
        return Finding(what="CPU frequency", state="limited", detail=detail)
    if found == ("performance",):
        return Finding(what="CPU frequency", state="ok", detail="governor performance")
    remedy = "sudo cpupower frequency-set -g performance"
    detail = f"governor {', '.join(found)}: clocks rise only under load"
    return Finding(what="CPU frequency", state="limited", detail=detail, remedy=remedy)


def _clock(facts: NodeFacts) -> Finding:
    detail = f"{facts.clock_source or 'unknown source'}, {facts.clock_read_ns:.0f} ns a reading"
    if facts.clock_read_ns <= SLOW_CLOCK_NS:
        return Finding(what="clock", state="ok", detail=detail)
    remedy = "choose a faster one of /sys/devices/system/clocksource/clocksource0/available_clocksource (tsc)"
    return Finding(what="clock", state="limited", detail=detail, remedy=remedy)


def _host(facts: NodeFacts) -> Finding:
    lacking = {name: why for name, why in facts.host.items() if why}
    if not lacking:
        return Finding(what="host counters", state="ok", detail="CPU, memory, disk, network")
    detail = "; ".join(f"{name}: {why}" for name, why in lacking.items())
    remedy = "mount /proc of the host, or run outside the container"
    return Finding(what="host counters", state="limited", detail=detail, remedy=remedy)


def _rapl(facts: NodeFacts) -> Iterator[Finding]:
    """The sampler's reasons end with the remedy where there is one."""
    for what, quantity in {"package": "package_energy_j", "DRAM": "dram_energy_j"}.items():
        why = facts.rapl[quantity]
        reason, _, remedy = why.partition(": ") if "`sudo " in why else (why, "", "")
        state: State = "missing" if why else "ok"
        yield Finding(what=f"energy, {what} (RAPL)", state=state, detail=reason or "counts joules", remedy=remedy)


def _disk(facts: NodeFacts) -> Finding:
    if facts.not_direct is None:
        return Finding(what="disk reads", state="ok", detail=f"O_DIRECT at {facts.scratch}")
    detail = f"{facts.not_direct}: the page cache serves offloaded experts, and the disk has no peak"
    remedy = "set TMPDIR, or the system's offload_folder, to a local disk"
    return Finding(what="disk reads", state="limited", detail=detail, remedy=remedy)

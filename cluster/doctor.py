"""Examines every node of a cluster, all at the same time, and shows what was found; what it means, moecap.doctor
says.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import ray

from cluster.console import table
from cluster.inventory import LiveNode, answers
from moecap.doctor.finding import Finding
from moecap.doctor.judge import judge_fleet, judge_node, needed_and_missing, runtime
from moecap.records import to_jsonable

WIDTH = 88
"""Of what is said of a finding."""
LOOK_S = 180.0
"""Most for all nodes; a node with devices loads torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """What was found."""

    nodes: Mapping[str, Sequence[Finding]]
    """Name of a node -> what it shows."""
    fleet: Sequence[Finding]
    """What only all together show."""

    @property
    def needed(self) -> list[str]:
        """What is missing without which nothing can be measured, and where."""
        everywhere = {**self.nodes, "all nodes": self.fleet}
        return [
            f"{one.what} ({where}): {one.detail}; {one.remedy}"
            for where, findings in everywhere.items()
            for one in needed_and_missing(findings)
        ]


def examine(nodes: Sequence[LiveNode], store: str) -> Examination:
    """Ask every node. ClusterError when one doesn't answer."""
    names = _names(nodes)
    found = answers(names, {node.info.node_id: node.agent.look.remote(store) for node in nodes}, LOOK_S)
    facts = {names[node_id]: one for node_id, one in found.items()}
    return Examination(
        nodes={name: judge_node(one) for name, one in facts.items()},
        fleet=judge_fleet(facts, runtime({"ray": ray.__version__}, platform.python_version())),
    )


def examination_text(found: Examination) -> str:
    """A table for every node, and one for all together."""
    return "\n\n".join(_blocks(found))


def examination_document(found: Examination) -> dict[str, Any]:
    """All of it as JSON."""
    return {
        "nodes": [{"node": name, "findings": to_jsonable(findings)} for name, findings in found.nodes.items()],
        "fleet": to_jsonable(found.fleet),
        "needed": found.needed,
    }


def _names(nodes: Sequence[LiveNode]) -> dict[str, str]:
    """Node -> its host name; with the start of its id where several have that name."""
    hosts = [node.info.hostname for node in nodes]
    return {
        node.info.node_id: node.info.hostname
        if hosts.count(node.info.hostname) == 1
        else f"{node.info.hostname} {node.info.node_id[:8]}"
        for node in nodes
    }


def _blocks(found: Examination) -> Iterator[str]:
    for name, findings in {**found.nodes, "all nodes": found.fleet}.items():
        rows = [row for one in findings for row in _rows(one)]
        yield f"{name}\n{table(('state', 'what', 'detail'), rows)}"


def _rows(finding: Finding) -> Iterator[tuple[str, str, str]]:
    remedy = f"-> {finding.remedy}" if finding.remedy and finding.state != "ok" else ""
    first, *rest = [*wrap(finding.detail, WIDTH), *wrap(remedy, WIDTH, subsequent_indent="   ")]
    yield finding.state, finding.what, first
    for line in rest:
        yield "", "", line

"""Which nodes there are: reaches Ray, puts one agent on every live node and asks what it is.

It places nothing and starts no engine.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import moecap
from cluster.node import NodeAgent
from moecap.errors import ClusterError
from moecap.records import NodeInfo

ANSWER_TIMEOUT_S = 90.0
"""For all agents to start and to describe their nodes."""
CONNECT_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 256 * 2**20
"""Of an embedded Ray: runs go to the store by themselves, only summaries and telemetry pass through."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveNode:
    """A node, and the actor that speaks for it."""

    info: NodeInfo
    agent: Any
    """Ray actor handle of a NodeAgent."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start one inside this process (`local`). ClusterError when it can't.

    Ray's driver prints what raylets report to stdout, which belongs to results: it goes to stderr meanwhile.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would measure engines behind every other process
    embedded: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    settings = embedded if address == "local" else {}
    _check_reachable(address)
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Ray cluster could be reached at {address!r}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes. ClusterError when nothing answers at HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        return  # `local`, `auto`, or what Ray refuses by itself
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster could be reached at {address!r}: {error}; is its head running?") from error


def inventory() -> tuple[LiveNode, ...]:
    """Every live node, by host name. ClusterError when one doesn't answer or runs another version of moecap."""
    found = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    agents = {node_id: _agent(node_id) for node_id in found}
    hostnames = {node_id: node["NodeManagerHostname"] for node_id, node in found.items()}
    versions = answers(hostnames, {node_id: agent.version.remote() for node_id, agent in agents.items()})
    wrong = {node_id: version for node_id, version in versions.items() if version != moecap.__version__}
    if wrong:
        listed = ", ".join(f"{hostnames[node_id]}: {version}" for node_id, version in wrong.items())
        raise ClusterError(
            f"this driver runs moecap {moecap.__version__}; other versions on {listed}; install the same"
        )
    infos = answers(
        hostnames,
        {node_id: agent.describe.remote(node_id, found[node_id]["Labels"]) for node_id, agent in agents.items()},
    )
    nodes = [
        LiveNode(info=_as_offered(infos[node_id], found[node_id]["Resources"]), agent=agent)
        for node_id, agent in agents.items()
    ]
    return tuple(sorted(nodes, key=lambda node: (node.info.hostname, node.info.node_id)))


def alive_node_ids() -> set[str]:
    """Nodes that Ray believes alive now."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Schedule there or nowhere."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _agent(node_id: str) -> Any:
    """Takes no CPU of Ray's count, so that an engine can have them all. Restarted when it dies, and asked again: a call
    to it fails only when Ray knows that its node is gone."""
    options = {"num_cpus": 0, "max_restarts": 3, "max_task_retries": -1, "scheduling_strategy": on_node(node_id)}
    return ray.remote(NodeAgent).options(**options).remote()


def _as_offered(info: NodeInfo, resources: dict[str, float]) -> NodeInfo:
    """Ray may offer fewer CPUs than the machine has; none at all keeps a head node out of the measurement."""
    return replace(info, num_cpus=min(info.num_cpus, int(resources.get("CPU", 0))))


def answers(
    hostnames: Mapping[str, str], asked: Mapping[str, Any], timeout_s: float = ANSWER_TIMEOUT_S
) -> dict[str, Any]:
    """Node -> its agent's answer. ClusterError for one that doesn't answer in time."""
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    found = {}
    for node_id, ref in asked.items():
        try:
            found[node_id] = ray.get(ref, timeout=0.1)
        except RayError as error:
            raise ClusterError(
                f"node {hostnames[node_id]} gave no answer: {error}; check that moecap {moecap.__version__} is "
                "installed there"
            ) from error
    return found

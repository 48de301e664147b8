"""Replays as one document: what `moecap-cluster predict --ep` prints. Numbers that are estimates or bounded are
{value, low, high, provenance}; plain numbers are exact given the routing.

`low` and `high` are null where nothing bounds the value on that side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecap.dtypes import canonical
from moecap.errors import ConfigError
from moecap.hardware.catalogue import DeviceSpec
from moecap.model.describe import Described
from moecap.model.widths import width_of
from moecap.predict.collectives import links_of
from moecap.predict.expert_parallel import WAYS, Device, Layout, Replay, lay_out, replay
from moecap.predict.placement import PlacementKind, topology
from moecap.predict.recorded import experts_of
from moecap.predict.replay import Range
from moecap.predict.routing import Routing
from moecap.predict.traffic import Backend, row_bytes

DEVICES_PER_NODE = 8
"""Where nothing else is said."""
ROOFLINE = "expert weights and products at the device's rated peaks, the larger"
"""A lower bound of time, without an upper one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Which layouts."""

    degrees: Sequence[int]
    nodes: Sequence[int]
    """As many as degrees."""
    placement: PlacementKind = "linear"
    redundant: int = 0
    """Capped where a smaller degree can't hold so many without an expert twice on a rank."""
    backend: Backend = "all_to_all"


def nodes_of(degrees: Sequence[int], nodes: Sequence[int]) -> list[int]:
    """Nodes per degree: as said, one number for all, or 8 devices a node. ConfigError where it isn't clear."""
    if len(nodes) == 1:
        return [nodes[0]] * len(degrees)
    if nodes:
        if len(nodes) != len(degrees):
            raise ConfigError(
                "goes with --ep number by number", "--ep-nodes", list(nodes), f"give {len(degrees)}, or 1"
            )
        return list(nodes)
    found = []
    for degree in degrees:
        if degree > DEVICES_PER_NODE and degree % DEVICES_PER_NODE:
            raise ConfigError(f"doesn't fill nodes of {DEVICES_PER_NODE}", "--ep", degree, "say how many: --ep-nodes")
        found.append(max(1, degree // DEVICES_PER_NODE))
    return found


def device_of(
    described: Described,
    spec: DeviceSpec,
    *,
    dtype: str | None = None,
    dispatch_bytes_per_element: float = 2.0,
    combine_bytes_per_element: float = 2.0,
    network_bytes_per_s: float = 50e9,
) -> Device:
    """What a rank is. ConfigError for a device or a model of which something that counts isn't known."""
    shape, stored = described.shape, described.stored
    moe = [layer for layer in shape.layers if layer.num_experts]
    if dtype is not None:
        width = width_of(dtype, "--dtype")
    elif stored is not None:
        width = stored.bytes["routed_expert"] / sum(layer.num_experts * layer.expert_params for layer in moe)
    else:
        raise ConfigError("is stored in a way that isn't known", "--model", shape.name, "give --dtype")
    if spec.memory_bytes_per_s is None:
        raise ConfigError("has no known memory bandwidth", "--device", spec.key, "use another device")
    return Device(
        expert_bytes=[layer.expert_params * width for layer in moe],
        expert_flops=[2 * layer.routed_matmul_params_per_token / layer.top_k for layer in moe],
        memory_bytes_per_s=spec.memory_bytes_per_s,
        flops_per_s=_flops_per_s(spec, dtype or described.dtype or "bfloat16"),
        links=links_of(spec, network_bytes_per_s),
        row=row_bytes(shape.hidden_size, dispatch_bytes_per_element, combine_bytes_per_element),
    )


def _flops_per_s(spec: DeviceSpec, dtype: str) -> float:
    """Dense peak of the dtype; weights in one that the device doesn't multiply are multiplied in bfloat16."""
    for name in (canonical(dtype.lower()), "bfloat16", "float16", "float32"):
        if name in spec.dense_flops_per_s:
            return spec.dense_flops_per_s[name]
    raise ConfigError("has no known dense peak", "--device", spec.key, "use another device")


def split(routing: Routing, placement: PlacementKind) -> tuple[Routing, Routing]:
    """The passes whose load experts are placed by, and those that are replayed: for `balanced` the first half and the
    second, since a placement that has seen its own test would look too good; else all. ConfigError for one pass."""
    if placement != "balanced":
        return routing, routing
    if routing.num_passes < 2:
        remedy = "use routing of two passes or more"
        raise ConfigError("places by one half of the passes and replays the other", "--placement", placement, remedy)
    middle = routing.num_passes // 2
    return routing.between(0, middle), routing.between(middle, routing.num_passes)


def replays(routing: Routing, asked: Asked, device: Device) -> list[Replay]:
    """One per degree."""
    measured, replayed = split(routing, asked.placement)
    return [
        replay(replayed, _layout(measured, degree, nodes, asked), asked.backend, device)
        for degree, nodes in zip(asked.degrees, asked.nodes, strict=True)
    ]


def _layout(measured: Routing, degree: int, nodes: int, asked: Asked) -> Layout:
    where = topology(degree, nodes)
    most = measured.num_experts * (degree - 1)
    redundant = min(asked.redundant, most) if asked.placement == "balanced" else asked.redundant
    return lay_out(measured.load(), where, asked.placement, redundant)


def check_fits(routing: Routing, described: Described) -> None:
    """ConfigError when the routing is of other experts than the model's."""
    layers, num_experts, top_k = experts_of(described.shape)
    if (layers, num_experts, top_k) != (routing.layers, routing.num_experts, routing.top_k):
        of = f"{len(routing.layers)} layers of {routing.num_experts} experts, top-{routing.top_k}"
        remedy = f"its routing is of {of}; name the model that was measured"
        raise ConfigError("is not what the store holds routing of", "--model", described.shape.name, remedy)


def document(found: Replay, device: Device) -> dict[str, Any]:
    """One layout."""
    where, passes, layers = found.layout.where, *found.most_assignments.shape
    pairs = passes * layers
    read = found.rank_expert_bytes.sum(axis=0)
    even, total = found.mean_assignments, float(found.mean_assignments.sum())
    return {
        "ep": where.num_ranks,
        "ep_nodes": where.num_nodes,
        "placement": found.layout.kind,
        "redundant_experts": len(found.layout.placements[0].rank_of_slot) - found.layout.placements[0].num_experts,
        "backend": found.backend,
        "passes": passes,
        "layers": layers,
        "tokens": int(found.tokens.sum()),
        "rank_assignments": found.rank_assignments.sum(axis=0).tolist(),
        "imbalance": _spread(found, total),
        "straggler_assignments": found.straggler_tokens,
        "straggler_share": _number(found.straggler_share, None, None, ROOFLINE),
        "expert_bytes_read_per_layer": {
            "busiest_rank": float(found.most_expert_bytes.sum()) / pairs, "mean": float(read.mean()) / pairs,
        },
        "bytes_per_layer": {way: _mean(found.bytes[way], _how(found)) for way in WAYS},
        "busiest_rank_bytes_per_layer": _mean(found.busiest_bytes, _how(found)),
        "compute_s_per_layer": _number(compute := float(found.compute_s.mean()), compute, None, ROOFLINE),
        "dispatch_s_per_layer": _mean(found.dispatch_s, found.time_provenance),
        "combine_s_per_layer": _mean(found.combine_s, found.time_provenance),
        "layer_s": {**_mean(found.layer_s, f"{ROOFLINE}; {found.time_provenance}"), "high": None},
        "experts_s_mbu_by_rank": _s_mbu(found, device),
    } if even.size else {}  # fmt: skip


def _spread(found: Replay, total: float) -> dict[str, float]:
    ratios = found.imbalance[found.mean_assignments > 0]
    p50, p90, p99 = np.percentile(ratios, (50, 90, 99)).tolist()
    return {
        "ratio_of_sums": float(found.most_assignments.sum()) / total, "mean": float(ratios.mean()),
        "p50": p50, "p90": p90, "p99": p99, "max": float(ratios.max()),
    }  # fmt: skip


def _how(found: Replay) -> str:
    one = next(iter(found.bytes.values()))
    if all((way.low == way.high).all() for way in found.bytes.values()):
        return "exact, from the routing" if found.backend == "all_to_all" else "exact, from the tokens per pass"
    assert not (one.low > one.high).any()
    return "bounds and an estimate for independent tokens, from counts alone"


def _mean(values: Range, provenance: str) -> dict[str, Any]:
    low, value, high = (float(np.mean(one)) for one in values)
    return _number(value, low, high if np.isfinite(high) else None, provenance)


def _s_mbu(found: Replay, device: Device) -> dict[str, Any]:
    """Bytes of active experts over the layers' time and the device's peak, by rank; compute and transfers in it. No
    lower bound: nothing bounds the time from above."""
    read = found.rank_expert_bytes.sum(axis=0) / device.memory_bytes_per_s
    least, value, _ = (float(one.sum()) for one in found.layer_s)
    how = f"distinct experts x expert bytes, exact; time: {ROOFLINE}; {found.time_provenance}"
    return {"value": (read / value).tolist(), "low": None, "high": (read / least).tolist(), "provenance": how}


def _number(value: float, low: float | None, high: float | None, provenance: str) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "provenance": provenance}


def knee(x: Sequence[float], y: Sequence[float]) -> int | None:
    """Index of the point farthest from the chord between the ends, both axes scaled to 0..1 (Satopaa et al., 2011);
    None: fewer than three points, or a straight line."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) < 3 or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return None
    u, v = (xs - xs[0]) / (xs[-1] - xs[0]), (ys - ys.min()) / np.ptp(ys)
    away = np.abs(v - (v[0] + u * (v[-1] - v[0])))
    return int(away.argmax()) if away.max() > 1e-9 else None


def text(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows for people: degree, nodes, imbalance, bytes, times."""
    return [
        (
            f"{one['ep']}", f"{one['ep_nodes']}", f"{one['imbalance']['ratio_of_sums']:.2f}",
            f"{one['imbalance']['p99']:.2f}", f"{100 * one['straggler_share']['value']:.1f} %",
            *(_bytes(one["bytes_per_layer"], place) for place in ("in_node", "between_nodes")),
            f"{1e6 * one['layer_s']['value']:.1f}", one["dispatch_s_per_layer"]["provenance"],
        )
        for one in documents
    ]  # fmt: skip


def _bytes(ways: Mapping[str, Mapping[str, float]], place: str) -> str:
    low, value, high = (
        sum(ways[f"{way}_bytes_{place}"][key] for way in ("dispatch", "combine")) / 1e6
        for key in ("low", "value", "high")
    )  # fmt: skip
    return f"{value:.3f}" if low == high else f"{value:.3f} ({low:.3f} to {high:.3f})"

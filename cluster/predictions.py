"""`moecap-cluster predict --ep`: from options to a document, its table and its figures. Composition only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.console import table
from cluster.reduce import open_study, whole_runs
from moecap.errors import ConfigError
from moecap.hardware.catalogue import find_device
from moecap.model.describe import find_model
from moecap.predict.document import Asked, check_fits, device_of, document, nodes_of, replays, split, text
from moecap.predict.recorded import experts_of, recorded_routing
from moecap.predict.routing import Routing
from moecap.predict.synthetic import exponent_of, synthetic_routing
from moecap.records import ModelShape

DRAWN_PASSES = 64
HEADERS = (
    "EP", "nodes", "max/mean", "p99", "straggler", "MB in nodes", "MB between nodes", "layer µs", "collectives",
)  # fmt: skip
LEGEND = (
    "per layer and pass; max/mean: assignments of the busiest rank over the mean; straggler: of the slowest rank's "
    "compute time; MB: dispatch + combine of all ranks; layer: routed experts, dispatch and combine alone"
)


def prediction(
    model: str,
    device: str,
    *,
    ep: str,
    ep_nodes: str,
    skew: str,
    study_name: str | None,
    phase: str | None,
    batch_size: int,
    placement: Any,
    redundant_experts: int,
    backend: Any,
    dtype: str | None,
    dispatch_bytes_per_element: float,
    network_gb_per_s: float,
    figures: Path | None,
) -> dict[str, Any]:
    """The document, figures written. ConfigError for what can't be laid out."""
    described, spec = find_model(model), find_device(device)
    degrees = _numbers(ep, "--ep")
    routing = _routing(described.shape, skew, study_name, phase, batch_size)
    check_fits(routing, described)
    asked = Asked(
        degrees=degrees, nodes=nodes_of(degrees, _numbers(ep_nodes, "--ep-nodes") if ep_nodes else ()),
        placement=placement, redundant=redundant_experts, backend=backend,
    )  # fmt: skip
    rank = device_of(
        described, spec, dtype=dtype, dispatch_bytes_per_element=dispatch_bytes_per_element,
        network_bytes_per_s=network_gb_per_s * 1e9,
    )  # fmt: skip
    found = replays(routing, asked, rank)
    measured, replayed = split(routing, placement)
    files = _draw(found, replayed, figures) if figures else []
    return {
        "model": described.shape.name, "device": spec.key, "skew": skew, "phase": phase,
        "experts": routing.num_experts, "top_k": routing.top_k,
        "token_ids": routing.token_experts is not None, "passes_placed_by": measured.num_passes,
        "passes_replayed": replayed.num_passes, "layouts": [document(one, rank) for one in found],
        "figures": files,
    }  # fmt: skip


def prediction_text(found: Mapping[str, Any]) -> str:
    """For people."""
    known = "every token's experts" if found["token_ids"] else "counts alone"
    head = f"{found['model']} on {found['device']}, {found['passes_replayed']} passes of {found['skew']}, from {known}"
    return "\n".join([head, table(HEADERS, text(found["layouts"])), LEGEND, *found["figures"]])


def _numbers(listed: str, key: str) -> list[int]:
    try:
        return [int(one) for one in listed.split(",")]
    except ValueError as error:
        raise ConfigError("is no list of whole numbers", key, listed, "write 1,2,4,8") from error


def _routing(shape: ModelShape, skew: str, study: str | None, phase: str | None, batch_size: int) -> Routing:
    if skew != "uniform" and not skew.startswith("zipf:"):
        return recorded_routing(whole_runs(open_study(skew, study)[0]), phase)
    layers, num_experts, top_k = experts_of(shape)
    return synthetic_routing(
        layers=layers, num_experts=num_experts, top_k=top_k, tokens=np.full(DRAWN_PASSES, batch_size),
        exponent=exponent_of(skew), seed=0,
    )  # fmt: skip


def _draw(found: Any, replayed: Routing, folder: Path) -> list[str]:
    from moecap.report.expert_parallel import write_figures  # noqa: PLC0415 - matplotlib

    return [str(path) for path in write_figures(found, replayed, folder)]

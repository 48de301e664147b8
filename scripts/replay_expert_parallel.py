"""Make the data and figures of docs/results/ep-replay.md, and print its tables.

    python scripts/replay_expert_parallel.py [--out docs/results/ep-replay]

Two traces: what the routers of the packaged reference model really did (docs/results/ep-replay/store, with every
token's experts), and one drawn by a Zipf law for the shape of Qwen3-30B-A3B. Experts are placed by the first half of
the passes, the second half is replayed, under every placement.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moecap.hardware.catalogue import find_device
from moecap.model.describe import find_model
from moecap.predict.document import device_of, document, nodes_of
from moecap.predict.expert_parallel import Device, Replay, lay_out, replay
from moecap.predict.placement import PlacementKind, topology
from moecap.predict.recorded import experts_of, recorded_routing
from moecap.predict.routing import Routing
from moecap.predict.synthetic import synthetic_routing
from moecap.report.canvas import save
from moecap.report.expert_parallel import degree_figure, imbalance_figure, load_figure
from moecap.store import Store

RESULTS = Path(__file__).resolve().parent.parent / "docs/results/ep-replay"
DEVICE = "nvidia-h100-sxm5-80gb"
UNIFORM = "uniform routing, linear"


@dataclass(frozen=True, kw_only=True)
class Trace:
    name: str
    routing: Routing
    device: Device
    degrees: Sequence[int]
    redundant: int
    shown: int
    """Degree of the heat maps and of imbalance over time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    for trace in (recorded(), drawn()):
        found = sweeps(trace)
        documents = {name: [document(one, trace.device) for one in sweep] for name, sweep in found.items()}
        (out / f"{trace.name}.json").write_text(as_json(documents), encoding="utf-8")
        draw(trace, found, out)
        print(f"{trace.name}", "", *table(documents), "", *time_table(documents), "", sep="\n")
    print(*bounds_table(recorded()), sep="\n")


def recorded() -> Trace:
    store = Store(str(RESULTS / "store"), "ep-replay")
    routing = recorded_routing([store.load_run(run_id) for run_id in store.whole_runs()])
    device = device_of(find_model("reference"), find_device(DEVICE))
    return Trace(name="recorded", routing=routing, device=device, degrees=(1, 2, 4, 8, 16), redundant=8, shown=8)


def drawn() -> Trace:
    described = find_model("Qwen/Qwen3-30B-A3B")
    layers, num_experts, top_k = experts_of(described.shape)
    routing = synthetic_routing(
        layers=layers, num_experts=num_experts, top_k=top_k, tokens=np.full(16, 4096), exponent=0.8, seed=0
    )
    device = device_of(described, find_device(DEVICE))
    degrees = (1, 2, 4, 8, 16, 32, 64, 128)
    return Trace(name="zipf", routing=routing, device=device, degrees=degrees, redundant=32, shown=32)


def halves(routing: Routing) -> tuple[Routing, Routing]:
    middle = routing.num_passes // 2
    return routing.between(0, middle), routing.between(middle, routing.num_passes)


def sweeps(trace: Trace) -> dict[str, list[Replay]]:
    measured, replayed = halves(trace.routing)
    uniform = synthetic_routing(
        layers=replayed.layers, num_experts=replayed.num_experts, top_k=replayed.top_k, tokens=replayed.tokens,
        exponent=0.0, seed=1,
    )  # fmt: skip
    wanted: dict[str, tuple[Routing, PlacementKind, int]] = {
        "linear": (replayed, "linear", 0),
        "balanced": (replayed, "balanced", 0),
        f"balanced, {trace.redundant} redundant": (replayed, "balanced", trace.redundant),
        UNIFORM: (uniform, "linear", 0),
    }
    places = [topology(one, nodes) for one, nodes in zip(trace.degrees, nodes_of(trace.degrees, ()), strict=True)]
    return {
        name: [
            replay(
                routing,
                lay_out(measured.load(), where, kind, redundant if where.num_ranks > 1 else 0),
                "all_to_all",
                trace.device,
            )
            for where in places
        ]
        for name, (routing, kind, redundant) in wanted.items()
    }


def draw(trace: Trace, found: Mapping[str, list[Replay]], out: Path) -> None:
    at = list(trace.degrees).index(trace.shown)
    _, replayed = halves(trace.routing)
    real = {name: sweep for name, sweep in found.items() if name != UNIFORM}
    save(degree_figure(real), out / f"{trace.name}_degree.png")
    save(imbalance_figure({name: sweep[at] for name, sweep in real.items()}), out / f"{trace.name}_imbalance.png")
    save(load_figure(replayed, found["balanced"][at]), out / f"{trace.name}_load.png")


def as_json(documents: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line per layout."""
    parts = [
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(one) for one in sweep) + "\n]"
        for name, sweep in documents.items()
    ]
    return "{" + ",\n".join(parts) + "}\n"


def table(documents: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Per degree: imbalance by placement, and what balance takes of the straggler cost, or hides of it."""
    names = list(documents)
    shares = ("balanced saves %", "with redundant %", "uniform hides %")
    yield "| " + " | ".join(["EP", *(f"max/mean {name}" for name in names), *shares]) + " |"
    yield "| --- |" + " --- |" * (len(names) + 3)
    for row in zip(*documents.values(), strict=True):
        linear, *others = (one["straggler_assignments"] for one in row)
        saved = [f"{100 * (1 - other / linear):.1f}" if linear else "–" for other in others]
        ratios = [f"{one['imbalance']['ratio_of_sums']:.2f}" for one in row]
        yield "| " + " | ".join([str(row[0]["ep"]), *ratios, *saved]) + " |"


def time_table(documents: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Per degree: what the slowest rank's compute takes by placement, at rated peaks."""
    yield (
        "| EP | "
        + " | ".join(f"µs {name}" for name in documents)
        + " | share lost, linear % | share lost, redundant % |"
    )
    yield "| --- |" + " --- |" * (len(documents) + 2)
    for row in zip(*documents.values(), strict=True):
        cells = [f"{1e6 * one['compute_s_per_layer']['value']:.2f}" for one in row]
        lost = [f"{100 * row[at]['straggler_share']['value']:.1f}" for at in (0, 2)]
        yield "| " + " | ".join([str(row[0]["ep"]), *cells, *lost]) + " |"


def bounds_table(trace: Trace) -> Iterator[str]:
    """Bytes of dispatch and combine, exact from the tokens' experts, against what counts alone tell."""
    yield "| EP | nodes | links | exact MB | from counts: low | estimate | high | error of the estimate % |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    measured, replayed = halves(trace.routing)
    for degree, nodes, links in ((2, 1, "in"), (4, 1, "in"), (8, 1, "in"), (8, 2, "between"), (16, 2, "between")):
        layout = lay_out(measured.load(), topology(degree, nodes), "balanced")
        place = {"in": "in_node", "between": "between_nodes"}[links]
        exact, known = (
            [float(sum(one.bytes[f"{way}_bytes_{place}"][at].sum() for way in ("dispatch", "combine"))) / 1e6
             for at in range(3)]
            for routing in (replayed, replayed.without_ids())
            for one in [replay(routing, layout, "all_to_all", trace.device)]
        )  # fmt: skip
        cells = [f"{one:.1f}" for one in (exact[1], *known)]
        error = f"{100 * (known[1] / exact[1] - 1):+.1f}"
        yield f"| {degree} | {nodes} | {links} nodes | " + " | ".join([*cells, error]) + " |"


if __name__ == "__main__":
    main()

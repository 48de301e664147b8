"""How many (pass, layer) records a second are replayed under another expert-parallel layout, on this machine.

    python scripts/bench_replay.py [--passes 20834] [--ranks 8 32] [--tokens 64]

Prints a table: from counts alone what ranks compute (exact), with bytes (bounds and estimate) and times; and from
tokens' experts all of it exactly. The shape is Qwen3-30B-A3B's: 48 layers, 128 experts, top-8.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from moecap.hardware.catalogue import find_device
from moecap.predict.collectives import links_of
from moecap.predict.expert_parallel import Device, lay_out, replay
from moecap.predict.placement import topology
from moecap.predict.replay import rank_loads
from moecap.predict.routing import Routing
from moecap.predict.synthetic import synthetic_routing
from moecap.predict.traffic import row_bytes

LAYERS, EXPERTS, TOP_K, HIDDEN, INNER = 48, 128, 8, 2048, 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=20834, help="of 48 layers each; the default makes a million")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="per pass")
    args = parser.parse_args()
    print("| ranks | what | pass-layers | seconds | pass-layers/s |")
    print("| --- | --- | --- | --- | --- |")
    counts, ids = routing_of(args.passes, args.tokens)
    for ranks in args.ranks:
        layout = lay_out(counts.load(), topology(ranks, 1), "balanced")
        placed = list(enumerate(layout.placements))
        measure(ranks, "assignments and active experts", counts, lambda placed=placed: [  # type: ignore[misc]
            rank_loads(counts.counts[:, at], one) for at, one in placed
        ])  # fmt: skip
        for name, routing in (("all, from counts", counts), ("all, from tokens' experts", ids)):
            measure(ranks, name, routing, lambda routing=routing, layout=layout: replay(  # type: ignore[misc]
                routing, layout, "all_to_all", device()
            ))  # fmt: skip


def routing_of(passes: int, tokens: int) -> tuple[Routing, Routing]:
    """Counts of that many passes (drawn ones, repeated), and tokens' experts of a hundredth of them."""
    drawn = synthetic_routing(
        layers=tuple(range(LAYERS)), num_experts=EXPERTS, top_k=TOP_K,
        tokens=np.full(max(1, passes // 100), tokens), exponent=0.5, seed=0,
    )  # fmt: skip
    rows = np.arange(passes) % drawn.num_passes
    return Routing(
        layers=drawn.layers, top_k=TOP_K, tokens=drawn.tokens[rows], counts=drawn.counts[rows].astype(np.uint32)
    ), drawn  # fmt: skip


def device() -> Device:
    spec = find_device("nvidia-h100-sxm5-80gb")
    assert spec.memory_bytes_per_s is not None
    params = 3 * HIDDEN * INNER
    return Device(
        expert_bytes=[2 * params] * LAYERS, expert_flops=[2 * params] * LAYERS,
        memory_bytes_per_s=spec.memory_bytes_per_s, flops_per_s=spec.dense_flops_per_s["bfloat16"],
        links=links_of(spec, 50e9), row=row_bytes(HIDDEN),
    )  # fmt: skip


def measure(ranks: int, what: str, routing: Routing, run: Callable[[], object]) -> None:
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    done = routing.num_passes * len(routing.layers)
    print(f"| {ranks} | {what} | {done} | {seconds:.2f} | {done / seconds:,.0f} |", flush=True)


if __name__ == "__main__":
    main()

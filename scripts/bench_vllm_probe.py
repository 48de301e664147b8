"""What recording costs a vLLM engine, and whether it records what vLLM's own capture returns. Needs a CUDA GPU.

    python scripts/bench_vllm_probe.py overhead CONFIG.json --out OUT      off, on, control, ... in one engine
    python scripts/bench_vllm_probe.py exact CONFIG.json --out OUT         ids against `enable_return_routed_experts`

CONFIG is a model's config.json (weights are random) of which `--layers` keeps the first few. One engine captures its
CUDA graphs three times, with the probe attached and twice without; switching between the sets is switching the probe on
and off, so that all serve the same weights on the same card within seconds of each other. Rounds of all batch sizes
alternate; a ratio is that of neighbours (on against off, and control, which is off too, against off), a result the
median of the rounds. Prompts run without graphs. Needs 62 GB for the whole shape of Qwen3-30B-A3B in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORKER = "moecap.probe.vllm_switch.SwitchableWorker"
PROMPT_TOKENS = 128
GRAPHS = ("off", "on", "control")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "exact"])
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=192, help="generated per request and round")
    args = parser.parse_args()
    folder = model_folder(args.config, args.layers)
    result = overhead(folder, args) if args.what == "overhead" else exact(folder, args)
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"probe-{args.what}-{args.config.stem}{f'-{args.layers}-layers' if args.layers else ''}.json"
    (args.out / name).write_text(json.dumps(result, indent=1))


def model_folder(config: Path, layers: int | None) -> str:
    folder = Path(tempfile.mkdtemp())
    content = json.loads(config.read_text())
    if layers:
        content["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def engine(folder: str, **changes: Any) -> Any:
    from vllm import LLM  # noqa: PLC0415

    return LLM(
        folder, load_format="dummy", skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=64, seed=0,
        enable_prefix_caching=False, **changes,
    )  # fmt: skip


def overhead(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    llm = engine(folder, worker_cls=WORKER, gpu_memory_utilization=0.9,
                 compilation_config={"cudagraph_capture_sizes": sorted({1, 2, 4, 8, 16, *args.batches})})  # fmt: skip
    settings = llm.collective_rpc("moecap_facts")[0]["settings"]
    rounds: list[dict[str, Any]] = []
    for batch in args.batches:
        for graphs in GRAPHS:
            measure(llm, batch, 16, graphs)  # warm-up
    for number in range(args.rounds):
        order = GRAPHS if number % 2 == 0 else GRAPHS[::-1]
        for batch in args.batches:
            for graphs in order:
                found = measure(llm, batch, args.tokens, graphs)
                rounds.append({"round": number, "batch": batch, "graphs": graphs, **found})
    table = [summary([one for one in rounds if one["batch"] == batch]) for batch in args.batches]
    for row in table:
        print(json.dumps(row), flush=True)
    return {"settings": settings, "table": table, "rounds": rounds}


def measure(llm: Any, batch: int, tokens: int, graphs: str) -> dict[str, Any]:
    """TPOT of `batch` requests that run together; recorded, and with what was recorded, when the probe is on."""
    llm.collective_rpc("moecap_switch", args=(graphs,))
    if graphs == "on":
        llm.collective_rpc("moecap_start", args=("no",))
    begun, times = serve(llm, batch, tokens)
    found: dict[str, Any] = {
        "tpot_ms": (times[-1] - times[1]) / (len(times) - 2) * 1e3,
        "first_ms": (times[0] - begun) * 1e3,  # all prompts in passes without a graph
    }
    if graphs == "on":
        with tempfile.TemporaryDirectory() as folder:
            path = llm.collective_rpc("moecap_stop", args=(folder,))[0]["path"]
            found |= recorded(Path(path), batch, tokens)
    return found


def serve(llm: Any, batch: int, tokens: int) -> tuple[float, list[float]]:
    """When the first step began, and when all requests of the batch had got each of their tokens, in seconds."""
    from vllm import SamplingParams  # noqa: PLC0415

    draw = random.Random(batch)
    for index in range(batch):
        ids = [draw.randrange(1000, 100_000) for _ in range(PROMPT_TOKENS)]
        llm.llm_engine.add_request(
            f"{time.monotonic_ns()}-{index}", {"prompt_token_ids": ids},
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False),
        )  # fmt: skip
    got: dict[str, int] = {}
    reached = [0] * (tokens + 1)
    times = [0.0] * (tokens + 1)
    begun = time.perf_counter()
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            now, count = time.perf_counter(), len(output.outputs[0].token_ids)
            for token in range(got.get(output.request_id, 0) + 1, count + 1):
                reached[token] += 1
                if reached[token] == batch:
                    times[token] = now
            got[output.request_id] = count
    return begun, times[1:]


def recorded(path: Path, batch: int, tokens: int) -> dict[str, Any]:
    """Of the decode passes of the whole batch: how long they took by device events, and what the host spent."""
    from moecap.probe.vllm_recording import read_recording  # noqa: PLC0415

    found = read_recording(path)
    assert found.counted is not None
    durations, last = [], None
    for index, step in enumerate(found.steps):
        whole = step.query_lens == (1,) * batch
        if whole and last is not None:
            durations.append((found.ended_ns[index] - last) / 1e6)
        last = found.ended_ns[index] if whole else None
    tokens_seen = found.counted.counts.sum(axis=2)
    expected = [step.tokens for step in found.steps]
    top_k = int(tokens_seen[0, 0]) // expected[0]
    assert (tokens_seen == top_k * (tokens_seen[:, :1] * 0 + [[one] for one in expected])).all(), "tokens got lost"
    return {
        "decode_passes": len(durations), "pass_ms": statistics.median(durations),
        "distinct": float((found.counted.counts[-2] > 0).sum(axis=1).mean()),
        "host_us_per_pass": found.observed_ns / len(found.steps) / 1e3,
    }  # fmt: skip


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    by_graphs = {graphs: [one for one in rounds if one["graphs"] == graphs] for graphs in GRAPHS}
    found: dict[str, Any] = {"batch": rounds[0]["batch"], "rounds": len(by_graphs["off"])}
    for what in ("tpot_ms", "first_ms"):
        values = {graphs: [one[what] for one in some] for graphs, some in by_graphs.items()}
        found[f"off_{what}"] = round(statistics.median(values["off"]), 4)
        for graphs in ("on", "control"):
            ratios = [100 * (a / b - 1) for a, b in zip(values[graphs], values["off"], strict=True)]
            found[f"{graphs}_{what.removesuffix('_ms')}_percent"] = round(statistics.median(ratios), 3)
            found[f"{graphs}_{what.removesuffix('_ms')}_percents"] = [round(one, 3) for one in ratios]
    for what in ("pass_ms", "distinct", "host_us_per_pass"):
        found[what] = round(statistics.median(one[what] for one in by_graphs["on"]), 4)
    return found


def exact(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Every id that vLLM returns for a token is the one that was recorded for it."""
    import numpy as np  # noqa: PLC0415
    from vllm import SamplingParams  # noqa: PLC0415

    from moecap.probe.vllm_recording import read_recording  # noqa: PLC0415

    llm = engine(folder, worker_cls="moecap.probe.vllm_worker.RecordingWorker", gpu_memory_utilization=0.5,
                 enable_return_routed_experts=True, max_num_batched_tokens=1024)  # fmt: skip
    facts = llm.collective_rpc("moecap_facts")[0]
    draw = random.Random(0)
    lengths = [5, 700, 33, 300, 128, 64, 1, 900, 17, 250]
    prompts = [{"prompt_token_ids": [draw.randrange(1000, 100_000) for _ in range(length)]} for length in lengths]
    llm.collective_rpc("moecap_start", args=("yes",))
    sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)
    outputs = llm.generate(prompts, sampling)
    with tempfile.TemporaryDirectory() as out:
        found = read_recording(Path(llm.collective_rpc("moecap_stop", args=(out,))[0]["path"]))
    assert found.counted is not None and found.counted.token_ids is not None
    returned = np.concatenate([one.outputs[0].routed_experts[:, facts["layers"]] for one in outputs])
    ours = found.counted.token_ids
    experts = found.counted.counts.shape[2]
    by_layer = (returned[:, layer].ravel() for layer in range(returned.shape[1]))
    totals = np.stack([np.bincount(ids, minlength=experts) for ids in by_layer])
    distinct = []
    at = 0
    for index, step in enumerate(found.steps):
        ids = ours[at : at + step.tokens]
        at += step.tokens
        for layer in range(ours.shape[1]):
            counts = np.bincount(ids[:, layer].ravel(), minlength=experts)
            distinct.append(bool((counts == found.counted.counts[index, layer]).all()))
    result = {
        "settings": facts["settings"], "tokens": len(ours), "returned_tokens": len(returned), "steps": len(found.steps),
        "mixed_steps": sum(step.phase.value == "mixed" for step in found.steps),
        "padded_steps": sum(
            int(row) > step.tokens for row, step in zip(found.counted.rows, found.steps, strict=True)
        ),
        "totals_equal": bool((found.counted.counts.sum(axis=0) == totals).all()),
        "token_rows_equal": len(returned) == len(ours) and bool((_sorted_rows(returned) == _sorted_rows(ours)).all()),
        "counts_are_those_of_the_ids": all(distinct),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


def _sorted_rows(ids: Any) -> Any:
    """Tokens [tokens, layers x top_k] in lexical order: the same set of rows however they were served."""
    import numpy as np  # noqa: PLC0415

    flat = ids.reshape(len(ids), -1).astype(np.int32)
    return flat[np.lexsort(flat.T[::-1])]


if __name__ == "__main__":
    main()

"""One vLLM server, loaded by moecap's client and by vLLM's own `bench serve` in turn: do they see the same latencies?

    python scripts/compare_bench_serve.py MODEL --out OUT [--concurrency 8 32] [--pairs 3] [--args '{"dtype": ...}']
                                          [--device 0]

MODEL is a folder with a tokenizer. Both send the same prompts, one as the token ids that the other's text has, and ask
for as many tokens. Medians of TTFT, TPOT and ITL of all requests of a round; a ratio is that of neighbouring rounds, a
result the median of the pairs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moecap.engine.vllm import VllmEngine
from moecap.engine.vllm_modes import OnlineServer
from moecap.hardware.detect import detect_node
from moecap.records import LoadSpec, ModelSpec, Placement, Request, RequestRecord, SystemSpec

BENCH = """
import argparse, sys
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6, help="requests per round: this many times the concurrency")
    parser.add_argument("--device", type=int, default=0, help="which of the machine's GPUs")
    parser.add_argument("--args", type=json.loads, default={}, help="vLLM's engine arguments, as JSON")
    args = parser.parse_args()
    node = detect_node("here", {})
    placement = Placement(
        node_id="here", hostname=node.hostname, kind="gpu" if node.devices else "cpu", num_cpus=node.num_cpus,
        device_uuids=tuple(device.uuid for device in node.devices if device.index == args.device),
    )  # fmt: skip
    system = SystemSpec(name="server", engine="vllm", node=placement.kind, args={**args.args, "mode": "online"})
    engine = VllmEngine()
    try:
        facts = engine.start(ModelSpec(name=args.model), system, placement)
        for rows in compare(engine, args):
            args.out.mkdir(parents=True, exist_ok=True)
            written = {"settings": facts.settings, "rows": rows}
            (args.out / "bench-serve.json").write_text(json.dumps(written, indent=1))
    finally:
        engine.stop()


def compare(engine: VllmEngine, args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """All that is known after every pair: a row per concurrency."""
    server = engine._mode
    assert isinstance(server, OnlineServer)
    rows: list[dict[str, Any]] = []
    for concurrency in args.concurrency:
        ours(server, args, prompts(engine, args, concurrency, 0), concurrency)
        pairs: list[dict[str, dict[str, float]]] = []
        rows.append({})
        for number in range(args.pairs):
            pair, texts = {}, prompts(engine, args, concurrency, number + 1)
            for who in ("moecap", "bench") if number % 2 == 0 else ("bench", "moecap"):
                server.flush()
                pair[who] = (
                    ours(server, args, texts, concurrency)
                    if who == "moecap"
                    else theirs(server, args, list(texts), concurrency)
                )
            pairs.append(pair)
            rows[-1] = {"concurrency": concurrency, **summary(pairs), "pairs": pairs}
            yield rows
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "pairs"}), flush=True)


def prompts(engine: VllmEngine, args: argparse.Namespace, concurrency: int, seed: int) -> dict[str, tuple[int, ...]]:
    """Random words, cut to so many tokens, and those tokens: what the server makes of the same text."""
    draw, found = random.Random(f"{concurrency}-{seed}"), dict[str, tuple[int, ...]]()
    while len(found) < args.rounds * concurrency:
        words = " ".join(
            "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(args.input_tokens)
        )
        text = engine.decode(engine.encode(words)[: args.input_tokens])
        ids = engine.encode(text)
        if len(ids) == args.input_tokens:
            found[text] = ids
    return found


def ours(
    server: OnlineServer, args: argparse.Namespace, texts: dict[str, tuple[int, ...]], concurrency: int
) -> dict[str, float]:
    requests = [
        Request(request_id=f"r{index}", item_index=index, max_new_tokens=args.output_tokens, prompt_token_ids=ids)
        for index, ids in enumerate(texts.values())
    ]
    driven = server.serve(requests, LoadSpec(concurrency=concurrency, staggered=False))
    failed = [one.error for one in driven.requests if one.status != "ok"]
    assert not failed, failed[0]
    return latencies(driven.requests)


def latencies(requests: tuple[RequestRecord, ...]) -> dict[str, float]:
    """Milliseconds, as `bench serve` defines them."""
    ttft = [(one.first_token_ns or 0) - one.sent_ns for one in requests]
    tpot = [((one.end_ns or 0) - (one.first_token_ns or 0)) / (one.output_tokens - 1) for one in requests]
    itl = [b - a for one in requests for a, b in zip(one.chunk_ns, one.chunk_ns[1:], strict=False)]
    return {name: statistics.median(values) / 1e6 for name, values in (("ttft", ttft), ("tpot", tpot), ("itl", itl))}


def theirs(server: OnlineServer, args: argparse.Namespace, texts: list[str], concurrency: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        command = [
            sys.executable, "-c", BENCH, "--backend", "openai", "--base-url", server.url, "--model", server.model,
            "--tokenizer", args.model, "--dataset-name", "custom", "--dataset-path", str(data), "--skip-chat-template",
            "--custom-output-len", str(args.output_tokens), "--num-prompts", str(len(texts)), "--disable-shuffle",
            "--max-concurrency", str(concurrency), "--ignore-eos", "--temperature", "0", "--disable-tqdm",
            "--save-result", "--result-dir", folder, "--result-filename", "result.json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"bench serve failed: {done.stderr[-2000:]}")
        found = json.loads((Path(folder) / "result.json").read_text())
    assert found["completed"] == len(texts), found
    assert found["total_input_tokens"] == len(texts) * args.input_tokens, found["total_input_tokens"]
    return {name: found[f"median_{name}_ms"] for name in ("ttft", "tpot", "itl")}


def summary(pairs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("ttft", "tpot", "itl"):
        for who in ("moecap", "bench"):
            found[f"{who}_{name}_ms"] = round(statistics.median(pair[who][name] for pair in pairs), 4)
        ratio = statistics.median(pair["moecap"][name] / pair["bench"][name] for pair in pairs)
        found[f"{name}_difference_percent"] = round(100 * (ratio - 1), 2)
    return found


if __name__ == "__main__":
    main()

"""Bytes that a decode pass moves by our count, against the DRAM counters that Nsight Compute reads. Needs a CUDA GPU.

    python scripts/check_with_ncu.py CONFIG.json [CONFIG.json ...] --layers 4 --out OUT

CONFIG is a model's config.json (weights are random) of which `--layers` keeps the first few. vLLM runs it without
graphs in a process that `ncu` watches; of every batch size one decode pass, well after the prompts, is profiled: all
its kernels' `dram__bytes_read.sum` and `dram__bytes_write.sum`, with caches and clocks as they are. The same pass is
counted from what the probe recorded, by the functions that metrics use.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
BETWEEN = "spin_kernel"
"""A kernel that only waits, launched after every profiled pass."""
DECODES_BEFORE = 8
"""Decode passes of the whole batch before the one that is profiled."""
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--input-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counted", type=Path, help=argparse.SUPPRESS)  # set in the profiled process
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.counted is not None:
        args.counted.write_text(json.dumps(run(args)))
        return
    for config in args.configs:
        rows = profiled(config, args)
        (args.out / f"ncu-{config.stem}-{args.layers}-layers.json").write_text(json.dumps(rows, indent=1))
        for row in rows:
            print(json.dumps({key: value for key, value in row.items() if key != "kernels"}), flush=True)


def profiled(config: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per batch size: counted and measured bytes, and the kernels that moved most."""
    with tempfile.TemporaryDirectory() as folder:
        counted, log = Path(folder) / "counted.json", Path(folder) / "ncu.csv"
        ncu = [
            "ncu", "--profile-from-start", "off", "--target-processes", "all", "--cache-control", "none",
            "--clock-control", "none", "--metrics", f"{READ},{WRITTEN}", "--csv", "--page", "raw",
            "--log-file", str(log),
        ]  # fmt: skip
        child = [
            sys.executable, __file__, str(config), "--layers", str(args.layers), "--batches", *map(str, args.batches),
            "--input-tokens", str(args.input_tokens), "--out", str(args.out), "--counted", str(counted),
        ]  # fmt: skip
        subprocess.run([*ncu, *child], check=True)
        rows: list[dict[str, Any]] = json.loads(counted.read_text())
        passes = list(passes_in(log.read_text()))
    assert len(passes) == len(rows), f"{len(passes)} passes were profiled, {len(rows)} were counted"
    for row, kernels in zip(rows, passes, strict=True):
        row |= {"dram_read_bytes": sum(read for _, read, _ in kernels)}
        row |= {"dram_written_bytes": sum(written for _, _, written in kernels)}
        measured = row["dram_read_bytes"] + row["dram_written_bytes"]
        row["error_percent"] = round(100 * (row["physical_bytes"] / measured - 1), 3)
        moved, launches = Counter[str](), Counter[str]()
        for name, read, written in kernels:
            moved[name] += round(read + written)
            launches[name] += 1
        row["kernels"] = [
            {"name": name, "launches": launches[name], "bytes": some} for name, some in moved.most_common()
        ]
    return rows


def passes_in(text: str) -> Iterator[list[tuple[str, float, float]]]:
    """(kernel, bytes read, bytes written) of each profiled pass, from ncu's raw page as CSV: a row of names, a row of
    units, a row per kernel."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    units, *rows = csv.DictReader(lines)
    found = list[tuple[str, float, float]]()
    for row in rows:
        if BETWEEN in row["Kernel Name"]:
            yield found
            found = []
            continue
        read, written = (float(row[name].replace(",", "")) * UNITS[units[name]] for name in (READ, WRITTEN))
        found.append((row["Kernel Name"], read, written))
    assert not found, "kernels after the last pass"


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """In the profiled process: one decode pass of each batch size, and what it moved by our count."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the profiler is switched where kernels are launched
    from vllm import LLM  # noqa: PLC0415

    from moecap.engine.vllm_held import held_weights  # noqa: PLC0415
    from moecap.model.shape import shape_from_config  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        content = json.loads(args.configs[0].read_text()) | {"num_hidden_layers": args.layers}
        (Path(folder) / "config.json").write_text(json.dumps(content))
        llm = LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=64, seed=0,
            enable_prefix_caching=False, enforce_eager=True, gpu_memory_utilization=0.5, async_scheduling=False,
            worker_cls="moecap.probe.vllm_worker.RecordingWorker",
        )  # fmt: skip
        workers = llm.collective_rpc("moecap_facts")
        shape = shape_from_config(Path(folder))
        return [decode_pass(llm, batch, args, shape, held_weights(workers, shape)) for batch in args.batches]


def decode_pass(llm: Any, batch: int, args: argparse.Namespace, shape: Any, held: Any) -> dict[str, Any]:
    import torch  # noqa: PLC0415
    from vllm import SamplingParams  # noqa: PLC0415

    from moecap.probe.vllm_recording import read_recording  # noqa: PLC0415
    from moecap.probe.vllm_records import records_of  # noqa: PLC0415

    draw = random.Random(batch)
    sampling = SamplingParams(temperature=0, max_tokens=DECODES_BEFORE + 8, ignore_eos=True, detokenize=False)
    for index in range(batch):
        ids = [draw.randrange(1000, 100_000) for _ in range(args.input_tokens)]
        llm.llm_engine.add_request(f"{batch}-{index}", {"prompt_token_ids": ids}, sampling)
    llm.collective_rpc("moecap_start", args=("no",))
    decoded, number = 0, None
    steps = 0
    while llm.llm_engine.has_unfinished_requests():
        profile = decoded == DECODES_BEFORE and number is None
        if profile:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
        outputs = llm.llm_engine.step()
        if profile:
            torch.cuda.synchronize()
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
            number = steps
        steps += 1
        decoded += len(outputs) == batch and all(len(one.outputs[0].token_ids) > 1 for one in outputs)
    with tempfile.TemporaryDirectory() as folder:
        path = llm.collective_rpc("moecap_stop", args=(folder,))[0]["path"]
        passes, routing = records_of([read_recording(Path(path))], shape)
    assert number is not None
    one = passes[number]
    assert one.query_lens == (1,) * batch and one.valid, one
    return {"model": args.configs[0].stem, "layers": args.layers, "batch": batch, **counted(one, routing, shape, held)}


def counted(one: Any, routing: Sequence[Any], shape: Any, held: Any) -> dict[str, Any]:
    """Of one pass, by the functions of the metrics."""
    import numpy as np  # noqa: PLC0415

    from moecap.metrics.columns import Passes, Routing  # noqa: PLC0415
    from moecap.metrics.work import pass_work  # noqa: PLC0415

    mine = [layer for layer in routing if layer.pass_id == one.pass_id]
    columns = {name: np.array([getattr(one, name)]) for name in (
        "pass_id", "replica", "started_ns", "launched_ns", "num_requests", "scheduled_tokens", "logits_tokens",
        "padded_tokens",
    )}  # fmt: skip
    passes = Passes(
        **columns, phase=np.array([one.phase.value]), duration_s=np.array([one.duration_ns / 1e9]),
        query=np.array(one.query_lens), context=np.array(one.context_lens), row=np.zeros(len(one.query_lens), np.int64),
    )  # fmt: skip
    distinct = {
        name: np.array([[getattr(layer, name) for layer in mine]]) for name in ("distinct", "distinct_physical")
    }
    layers = Routing(layers=np.array([layer.layer for layer in mine]), **distinct)
    work = pass_work(shape, held, passes, layers)
    weights = float(work.weight_bytes[0])
    return {
        "distinct": float(distinct["distinct"].mean()), "context": float(np.mean(one.context_lens)),
        "physical_bytes": float(work.physical_bytes[0]), "weight_bytes": weights, "kv_bytes": float(work.kv_bytes[0]),
        "weight_bytes_min_bk": float(work.weight_bytes_min_bk[0]),
        "weight_bytes_all_experts": float(work.weight_bytes_all_experts[0]),
    }  # fmt: skip


if __name__ == "__main__":
    main()

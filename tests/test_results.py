"""The tables of docs/results are what their raw records say: every cell is computed again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from moecap.metrics.reduce import reduce_runs
from moecap.metrics.shown import asked_by
from moecap.records import Metric
from moecap.report.index import MetricIndex
from moecap.store import Store

RESULTS = Path(__file__).resolve().parent.parent / "docs/results"
RAW = RESULTS / "vllm-h100"
BATCHES = (1, 8, 32, 64)
TARGETS_PERCENT = {1: 1.0, 8: 0.5, 32: 0.5, 64: 0.5}
MODELS = {
    "Qwen3-30B-A3B, 4 layers": "probe-exact-Qwen--Qwen3-30B-A3B-4-layers.json",
    "DeepSeek-V2-Lite, 4 layers": "probe-exact-deepseek-ai--DeepSeek-V2-Lite-4-layers.json",
}


def text() -> str:
    return (RESULTS / "vllm-h100.md").read_text(encoding="utf-8")


def table(first_title: str) -> list[list[str]]:
    """Cells of the table whose first column has that title, without its head."""
    lines = iter(text().splitlines())
    for line in lines:
        if line.startswith(f"| {first_title} |"):
            next(lines)
            return [[cell.strip() for cell in row.strip("|").split("|")] for row in _until_blank(lines)]
    raise AssertionError(f"no table begins with {first_title}")


def _until_blank(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield line


def rounds(batch: int) -> dict[bool, list[dict[str, Any]]]:
    """With the probe (True) and without, by round."""
    held = json.loads((RAW / "probe-overhead-Qwen--Qwen3-30B-A3B.json").read_text())["rounds"]
    mine = sorted((one for one in held if one["batch"] == batch), key=lambda one: one["round"])
    return {on: [one for one in mine if one["on"] is on] for on in (False, True)}


def percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def spread(values: Sequence[float]) -> str:
    return f"{min(values):+.2f} to {max(values):+.2f}"


def test_what_the_probe_costs() -> None:
    expected = []
    for batch in BATCHES:
        off, on = ([one["tpot_ms"] for one in rounds(batch)[which]] for which in (False, True))
        pairs = [percent(b / a) for a, b in zip(off, on, strict=True)]
        noise = [percent(b / a) for a, b in pairwise(off)]
        assert len(pairs) == 9
        assert median(pairs) <= TARGETS_PERCENT[batch]
        host_us = median(one["host_us_per_pass"] for one in rounds(batch)[True])
        expected.append([
            str(batch), f"{median(off):.3f}", f"{median(on):.3f}", f"{median(pairs):+.2f}", f"{TARGETS_PERCENT[batch]}",
            spread(pairs), spread(noise), f"{1e3 * median(off) * median(pairs) / 100:.0f}", f"{host_us:.0f}",
        ])  # fmt: skip
    assert table("batch") == expected


def test_on_and_control_against_off() -> None:
    held = json.loads((RAW / "probe-overhead-control.json").read_text())["rounds"]
    expected = []
    for batch in BATCHES:
        mine = sorted((one for one in held if one["batch"] == batch), key=lambda one: one["round"])
        off, on, control = (
            [one["tpot_ms"] for one in mine if one["graphs"] == graphs] for graphs in ("off", "on", "control")
        )
        assert len(off) == len(on) == len(control) == 7
        costs, noise = ([percent(b / a) for a, b in zip(off, other, strict=True)] for other in (on, control))
        shown = f"{median(costs):+.2f}", f"{median(noise):+.2f}", spread(noise)
        expected.append([str(batch), f"{median(off):.3f}", *shown])
    assert table("requests") == expected


def test_pairs_of_equal_routing_at_batch_8() -> None:
    """Rounds by TPOT, a gap of 1 % apart; those with the probe differ in the experts that they recorded."""
    groups: list[list[dict[str, Any]]] = []
    for one in sorted(rounds(8)[False] + rounds(8)[True], key=lambda one: one["tpot_ms"]):
        if not groups or one["tpot_ms"] > 1.01 * groups[-1][-1]["tpot_ms"]:
            groups.append([])
        groups[-1].append(one)
    expected = []
    for group in groups:
        off, on = ([one["tpot_ms"] for one in group if one["on"] is which] for which in (False, True))
        distinct = {one["distinct"] for one in group if one["on"]}
        assert len(distinct) <= 1
        expected.append([
            f"{distinct.pop():.0f}" if distinct else "–", str(len(off)), f"{median(off):.3f}", str(len(on)),
            f"{median(on):.3f}" if on else "–", f"{percent(median(on) / median(off)):+.2f}" if on else "–",
        ])  # fmt: skip
    assert table("experts per layer") == expected


def test_what_was_recorded_is_what_vllm_returned() -> None:
    expected = []
    for model, name in MODELS.items():
        found = json.loads((RAW / name).read_text())
        assert found["tokens"] == found["returned_tokens"]
        assert found["totals_equal"] and found["token_rows_equal"] and found["counts_are_those_of_the_ids"]
        shown = (found[key] for key in ("tokens", "steps", "mixed_steps", "padded_steps"))
        backend, moe = found["settings"]["attention_backends"], found["settings"]["moe_methods"]
        expected.append([model, *backend, *moe, *map(str, shown), "yes", "yes", "yes"])
    assert table("shape") == expected


@cache
def study() -> tuple[Store, dict[int, list[Any]]]:
    """The store, and its runs by concurrency."""
    store = Store(str(RAW / "store"), "vllm")
    runs: dict[int, list[Any]] = {}
    for run in map(store.load_run, sorted(store.whole_runs())):
        load = run.manifest.spec.point.load
        assert load is not None and load.concurrency is not None
        runs.setdefault(load.concurrency, []).append(run)
    return store, {key: sorted(runs[key], key=lambda run: run.manifest.spec.repeat) for key in sorted(runs)}


@cache
def index() -> MetricIndex:
    store, runs = study()
    plan = store.read_plan()
    assert plan is not None
    return MetricIndex(reduce_runs((run for some in runs.values() for run in some), plan).metrics, asked_by(plan))


def metric(concurrency: int, name: str, stat: str = "value", phase: str | None = None) -> Metric:
    found = index().find(study()[1][concurrency][0].manifest.spec.point, name, stat, phase)
    assert found is not None and found.value is not None
    return found


def value(*args: Any) -> float:
    found = metric(*args).value
    assert found is not None
    return found


def test_what_clients_of_the_study_saw() -> None:
    expected = []
    for concurrency in BATCHES:
        speed = metric(concurrency, "output_tokens_per_s")
        assert speed.value and speed.ci95_low and speed.ci95_high
        expected.append([
            str(concurrency), f"{speed.value:.0f} ± {(speed.ci95_high - speed.ci95_low) / 2:.0f}",
            f"{1e3 * value(concurrency, 'ttft_s', 'p50'):.0f}", f"{1e3 * value(concurrency, 'tpot_s', 'p50'):.1f}",
            f"{1e3 * value(concurrency, 'itl_s', 'p50'):.1f}", f"{1e3 * value(concurrency, 'itl_s', 'p99'):.0f}",
            f"{100 * value(concurrency, 'slo_share'):.0f}",
            f"{value(concurrency, 'usd_per_million_output_tokens'):.2f}",
            f"{value(concurrency, 'energy_j_per_output_token'):.2f}",
        ])  # fmt: skip
    assert table("concurrency") == expected


def test_latencies_of_the_study_by_hand() -> None:
    """Medians of TTFT and TPOT straight from the table of requests."""
    for cells in table("concurrency"):
        ttft, tpot = [], []
        for run in study()[1][int(cells[0])]:
            window = run.manifest.windows[0]
            for one in run.requests.to_pylist():
                if window.start_ns <= one["sent_ns"] <= window.end_ns:
                    ttft.append((one["first_token_ns"] - one["sent_ns"]) / 1e6)
                    tpot.append((one["end_ns"] - one["first_token_ns"]) / 127e6)  # 128 tokens
        assert [f"{median(ttft):.0f}", f"{median(tpot):.1f}"] == cells[2:4]


def passes(run: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Of the passes that end in the window: ms, from launch to end too, whether one has a prompt, experts per layer."""
    held = {name: np.array(run.passes[name].to_pylist()) for name in ("started_ns", "launched_ns", "duration_ns")}
    ends = held["started_ns"] + held["duration_ns"]
    window = run.manifest.windows[0]
    inside = (ends >= window.start_ns) & (ends <= window.end_ns)
    distinct = run.routing["distinct"].to_numpy().reshape(len(ends), 48).mean(axis=1)
    return {
        "ms": held["duration_ns"][inside] / 1e6,
        "launched_ms": (ends - held["launched_ns"])[inside] / 1e6,
        "prompt": (np.array(run.passes["phase"].to_pylist()) != "decode")[inside],
        "tokens": np.array(run.passes["scheduled_tokens"].to_pylist())[inside],
        "padding": np.array(run.passes["padded_tokens"].to_pylist())[inside],
        "distinct": distinct[inside],
    }


def test_passes_of_the_study_by_hand() -> None:
    expected = []
    for concurrency, runs in study()[1].items():
        held = [passes(run) for run in runs]
        every = {name: np.concatenate([one[name] for one in held]) for name in held[0]}
        prompt = every["prompt"]
        by_repeat = ", ".join(f"{np.median(one['ms'][one['prompt']]):.0f}" for one in held)
        expected.append([
            str(concurrency), str((~prompt).sum()), f"{np.median(every['ms'][~prompt]):.2f}",
            f"{every['distinct'][~prompt].mean():.1f}", str(prompt.sum()), by_repeat,
            f"{np.percentile(every['ms'][prompt], 10):.0f} to {np.percentile(every['ms'][prompt], 90):.0f}",
            f"{100 * every['ms'][prompt].sum() / every['ms'].sum():.0f}",
        ])  # fmt: skip
    assert table("in flight") == expected


def test_utilisation_of_the_study() -> None:
    names = (
        ("s_mbu", None), ("s_mbu", "decode"), ("mbu_min_bk", "decode"), ("mbu", "decode"), ("s_mfu", None),
        ("overhead_share", "decode"),
    )  # fmt: skip
    expected = [
        [str(one), *(f"{100 * value(one, name, 'value', phase):.3g}" for name, phase in names)] for one in BATCHES
    ]
    assert table("load") == expected


def test_decode_utilisation_at_concurrency_1_by_hand() -> None:
    """Attention of 48 layers, 8 experts of each, and 96 KiB of KV per token of context, in bfloat16."""
    mixers, expert, kv = 48 * 18_874_624 * 2, 2048 * 768 * 3 * 2, 48 * 1024 * 2
    seen, seconds = 0.0, 0.0
    for run in study()[1][1]:
        window = run.manifest.windows[0]
        for one in run.passes.to_pylist():
            if one["phase"] == "decode" and window.start_ns <= one["started_ns"] + one["duration_ns"] <= window.end_ns:
                seen += mixers + 48 * 8 * expert + one["context_lens"][0] * kv
                seconds += one["duration_ns"] / 1e9
    assert seen / seconds / 3.35e12 == pytest.approx(value(1, "s_mbu", "value", "decode"), rel=1e-4)


def said(pattern: str) -> list[float]:
    """The numbers in the one sentence that fits; blanks are any white space."""
    found = re.findall(pattern.replace(" ", r"\s+"), text())
    assert len(found) == 1, pattern
    return [float(one) for one in (found[0] if isinstance(found[0], tuple) else found)]


def test_what_the_text_says_of_passes_with_prompts() -> None:
    """Larger than the largest graph: unpadded and slow; alone in it: from launch to end about 30 ms."""
    _, runs = study()
    alone = np.concatenate([(one := passes(run))["launched_ms"][one["prompt"]] for run in runs[1]])
    assert said(r"from launch to end they take (\d+\.\d) ms") == [round(float(np.median(alone)), 1)]
    gaps, whole = 0.0, 0.0
    for run in runs[1]:
        one = passes(run)
        gaps += float((one["ms"] - one["launched_ms"])[one["prompt"]].sum())
        whole += float(one["ms"].sum())
    assert said(r"(\d\.\d) % of all pass time at concurrency 1") == [round(100 * gaps / whole, 1)]
    for concurrency in BATCHES[1:]:
        for run in runs[concurrency]:
            one = passes(run)
            assert (one["tokens"][one["prompt"]] > 512).all() and (one["padding"][one["prompt"]] == 0).all()
    assert run.manifest.engine["cudagraph_sizes"] == 51


def test_the_probe_in_the_study() -> None:
    per_pass = [
        run.manifest.observer_ns / len(run.passes) / 1e3 for runs in study()[1].values() for run in runs
    ]  # fmt: skip
    assert said(r"(\d+) to (\d+) µs per pass in the study") == [round(min(per_pass)), round(max(per_pass))]
    lags = [run.manifest.client.loop_lag_p99_s * 1e3 for runs in study()[1].values() for run in runs]
    assert said(r"p99 of (\d\.\d) to (\d\.\d) ms") == [round(min(lags), 1), round(max(lags), 1)]


def test_layers_of_dummy_weights_choose_alike() -> None:
    shares = []
    for runs in study()[1].values():
        for run in runs:
            counts = run.routing["counts"].combine_chunks().flatten().to_numpy().reshape(len(run.passes), 48, 128)
            shares.append(100 * float((counts == counts[:, :1]).all(axis=(1, 2)).mean()))
    assert said(r"In (\d+) to (\d+) % of a run's passes all 48 layers") == [round(min(shares)), round(max(shares))]


def test_the_start_took_as_long_as_the_ledger_says() -> None:
    lines = [json.loads(line) for path in RAW.glob("store/vllm/ledger/*") for line in path.read_text().splitlines()]
    times = {
        state: min(one["time_unix_s"] for one in lines if one["state"] == state) for state in ("starting", "running")
    }
    assert said(r"started once, in (\d+) s") == [round(times["running"] - times["starting"])]


def test_the_console_record_is_that_of_the_store() -> None:
    """Its headline of every run is in the ledger."""
    lines = [json.loads(line) for path in RAW.glob("store/vllm/ledger/*") for line in path.read_text().splitlines()]
    stored = sorted(f"{one['headline']['output_tokens_per_s']:.1f} tok/s" for one in lines if one["state"] == "stored")
    told = sorted(re.findall(r"[\d.]+ tok/s", (RAW / "launch.txt").read_text()))
    assert stored == told and len(told) == 12


def test_tables_are_there_for_every_run() -> None:
    for folder in (RAW / "store/vllm/runs").iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert pq.read_metadata(folder / "passes.parquet").num_rows == manifest["tables"]["passes"]


def test_other_documents_say_the_same() -> None:
    percents = [cells[3].lstrip("+") for cells in table("batch")]
    low, high = min(percents), max(percents)
    root = RESULTS.parent.parent
    for name in ("README.md", "CHANGELOG.md"):
        assert f"{low} to {high} % of TPOT" in (root / name).read_text(encoding="utf-8")
    assert f"+{low} to +{high} %" in (root / "docs/design.md").read_text(encoding="utf-8")
    row = table("load")[0]
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    assert f"decode moves {float(row[2]):.0f} % of the peak bandwidth at concurrency 1, where" in readme
    assert f"every expert says {row[4]} %" in readme
    shown = dict(zip(BATCHES, percents, strict=True))
    said_of_all = ", ".join(f"+{shown[one]} % at {one}" for one in (8, 32)) + f" and +{shown[64]} % at 64"
    vllm = " ".join((root / "docs/vllm.md").read_text(encoding="utf-8").split())
    assert f"+{shown[1]} % of TPOT at batch 1, {said_of_all}" in vllm


def test_every_linked_file_exists() -> None:
    for page in RESULTS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (RESULTS / target).exists(), target

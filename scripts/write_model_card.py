"""Writes the reference model's card, README.md, from the training.json and evaluation.json beside the weights.

    python scripts/write_model_card.py

Pure text from recorded numbers: measures nothing, loads no model, and needs no torch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from moecap.reference import MODEL_DIR, TASK_NAMES, load_items
from moecap.reference.generators import (
    GENERATORS,
    GRADED_SIZES,
    HELD_OUT_ONE_IN,
    TRAINED_SIZES,
    TRAINING_WEIGHTS,
    completion_items,
)

Record = dict[str, Any]
"""The content of training.json, with that of evaluation.json under "evaluation"."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy(wrong: int, count: int) -> str:
    """Share of right answers in percent, with its binomial standard error."""
    share = 1 - wrong / count
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / count):.1f}"


def tasks_table() -> str:
    """What each task asks, with one held-out item."""
    rows = []
    for task in TASK_NAMES:
        item = load_items(task, 1)[0]
        what = ((GENERATORS.get(task) or completion_items).__doc__ or "").split("\n")[0]
        prompt = item.prompt.replace("\n", "\\n")
        rows.append([task, what, f"`{prompt}`", f"`{item.target}`", f"{TRAINING_WEIGHTS.get(task, 0):g}"])
    return table(["task", "what", "prompt", "target", "training weight"], rows)


def sizes(pairs: Sequence[tuple[int, int]]) -> str:
    """Pairs of digits as text."""
    return ", ".join(f"{a} x {b}" for a, b in pairs)


def evaluation_table(record: Record) -> str:
    """Exact match per task and arithmetic."""
    evaluation, rows = record["evaluation"], []
    for task in TASK_NAMES:
        count, wrong = evaluation["items"][task], {dtype: w[task] for dtype, w in evaluation["wrong"].items()}
        changed = sum(
            wrong["bfloat16"].get(item) != wrong["float32"].get(item)
            for item in {*wrong["bfloat16"], *wrong["float32"]}
        )
        scores = [accuracy(len(wrong[dtype]), count) for dtype in ("bfloat16", "float32")]
        rows.append([task, str(count), *scores, str(changed)])
    return table(["task", "items", "bf16, %", "fp32, %", "answers that differ"], rows)


def curve_table(record: Record) -> str:
    """About a dozen points of the loss curve."""
    curve = record["training"]["curve"]
    points = [*curve[:: max(1, len(curve) // 11)], curve[-1]]
    points = [p for i, p in enumerate(points) if p not in points[:i]]
    rows = [[str(s), f"{entropy:.4f}", f"{balance:.3f}", f"{rate:.2e}"] for s, entropy, balance, rate in points]
    return table(["step", "weighted cross-entropy", "balance loss", "learning rate"], rows)


def shares(record: Record) -> dict[str, list[list[float]]]:
    """Source -> share of assignments per [layer][expert]."""
    routing = record["evaluation"]["routing"]
    return {source: [[c / sum(layer) for c in layer] for layer in counts] for source, counts in routing.items()}


def variation(a: list[float], b: list[float]) -> float:
    """Total-variation distance of two distributions: 0 for the same experts, 1 for none in common."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2


def distance_table(record: Record) -> str:
    """Total-variation distance between every two sources, per layer."""
    share = shares(record)
    layers = range(len(share["text"]))
    rows = []
    for a, b in combinations(share, 2):
        distances = [variation(share[a][layer], share[b][layer]) for layer in layers]
        rows.append([f"{a} - {b}", *(f"{d:.2f}" for d in distances), f"{sum(distances) / len(distances):.2f}"])
    return table(["sources", *(f"layer {layer}" for layer in layers), "mean"], rows)


def liveliness_table(record: Record) -> str:
    """The least and the most used expert of each layer, every source counting the same."""
    share = shares(record)
    rows = []
    for layer in range(len(share["text"])):
        mix = [sum(column) / len(share) for column in zip(*(s[layer] for s in share.values()), strict=True)]
        rows.append([str(layer), f"{100 * min(mix):.2f}", f"{100 * max(mix):.2f}"])
    return table(["layer", "least used expert, %", "most used expert, %"], rows)


def model_card(record: Record) -> str:
    """The whole card."""
    training, recipe, versions, text = (record[name] for name in ("training", "recipe", "versions", "text"))
    evaluation = record["evaluation"]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [mixture-of-experts, byte-level]
---
# moecap reference model

A small sparse Mixture-of-Experts language model that was really trained, so that routing, accuracy and cost can be
measured on any machine. Qwen3-MoE architecture: {evaluation["parameters"]:,} parameters in bf16, 6 layers, hidden size
256, 16 experts of which each token uses 2, 4 query and 2 key-value heads of 64, tied embeddings, context 1,024.
The tokenizer has one token per byte (id = byte), 256 = end-of-sequence, 257 = padding, no beginning-of-sequence.

`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load this folder without a network.
Ask with a prompt as below; the greedy answer ends with end-of-sequence.

## Data

Tasks, made by `moecap/reference/generators.py`. A SHA-256 of the prompt holds out one in {HELD_OUT_ONE_IN}; `a+b` and
`b+a` count as one prompt, products alike. The shipped items are held out; training draws from the rest, without end.

{tasks_table()}

The graded items of `multiply` have factors of {sizes(GRADED_SIZES)} digits, drawn evenly; in training
{sizes(TRAINED_SIZES)}. The graded mix leans to where the model is unsure. `complete` asks for text that the model was
trained to continue, so it has no training weight of its own; its items are snippets of CPython's library, of modules
that training left out (Copyright 2001-2024 Python Software Foundation, PSF licence version 2).

Text, one row in five: docstrings and modules of the standard library of CPython {versions["python"]} (PSF licence,
version 2), without its tests; {text["documents"]:,} documents, {text["bytes"]:,} bytes, SHA-256 `{text["sha256"]}`
(documents joined by a zero byte). One module in {HELD_OUT_ONE_IN} is held out. The text itself is not shipped.

## Training

    {record["command"]}

- seed {recipe["seed"]}; {record["hardware"]}; torch {versions["torch"]}, transformers {versions["transformers"]},
  Python {versions["python"]}
- {training["steps"]:,} steps of {recipe["rows"]} rows of {record["row_tokens"]} tokens: {record["tokens"]:,} tokens in
  {training["seconds"]:.0f} s
- AdamW (0.9, 0.95), weight decay 0.1 on matrices, gradients clipped at 1, warm-up over 2 % of the steps, cosine to zero
- bf16 weights and arithmetic with fp32 master weights
- loss weights per token: target 1 / sqrt(its tokens), prompt 0.01, text 0.1; no padding, packed examples can't see
  each other
- load-balancing loss per layer over the whole mixed batch, coefficient {recipe["balance"]}; it would be 1 if every
  expert got the same

{curve_table(record)}

Losses are means since the row's predecessor in the full record, `training.json` (every 100 steps).

## Evaluation

Exact match of the greedy answer, cut at the first newline, on the held-out items, ± one standard error, from the saved
bf16 weights. Measured on {evaluation["hardware"]}, torch {evaluation["versions"]["torch"]},
transformers {evaluation["versions"]["transformers"]}. The last column counts items whose answer changes between bf16
and fp32 arithmetic.

{evaluation_table(record)}

Held-out text: {evaluation["text_bits_per_byte"]:.3f} bits per byte over the first 200 windows of {record["row_tokens"]}
bytes of the held-out modules of {evaluation["text"]["library"]} ({evaluation["text"]["bytes"]:,} bytes, SHA-256
`{evaluation["text"]["sha256"]}`), mostly Python source. `complete` is from the same modules.

## Routing

Over the held-out items (prompt, target, end-of-sequence) and held-out text, bf16. Total-variation distance between the
expert distributions of two sources: 0 means the same experts in the same shares, 1 no expert in common.

{distance_table(record)}

Shares of the assignments of one layer, every source counting the same; an even share would be 6.25 %:

{liveliness_table(record)}

## Limits

- It knows these tasks in exactly these prompt formats, and the look of Python source; it is no assistant.
  Strings and chains a few steps longer than in training are nearly always answered wrong.
- It was trained on rows of {record["row_tokens"]} tokens; longer contexts run but were not trained or measured.
- Routing differs by task because the tasks are that different; how experts specialise in large models is not shown.
- The order of floating-point sums on a GPU is not fixed: training again gives a model like this one, not the
  same bytes.
"""


def main() -> None:
    """Write README.md beside the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder that holds the records")
    folder = parser.parse_args().model
    record, evaluation = (
        json.loads((folder / name).read_text("utf-8")) for name in ("training.json", "evaluation.json")
    )
    record["evaluation"] = evaluation
    (folder / "README.md").write_text(model_card(record), encoding="utf-8")


if __name__ == "__main__":
    main()

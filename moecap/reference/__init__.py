"""The reference model that ships with the package: where it lies, and the held-out items that grade it.

Knows file locations and the item format only. It loads neither the model nor torch or transformers, generates nothing
(`generators` does) and scores nothing: an answer is right when the greedy generation, cut at end-of-sequence or the
first newline, equals `target`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from moecap.errors import ConfigError

MODEL_DIR: Path = Path(__file__).parent / "model"
"""Hugging Face layout: config.json, model.safetensors (bf16), tokenizer files and the model card README.md."""

TASKS_DIR: Path = Path(__file__).parent / "tasks"
"""One JSON-lines file per task, held-out items only."""

TASK_NAMES: tuple[str, ...] = ("add", "sort", "edit", "choice", "multiply", "chain", "complete")
"""Every graded task, in the order in which reports list them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskItem:
    """One graded question."""

    task: str
    """One of TASK_NAMES."""
    item_id: str
    """Unique over all tasks, stable between releases of the same task file. In `complete` it ends with the module."""
    prompt: str
    """Given to the model as it is: no template, no beginning-of-sequence token."""
    target: str
    """The only right answer. ASCII without a newline, so its token count is its length plus one end-of-sequence."""


def load_items(task: str, limit: int | None = None) -> list[TaskItem]:
    """Read a task's held-out items in file order, which is already random: the first `limit` of them are a fair sample.

    Raises ConfigError for an unknown task or a negative limit.
    """
    if task not in TASK_NAMES:
        raise ConfigError("unknown task", "task", task, f"use one of {', '.join(TASK_NAMES)}")
    if limit is not None and limit < 0:
        raise ConfigError("the number of items can't be negative", "limit", limit, "leave it out to read every item")
    with (TASKS_DIR / f"{task}.jsonl").open(encoding="utf-8") as lines:
        return [TaskItem(task=task, **json.loads(line)) for line in islice(lines, limit)]

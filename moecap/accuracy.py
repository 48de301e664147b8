"""Graded tasks: which exist, their items, and how one answer is scored. It runs no engine and averages nothing."""

from __future__ import annotations

from moecap.records import SampleRecord
from moecap.reference import TASK_NAMES, TaskItem, load_items

MAX_ANSWER_TOKENS = 64
"""An answer that is longer counts as truncated."""


def check_tasks(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names back, or ValueError naming every unknown one and what exists."""
    unknown = [name for name in names if name not in TASK_NAMES]
    if unknown:
        raise ValueError(f"no task {', '.join(map(repr, unknown))}; use some of {', '.join(TASK_NAMES)}")
    return names


def load_task(name: str, limit: int | None = None) -> list[TaskItem]:
    """Held-out items of a task, in file order."""
    return load_items(name, limit)


def grade(item: TaskItem, repeat: int, output: str | None, *, ended: bool) -> SampleRecord:
    """Exact match of the first line. `output` None: the request failed, which scores 0.

    `ended`: the model stopped by itself; an answer that ran into the token limit is `truncated`, and still right when
    its first line is.
    """
    if output is None:
        return SampleRecord(
            task=item.task, item_id=item.item_id, repeat=repeat, raw_output=None, score=0.0, status="failed"
        )
    line, newline, _ = output.partition("\n")
    return SampleRecord(
        task=item.task, item_id=item.item_id, repeat=repeat, raw_output=output, score=float(line == item.target),
        status="ok" if ended or newline else "truncated",
    )  # fmt: skip

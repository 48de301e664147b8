"""Metrics of the accuracy axis: graded items to scores with standard errors. It grades nothing."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np

from moecap.metrics.columns import Floats
from moecap.metrics.declare import Observed, metric
from moecap.metrics.view import RunView


def task_scores(run: RunView) -> dict[str, Floats]:
    """Scores by task, in the order of the study; an item that failed is wrong, never left out."""
    accuracy = run.manifest.spec.point.accuracy
    table = run.run.samples
    tasks, status = np.array(table["task"].to_pylist()), np.array(table["status"].to_pylist())
    scores = np.where(status == "failed", 0.0, table["score"].fill_null(0.0).to_numpy())
    return {task: scores[tasks == task] for task in (accuracy.tasks if accuracy else ())}


def mean_and_error(scores: Floats) -> tuple[float, float | None]:
    """Mean and its standard error, sample deviation / sqrt(n) with n - 1; None for a single item."""
    if len(scores) < 2:
        return float(scores.mean()), None
    return float(scores.mean()), float(scores.std(ddof=1) / sqrt(len(scores)))


@metric("accuracy", unit="share", direction="higher", needs=("samples",), kind="accuracy")
def accuracy(run: RunView) -> Iterator[Observed]:
    """Every task's mean score, and the mean of the tasks, whose standard error is sqrt(sum of squares) / tasks.

    A task without items has no score, and then the mean of all tasks has none either.
    """
    means, errors, items, missing = [], [], 0, list[str]()
    for task, scores in task_scores(run).items():
        if len(scores) == 0:
            missing.append(f"no item of {task} was scored")
            yield Observed(missing=missing[-1], qualifiers={"task": task})
            continue
        mean, error = mean_and_error(scores)
        yield Observed(
            numerator=float(scores.sum()), denominator=float(len(scores)), n=len(scores), standard_error=error,
            qualifiers={"task": task},
        )  # fmt: skip
        means.append(mean)
        errors.append(error)
        items += len(scores)
    if missing:
        yield Observed(missing="; ".join(missing))
        return
    known = [error for error in errors if error is not None]
    combined = sqrt(sum(error**2 for error in known)) / len(means) if len(known) == len(means) else None
    yield Observed(numerator=sum(means), denominator=float(len(means)), n=items, standard_error=combined)


@metric("accuracy_stderr", unit="share", direction="neither", needs=("samples",), kind="accuracy")
def accuracy_stderr(run: RunView) -> Iterator[Observed]:
    """Standard errors of `accuracy`, by task and overall."""
    for one in accuracy(run):
        known = one.standard_error
        if known is None:
            why = one.missing or "a standard error needs two items of every task"
            yield Observed(missing=why, qualifiers=one.qualifiers)
        else:
            yield Observed(numerator=known, denominator=1.0, n=one.n, qualifiers=one.qualifiers)


@metric("truncated_share", unit="share", direction="lower", needs=("samples",), kind="accuracy")
def truncated_share(run: RunView) -> Iterator[Observed]:
    """Items whose answer was cut at its longest."""
    status = run.run.samples["status"].to_pylist()
    yield Observed(numerator=float(status.count("truncated")), denominator=float(len(status)), n=len(status))

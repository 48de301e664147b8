"""Grading by exact match of the first line; failures are wrong."""

import pytest

from moecap.accuracy import check_tasks, grade
from moecap.reference import TaskItem

ITEM = TaskItem(task="add", item_id="add-1", prompt="1+1=", target="2")


@pytest.mark.parametrize(
    ("output", "ended", "score", "status"),
    [
        ("2", True, 1.0, "ok"),
        ("2\nQ: next", False, 1.0, "ok"),
        ("2 ", True, 0.0, "ok"),
        ("22", True, 0.0, "ok"),
        ("", True, 0.0, "ok"),
        ("2 2 2 2", False, 0.0, "truncated"),
        (None, False, 0.0, "failed"),
    ],
)
def test_grade(output: str | None, ended: bool, score: float, status: str) -> None:
    sample = grade(ITEM, 3, output, ended=ended)
    assert (sample.score, sample.status, sample.raw_output) == (score, status, output)
    assert (sample.task, sample.item_id, sample.repeat) == ("add", "add-1", 3)


def test_unknown_tasks_are_all_named_with_what_exists() -> None:
    assert check_tasks(("add", "sort")) == ("add", "sort")
    with pytest.raises(ValueError, match=r"'chess', 'go'; use some of add, sort"):
        check_tasks(("add", "chess", "go"))

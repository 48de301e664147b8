"""Workloads: exact lengths, the same prompts for the same seed, others for another."""

from typing import Any

import pytest
from pydantic import ValidationError

from moecap.reference import load_items
from moecap.registry import resolve
from moecap.workload import WORKLOADS
from moecap.workload.base import Drawn, Workload


def encode(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def drawn(kind: str, options: dict[str, Any], count: int, *, vocab_size: int, seed: int = 0) -> list[Drawn]:
    workload: Workload = resolve(WORKLOADS, "moecap.workloads", kind).model_validate(options)
    return workload.draw(count, seed, encode, vocab_size)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("synthetic", {"input_tokens": 9, "output_tokens": 5}), ("tasks", {"tasks": ["add", "sort"], "output_tokens": 5})],
)
def test_requests_are_reproducible(kind: str, options: dict[str, object]) -> None:
    workload = resolve(WORKLOADS, "moecap.workloads", kind).model_validate(options)
    first = workload.requests(6, 1, encode, 97, "r")
    assert first == workload.requests(6, 1, encode, 97, "r")
    assert [one.prompt_token_ids for one in first] != [
        one.prompt_token_ids for one in workload.requests(6, 2, encode, 97, "r")
    ]
    assert [one.request_id for one in first] == [f"r-{i}" for i in range(6)]
    assert {(one.max_new_tokens, one.ignore_eos, one.temperature) for one in first} == {(5, True, 0.0)}
    assert len({one.seed for one in first}) == 6


def test_synthetic_prompts_have_the_exact_length_and_stay_in_the_vocabulary() -> None:
    prompts = [one.prompt_token_ids for one in drawn("synthetic", {"input_tokens": 33}, 50, vocab_size=7)]
    assert {len(ids) for ids in prompts} == {33}
    assert {token for ids in prompts for token in ids} == set(range(7))


def test_task_prompts_take_tasks_in_turn_after_solved_items() -> None:
    tasks = drawn("tasks", {"tasks": ["add", "sort"], "shots": 2}, 6, vocab_size=256)
    pools = {name: load_items(name) for name in ("add", "sort")}
    for index, one in enumerate(tasks):
        pool = pools[("add", "sort")[index % 2]]
        *solved, last = bytes(one.prompt_token_ids).decode().split("\n")
        assert len(solved) == 2
        assert set(solved) <= {item.prompt + item.target for item in pool}
        assert last in {item.prompt for item in pool}


@pytest.mark.parametrize("options", [{"tasks": []}, {"tasks": ["add"], "shots": -1}, {"tasks": ["add"], "extra": 1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        resolve(WORKLOADS, "moecap.workloads", "tasks").model_validate(options)

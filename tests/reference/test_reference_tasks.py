"""The graded items: right answers by other means than the generators', and nothing of them in training."""

import random
import sys
from itertools import islice

import pytest

from moecap.errors import ConfigError
from moecap.reference import TASK_NAMES, TaskItem, load_items
from moecap.reference.generators import GENERATORS, draw, held_out_items, is_held_out, text_documents, training_stream


def check_add(question: str, target: str) -> None:
    a, b = question.split("+")
    *columns, total = target.split(" ")
    assert int(total) == int(a) + int(b)
    carry = 0
    for place, column in enumerate(columns):
        terms, result = column.split("=")
        assert [int(t) for t in terms.split("+")] == [int(a) // 10**place % 10, int(b) // 10**place % 10, carry]
        assert len(result) == 2 and int(result) == sum(map(int, terms.split("+")))
        carry = int(result) // 10
    assert len(columns) == max(len(a), len(b))


def check_sort(question: str, target: str) -> None:
    assert target.split(" ") == sorted(question.split(" "))


def check_edit(question: str, target: str) -> None:
    operation, *arguments, word = question.split(" ")
    if operation == "reverse":
        assert [*target] == [*reversed(word)]
    elif operation == "rotate":
        letters = [*word]
        for _ in range(int(arguments[0])):
            letters.append(letters.pop(0))
        assert [*target] == letters
    elif operation == "replace":
        old, new = arguments[0]
        assert target == "".join(new if letter == old else letter for letter in word)
    else:
        assert operation == "drop"
        assert target == "".join(letter for letter in word if letter != arguments[0])


def check_choice(question: str, target: str) -> None:
    asked, listed = question.split(": ")
    options = {option[0]: int(option[2:]) for option in listed.split(" ")}
    assert [*options] == [*"ABCD"] and len(set(options.values())) == 4
    if asked.startswith("nearest "):
        distance = {letter: abs(number - int(asked.split(" ")[1])) for letter, number in options.items()}
        assert all(distance[target] < d for letter, d in distance.items() if letter != target)
    else:
        assert options[target] == eval(asked)


def check_arithmetic(question: str, target: str) -> None:
    assert int(target) == eval(question)


CHECKS = {
    "add": ("add ", check_add),
    "sort": ("sort ", check_sort),
    "edit": ("edit ", check_edit),
    "choice": ("choose ", check_choice),
    "multiply": ("mul ", check_arithmetic),
    "chain": ("chain ", check_arithmetic),
}


@pytest.mark.parametrize("task", CHECKS)
def test_targets_are_right(task: str) -> None:
    prefix, check = CHECKS[task]
    for item in load_items(task):
        assert item.prompt.startswith(prefix) and item.prompt.endswith("=")
        check(item.prompt.removeprefix(prefix).removesuffix("="), item.target)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_items_fit_the_contract(task: str) -> None:
    items = load_items(task)
    assert len(items) >= 200
    assert len({i.item_id for i in items}) == len({i.prompt for i in items}) == len(items)
    for item in items:
        assert item.task == task and item.item_id.startswith(f"{task}-")
        assert item.prompt.isascii() and 0 < len(item.prompt) <= 64
        assert item.target.isascii() and 0 < len(item.target) <= 48 and "\n" not in item.target


def test_every_task_has_a_generator_or_comes_from_text() -> None:
    assert {*GENERATORS, "complete"} == {*TASK_NAMES}


@pytest.mark.parametrize("task", GENERATORS)
def test_items_are_held_out_and_reproducible(task: str) -> None:
    items = load_items(task)
    assert all(is_held_out(i.prompt) for i in items)
    seed = 20261124
    assert [(e.prompt, e.target) for e in held_out_items(task, 50, seed)] == [(i.prompt, i.target) for i in items[:50]]


def test_commuted_operands_are_on_the_same_side() -> None:
    for a, b in [(12, 34), (123, 45), (9, 10), (77, 77)]:
        assert is_held_out(f"add {a}+{b}=") == is_held_out(f"add {b}+{a}=")
        assert is_held_out(f"mul {a}*{b}=") == is_held_out(f"mul {b}*{a}=")


def test_training_stream_never_draws_an_item() -> None:
    graded = {item.prompt for task in TASK_NAMES for item in load_items(task)}
    drawn = {example.prompt for example in islice(training_stream(7), 50_000)}
    assert len(drawn) > 40_000
    assert not graded & drawn


def test_draw_keeps_to_its_side() -> None:
    rng = random.Random(0)
    for task in GENERATORS:
        assert all(is_held_out(draw(task, rng, held_out=True).prompt) for _ in range(20))
        assert not any(is_held_out(draw(task, rng, held_out=False).prompt) for _ in range(20))


def test_training_stream_repeats_by_seed() -> None:
    assert list(islice(training_stream(3), 50)) == list(islice(training_stream(3), 50))
    assert list(islice(training_stream(3), 50)) != list(islice(training_stream(4), 50))


def test_completions_are_of_held_out_modules() -> None:
    for item in load_items("complete"):
        _, _, module = item.item_id.split("-", 2)
        assert is_held_out(f"{module.replace('.', '/')}.py")


@pytest.mark.skipif(sys.version_info[:2] != (3, 12), reason="the training text was that of Python 3.12")
def test_completions_are_not_in_the_training_text() -> None:
    text = "\0".join(text_documents(held_out=False))
    assert not [i.item_id for i in load_items("complete") if i.prompt + i.target in text]


def test_limit_and_unknown_task() -> None:
    assert load_items("add", 3) == load_items("add")[:3]
    assert load_items("add", 0) == []
    assert isinstance(load_items("add", 1)[0], TaskItem)
    with pytest.raises(ConfigError, match=r"subtract.*add, sort"):
        load_items("subtract")
    with pytest.raises(ConfigError, match="-1"):
        load_items("add", -1)

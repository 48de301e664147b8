"""Seeded generators of the reference tasks, of the training stream and of its text corpus. Standard library only.

Which side of the split a question falls on is a property of the question: a hash of its prompt decides, so no seed, no
amount of training data and no order of calls can bring a held-out question into training. Knows nothing about tokens,
batches or models; it neither reads nor writes the task files.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
import string
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HELD_OUT_ONE_IN = 16
"""One prompt (or text document) of so many is held out."""

TRAINING_WEIGHTS: dict[str, float] = {
    "add": 1.0,
    "sort": 1.0,
    "edit": 1.0,
    "choice": 3.0,
    "multiply": 3.0,
    "chain": 2.0,
}
"""How often each task is drawn for training, relative to the others."""

TRAINED_SIZES = ((3, 1), (2, 2), (2, 2), (3, 2), (3, 3))
"""Digits of the factors in training."""
GRADED_SIZES = ((2, 2), (3, 2), (3, 3), (3, 3))
"""Digits of the factors in the graded items: more of the sizes at which the model is unsure."""

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
_SHORTEST_DOCUMENT = 100
_SHORTEST_MODULE = 3000
_COMPLETION_PROMPT = 64
_LONGEST_COMPLETION = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One question with its answer."""

    task: str
    """Key of GENERATORS, or "complete"."""
    prompt: str
    """At most 64 ASCII characters."""
    target: str
    """At most 48 ASCII characters, without a newline."""


def add(rng: random.Random) -> tuple[str, str]:
    """Sum of two numbers of 2 to 4 digits, written out from the lowest column with its carry, then the sum."""
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in (rng.randint(2, 4), rng.randint(2, 4)))
    width, carry, columns = max(len(str(a)), len(str(b))), 0, []
    for x, y in zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}+{carry}={total:02}")
        carry = total // 10
    return f"add {a}+{b}=", " ".join([*columns, str(a + b)])


def sort(rng: random.Random) -> tuple[str, str]:
    """Alphabetical order of 3 to 10 words of three letters, of an alphabet small enough for shared beginnings."""
    words = [_letters(rng, 3, "abcdefgh") for _ in range(rng.randint(3, 10))]
    return f"sort {' '.join(words)}=", " ".join(sorted(words))


def edit(rng: random.Random) -> tuple[str, str]:
    """One edit of a string of 4 to 14 letters: reverse, rotate to the left, replace a letter, drop a letter."""
    word = _letters(rng, rng.randint(4, 14), string.ascii_lowercase)
    a, b, shift = rng.choice(word), rng.choice(string.ascii_lowercase), rng.randint(1, 4)
    return rng.choice(
        [
            (f"edit reverse {word}=", word[::-1]),
            (f"edit rotate {shift} {word}=", word[shift % len(word) :] + word[: shift % len(word)]),
            (f"edit replace {a}{b} {word}=", word.replace(a, b)),
            (f"edit drop {a} {word}=", word.replace(a, "")),
        ]
    )


def choice(rng: random.Random) -> tuple[str, str]:
    """Multiple choice of four numbers: the nearest to a number, the value of a sum or product. Guessing gives 1/4."""
    kind = rng.choice(["nearest", "sum of 2", "sum of 3", "sum of 3", "product", "product"])
    if kind == "nearest":
        numbers, to = rng.sample(range(100, 1000), 4), rng.randrange(100, 1000)
        while len({abs(n - to) for n in numbers}) < 4:
            to = rng.randrange(100, 1000)
        question, right = f"nearest {to}", min(numbers, key=lambda n: abs(n - to))
    else:
        if kind == "product":
            terms = [rng.randrange(15, 100), rng.randrange(15, 100)]
            question, right = f"{terms[0]}*{terms[1]}", terms[0] * terms[1]
        else:
            terms = [rng.randrange(100, 500) for _ in range(int(kind[-1]))]
            question, right = "+".join(map(str, terms)), sum(terms)
        # Wrong values that share digits with the right one, so that a glance at one digit is not enough.
        near = rng.sample([right + d for d in (-100, -20, -10, -2, -1, 1, 2, 10, 20, 100)], 3)
        numbers = rng.sample([right, *near], 4)
    options = " ".join(f"{letter}){n}" for letter, n in zip("ABCD", numbers, strict=True))
    return f"choose {question}: {options}=", "ABCD"[numbers.index(right)]


def multiply(rng: random.Random, sizes: Sequence[tuple[int, int]] = TRAINED_SIZES) -> tuple[str, str]:
    """Product of two numbers, answered at once: no column written out.

    `sizes` are pairs of digits, drawn evenly.
    """
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in rng.choice(sizes))
    return f"mul {a}*{b}=", str(a * b)


def chain(rng: random.Random) -> tuple[str, str]:
    """Sum and difference of 3 to 12 digits, answered at once. Harder the longer it is."""
    terms = [rng.choice("+-") + str(rng.randrange(1, 10)) for _ in range(rng.randint(2, 11))]
    first = rng.randrange(1, 10)
    return f"chain {first}{''.join(terms)}=", str(first + sum(map(int, terms)))


GENERATORS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": add,
    "sort": sort,
    "edit": edit,
    "choice": choice,
    "multiply": multiply,
    "chain": chain,
}
"""Task name -> one training question as (prompt, target), from a random source."""

GRADED = GENERATORS | {"multiply": partial(multiply, sizes=GRADED_SIZES)}
"""The same for the held-out questions."""


def is_held_out(prompt: str) -> bool:
    """Say which side of the split a prompt is on. `a+b` and `b+a` (and products alike) are on the same side."""
    commutative = re.fullmatch(r"(add|mul) (\d+)([+*])(\d+)=", prompt)
    if commutative:
        name, a, operator, b = commutative.groups()
        prompt = f"{name} {min(int(a), int(b))}{operator}{max(int(a), int(b))}="
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def draw(task: str, rng: random.Random, *, held_out: bool) -> Example:
    """Draw one example of a task from the asked side of the split."""
    generators = GRADED if held_out else GENERATORS
    while True:
        prompt, target = generators[task](rng)
        if is_held_out(prompt) == held_out:
            return Example(task=task, prompt=prompt, target=target)


def training_stream(seed: int) -> Iterator[Example]:
    """Endless training examples of all tasks, mixed by TRAINING_WEIGHTS. The same seed gives the same stream."""
    rng = random.Random(seed)
    tasks, weights = list(TRAINING_WEIGHTS), list(TRAINING_WEIGHTS.values())
    while True:
        yield draw(rng.choices(tasks, weights)[0], rng, held_out=False)


def held_out_items(task: str, count: int, seed: int) -> list[Example]:
    """`count` different held-out examples of a task."""
    rng = random.Random(f"{task}:{seed}")
    items: dict[str, Example] = {}
    while len(items) < count:
        example = draw(task, rng, held_out=True)
        items.setdefault(example.prompt, example)
    return list(items.values())


def text_documents(*, held_out: bool, library: Path | None = None) -> list[str]:
    """Docstrings and modules of a standard library (PSF licence), one side of the split.

    A module is held out by its name, together with its docstrings. `library` defaults to the running interpreter's.
    """
    modules = _modules(held_out=held_out, library=library).values()
    documents = [document for source in modules for document in [*_docstrings(source), source]]
    return [document for document in documents if len(document) >= _SHORTEST_DOCUMENT]


def completion_items(count: int, seed: int, library: Path | None = None) -> list[tuple[str, Example]]:
    """The rest of a line of held-out Python source, cut within a word 1 to 3 characters before the line ends.

    Pairs of module name and question. Passages that occur in training text too (licence headers, say) are left out.
    """
    rng = random.Random(f"complete:{seed}")
    modules = {name: source for name, source in _modules(held_out=True, library=library).items() if source.isascii()}
    seen = "\0".join(text_documents(held_out=False, library=library))
    names = [name for name, source in modules.items() if len(source) > _SHORTEST_MODULE]
    items: dict[str, tuple[str, Example]] = {}
    while len(items) < count:
        name = rng.choice(names)
        source = modules[name]
        cut = rng.randrange(_COMPLETION_PROMPT, len(source) - 1)
        prompt, target = source[cut - _COMPLETION_PROMPT : cut], source[cut:].split("\n")[0]
        in_word = prompt[-1].isalnum() and target[:1].isalnum()
        if in_word and len(target) <= _LONGEST_COMPLETION and target == target.strip() and prompt + target not in seen:
            module = name.removesuffix(".py").replace("/", ".")
            items.setdefault(prompt, (module, Example(task="complete", prompt=prompt, target=target)))
    return list(items.values())


def _modules(*, held_out: bool, library: Path | None) -> dict[str, str]:
    """Source by path relative to the library, tests left out, one side of the split."""
    root = library or Path(sysconfig.get_path("stdlib"))
    sources = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(name.parts) and is_held_out(name.as_posix()) == held_out:
            sources[name.as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    return sources


def _docstrings(source: str) -> list[str]:
    """All docstrings of a module, outermost first; none if it doesn't parse (a template, say)."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]


def _letters(rng: random.Random, count: int, alphabet: str) -> str:
    return "".join(rng.choices(alphabet, k=count))

"""A recorded trace, replayed: when requests came, how long they were, which prompts began alike. No text is in it.

Two forms of a row: Mooncake's (github.com/kvcache-ai/Mooncake: `timestamp` in milliseconds, `input_length`,
`output_length`, `hash_ids` of the prompt's blocks of 512 tokens, equal where everything up to the block's end is equal)
and a plain one (`arrival_s`, `input_tokens`, `output_tokens`, optionally `hash_ids`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from moecap.workload.base import Drawn, Encode
from moecap.workload.rows import FromFile, count_in, rows_of

BLOCK_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    arrival_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


class Trace(FromFile):
    """`{type: trace, path: trace.jsonl, speedup: 2.0}`, with `arrival: trace`."""

    speedup: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Requests come so many times as fast as they were recorded."""

    @model_validator(mode="after")
    def _readable(self) -> Trace:
        if not self._rows:
            raise ValueError(f"{self.path} holds no row; write one JSON object per line")
        return self

    @cached_property
    def _rows(self) -> list[_Row]:
        """In the order of their times."""
        return sorted((_row(row, where) for where, row in rows_of(self.path)), key=lambda row: row.arrival_s)

    def arrivals_s(self) -> list[float]:
        """When they come in the replay, the first one at 0."""
        first_s = self._rows[0].arrival_s
        return [(row.arrival_s - first_s) / self.speedup for row in self._rows]

    def draw(self, count: int, seed: int, encode: Encode, vocab_size: int) -> list[Drawn]:
        """Its first `count` requests. Blocks with the same id have the same random tokens.

        Raises ValueError when it recorded fewer.
        """
        if count > len(self._rows):
            raise ValueError(f"{self.path} recorded {len(self._rows)} requests, not {count}; ask for fewer")
        blocks = _Blocks(seed, vocab_size)
        return [
            Drawn(
                prompt_token_ids=blocks.prompt(row, index), output_tokens=row.output_tokens, arrival_s=arrival_s
            )
            for index, (row, arrival_s) in enumerate(zip(self._rows[:count], self.arrivals_s(), strict=False))
        ]  # fmt: skip


class _Blocks:
    """Random tokens by the id of their block."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._seed, self._vocabulary = seed, range(vocab_size)
        self._known: dict[str, tuple[int, ...]] = {}

    def prompt(self, row: _Row, index: int) -> tuple[int, ...]:
        """The row's blocks, and tokens of its own (`index` tells it from other rows) where it names none."""
        count = -(-row.input_tokens // BLOCK_TOKENS)
        names = [f"shared-{one}" for one in row.hash_ids] or [f"own-{index}-{block}" for block in range(count)]
        return tuple(token for name in names for token in self._block(name))[: row.input_tokens]

    def _block(self, name: str) -> tuple[int, ...]:
        if name not in self._known:
            draw = random.Random(f"trace-{self._seed}-{name}")
            self._known[name] = tuple(draw.choices(self._vocabulary, k=BLOCK_TOKENS))
        return self._known[name]


def _row(row: dict[str, Any], where: str) -> _Row:
    mooncake = "timestamp" in row
    key, unit_s = ("timestamp", 1e-3) if mooncake else ("arrival_s", 1.0)
    time = row.get(key)
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < float("inf"):
        raise ValueError(f"{where} has {key} = {time!r}; write `timestamp` in milliseconds or `arrival_s`, 0 or more")
    names = ("input_length", "output_length") if mooncake else ("input_tokens", "output_tokens")
    input_tokens, output_tokens = (count_in(row, name, where) for name in names)
    return _Row(
        arrival_s=time * unit_s, input_tokens=input_tokens, output_tokens=output_tokens,
        hash_ids=_hash_ids(row.get("hash_ids"), input_tokens, where),
    )  # fmt: skip


def _hash_ids(value: Any, input_tokens: int, where: str) -> tuple[int, ...]:
    """One per block of the prompt, or none at all."""
    blocks = -(-input_tokens // BLOCK_TOKENS)
    if value in (None, []):
        return ()
    if not isinstance(value, list) or len(value) != blocks or any(type(one) is not int for one in value):
        told = f"{len(value)} entries" if isinstance(value, list) else repr(value)
        raise ValueError(
            f"{where} has hash_ids of {told} for a prompt of {blocks} blocks of {BLOCK_TOKENS} tokens; "
            "write one whole number per block, or leave it out"
        )
    return tuple(value)

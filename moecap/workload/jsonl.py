"""Prompts from a JSONL file: one object per line that holds a text or token ids. It downloads nothing."""

from __future__ import annotations

import random
from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from moecap.workload.base import Drawn, Encode
from moecap.workload.rows import FromFile, count_in, rows_of


class Jsonl(FromFile):
    """`{type: jsonl, path: prompts.jsonl, field: prompt, output_tokens: 64}`; a row may hold its own
    `output_tokens`."""

    field: str = "prompt"
    """Which key holds the prompt: a text, or a list of token ids."""
    output_tokens: int = Field(default=32, ge=1)
    """Of rows that don't say."""

    @model_validator(mode="after")
    def _readable(self) -> Jsonl:
        if not self._prompts:
            raise ValueError(f"{self.path} holds no row; write one JSON object per line")
        return self

    @cached_property
    def _prompts(self) -> list[tuple[str | tuple[int, ...], int]]:
        """Prompt and output tokens of every row."""
        found = []
        for where, row in rows_of(self.path):
            output = count_in(row, "output_tokens", where) if "output_tokens" in row else self.output_tokens
            found.append((_prompt_in(row, self.field, where), output))
        return found

    def draw(self, count: int, seed: int, encode: Encode, vocab_size: int) -> list[Drawn]:
        """Rows in a seeded order, each once before any comes again."""
        order: list[int] = []
        shuffle = random.Random(f"jsonl-{seed}")
        while len(order) < count:
            order += shuffle.sample(range(len(self._prompts)), len(self._prompts))
        chosen = (self._prompts[index] for index in order[:count])
        return [
            Drawn(prompt_token_ids=tuple(encode(prompt)) if isinstance(prompt, str) else prompt, output_tokens=output)
            for prompt, output in chosen
        ]


def _prompt_in(row: dict[str, Any], field: str, where: str) -> str | tuple[int, ...]:
    value = row.get(field)
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(type(token) is int and token >= 0 for token in value):
        return tuple(value)
    held = ", ".join(row) or "nothing"
    raise ValueError(f"{where} has no text or token ids under {field!r}; set field to one of what it holds: {held}")

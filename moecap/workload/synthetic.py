"""Random token ids with exact lengths. Routing under it is that of noise, not of language."""

from __future__ import annotations

import random
from typing import Any

from pydantic import Field, field_validator

from moecap.workload.base import Drawn, Encode, Workload
from moecap.workload.lengths import Length, draw_length, shortest


class Synthetic(Workload):
    """`{type: synthetic, input_tokens: 128, output_tokens: {uniform: [16, 64]}, shared_prefix_tokens: 64}`."""

    output_tokens: Length = 32
    input_tokens: Length = 128
    """The whole prompt, its shared prefix included."""
    shared_prefix_tokens: int | None = Field(default=None, ge=1)
    """How many first tokens a prompt shares with others."""
    num_prefixes: int | None = Field(default=None, ge=1)
    """How many such prefixes there are (default: one); prompts take them in turn."""

    @field_validator("shared_prefix_tokens")
    @classmethod
    def _shorter_than_the_prompt(cls, value: int | None, info: Any) -> int | None:
        least = shortest(info.data.get("input_tokens", 128))
        if value is not None and value >= least:
            raise ValueError(f"leaves nothing of a prompt of {least} tokens; write less than input_tokens can be")
        return value

    @field_validator("num_prefixes")
    @classmethod
    def _of_some_length(cls, value: int | None, info: Any) -> int | None:
        if value is not None and info.data.get("shared_prefix_tokens", 0) is None:
            raise ValueError("counts prefixes of no length; write shared_prefix_tokens as well")
        return value

    def draw(self, count: int, seed: int, encode: Encode, vocab_size: int) -> list[Drawn]:
        """Uniform over the vocabulary."""
        tokens, lengths = random.Random(f"synthetic-{seed}"), random.Random(f"lengths-{seed}")

        def noise(length: int) -> tuple[int, ...]:
            return tuple(tokens.randrange(vocab_size) for _ in range(length))

        shared = self.shared_prefix_tokens or 0
        prefixes = [noise(shared) for _ in range(self.num_prefixes or 1)]
        return [
            Drawn(
                prompt_token_ids=prefixes[index % len(prefixes)]
                + noise(draw_length(self.input_tokens, lengths) - shared),
                output_tokens=draw_length(self.output_tokens, lengths),
            )
            for index in range(count)
        ]

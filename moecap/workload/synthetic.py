"""Random token ids with an exact prompt length. Routing under it is that of noise, not of language."""

from __future__ import annotations

import random

from pydantic import Field

from moecap.workload.base import Encode, Workload


class Synthetic(Workload):
    """`{type: synthetic, input_tokens: 128, output_tokens: 32}`."""

    input_tokens: int = Field(default=128, ge=1)

    def prompts(self, count: int, seed: int, encode: Encode, vocab_size: int) -> list[tuple[int, ...]]:
        """Uniform over the vocabulary."""
        draw = random.Random(f"synthetic-{seed}")
        return [tuple(draw.randrange(vocab_size) for _ in range(self.input_tokens)) for _ in range(count)]

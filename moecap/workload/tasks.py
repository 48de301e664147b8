"""Prompts of graded tasks, so that a performance run routes what the accuracy run routes. It grades nothing."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import AfterValidator, Field

from moecap.accuracy import check_tasks, load_task
from moecap.workload.base import Drawn, Encode, Workload


class Tasks(Workload):
    """`{type: tasks, tasks: [add, sort], shots: 2, output_tokens: 32}`."""

    tasks: Annotated[tuple[str, ...], AfterValidator(check_tasks)] = Field(min_length=1)
    shots: int = Field(default=0, ge=0)
    """Solved items of the same task put before each prompt, to lengthen it."""

    output_tokens: int = Field(default=32, ge=1)

    def draw(self, count: int, seed: int, encode: Encode, vocab_size: int) -> list[Drawn]:
        """Items drawn with replacement, tasks in turn."""
        draw = random.Random(f"tasks-{seed}")
        pools = [load_task(name) for name in self.tasks]
        texts = []
        for index in range(count):
            pool = pools[index % len(pools)]
            solved = "".join(f"{item.prompt}{item.target}\n" for item in draw.choices(pool, k=self.shots))
            texts.append(solved + draw.choice(pool).prompt)
        return [Drawn(prompt_token_ids=tuple(encode(text)), output_tokens=self.output_tokens) for text in texts]

"""What a workload is: options that check themselves, and requests made from them with a seed. It sends nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from moecap.records import Request

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What one request will be."""

    prompt_token_ids: tuple[int, ...]
    output_tokens: int
    """It generates exactly this many (end-of-sequence is ignored)."""
    arrival_s: float | None = None
    """When it came, in a recorded trace."""


class Workload(BaseModel):
    """Fields of a subclass are its options in a study; unknown options are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def draw(self, count: int, seed: int, encode: Encode, vocab_size: int) -> list[Drawn]:
        """`count` of them; the same for the same arguments."""

    def arrivals_s(self) -> list[float] | None:
        """When its requests come, increasing from 0; None: it recorded no times, its load says when."""
        return None

    def requests(self, count: int, seed: int, encode: Encode, vocab_size: int, prefix: str) -> list[Request]:
        """`count` greedy requests, with ids `<prefix>-<index>`."""
        return [
            Request(
                request_id=f"{prefix}-{index}", item_index=index, prompt_token_ids=one.prompt_token_ids,
                max_new_tokens=one.output_tokens, seed=seed + index, arrival_s=one.arrival_s,
            )
            for index, one in enumerate(self.draw(count, seed, encode, vocab_size))
        ]  # fmt: skip

"""What a workload is: options that check themselves, and requests made from them with a seed. It sends nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from moecap.records import Request

Encode = Callable[[str], Sequence[int]]


class Workload(BaseModel):
    """Fields of a subclass are its options in a study; unknown options are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_tokens: int = Field(default=32, ge=1)
    """Every request generates exactly this many tokens (end-of-sequence is ignored)."""

    @abstractmethod
    def prompts(self, count: int, seed: int, encode: Encode, vocab_size: int) -> list[tuple[int, ...]]:
        """Token ids of `count` prompts; the same for the same arguments."""

    def requests(self, count: int, seed: int, encode: Encode, vocab_size: int, prefix: str) -> list[Request]:
        """`count` greedy requests, with ids `<prefix>-<index>`."""
        return [
            Request(
                request_id=f"{prefix}-{index}", item_index=index, prompt_token_ids=ids,
                max_new_tokens=self.output_tokens, seed=seed + index,
            )
            for index, ids in enumerate(self.prompts(count, seed, encode, vocab_size))
        ]  # fmt: skip

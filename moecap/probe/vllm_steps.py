"""What vLLM's scheduler asked of each step, remembered: who computes how many tokens at which context. Pure.

It reads the scheduler's output that every worker receives, by attribute, and imports nothing of vLLM. It doesn't know
when a step ran nor where its tokens went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moecap.records import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One scheduled step."""

    phase: Phase
    query_lens: tuple[int, ...]
    """Per request: tokens computed in this step."""
    context_lens: tuple[int, ...]
    """Per request: tokens attended at its end."""
    cached_tokens: int
    """Prompt tokens that requests starting here found in the prefix cache."""
    logits_tokens: int
    """Rows that logits are made of: one per request, and one per speculated token."""
    after_idle: bool
    """No request that had been scheduled before was still unfinished: the time before this step is no step's. Requests
    that waited in the scheduler's queue meanwhile aren't known here."""

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(self.query_lens)


class StepLog:
    """Follows requests over steps. Every step must be shown to it, in order, from a moment when none was in flight."""

    def __init__(self) -> None:
        self._prompt_tokens: dict[str, int] = {}

    def see(self, scheduled: Any) -> Step | None:
        """One `SchedulerOutput`; None without tokens: it only tells which requests have ended. KeyError for a request
        that was never seen to start."""
        for name in scheduled.finished_req_ids:
            self._prompt_tokens.pop(name, None)
        if not scheduled.total_num_scheduled_tokens:
            return None
        after_idle = not self._prompt_tokens
        computed: dict[str, int] = {}
        cached_tokens = 0
        for new in scheduled.scheduled_new_reqs:
            self._prompt_tokens[new.req_id] = len(new.prompt_token_ids)
            computed[new.req_id] = new.num_computed_tokens
            cached_tokens += new.num_computed_tokens
        known = scheduled.scheduled_cached_reqs
        computed.update(zip(known.req_ids, known.num_computed_tokens, strict=True))
        queries = scheduled.num_scheduled_tokens
        prefilling = [computed[name] < self._prompt_tokens[name] for name in queries]
        speculated = sum(map(len, scheduled.scheduled_spec_decode_tokens.values()))
        return Step(
            phase=Phase.PREFILL if all(prefilling) else Phase.MIXED if any(prefilling) else Phase.DECODE,
            query_lens=tuple(queries.values()),
            context_lens=tuple(computed[name] + count for name, count in queries.items()),
            cached_tokens=cached_tokens,
            logits_tokens=len(queries) + speculated,
            after_idle=after_idle,
        )

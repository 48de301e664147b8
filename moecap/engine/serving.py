"""The transformers engine's serving loop: closed-loop admission, prefill and decode passes, streaming timestamps.

One pass is prefill or decode, never both. A pass's interval opens at the end of the pass before it (or at its own
launch, when nothing was scheduled between) and ends when its tokens are on the host, which streaming needs anyhow:
nothing is synchronised for timing. Routing is counted after the loop, outside the measured path.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from moecap.engine.disk import DiskExperts, TierTotals
from moecap.engine.kv_batch import KVBatch, can_join, join, keep, left_pad
from moecap.probe.counts import broken_invariant
from moecap.probe.torch_hooks import PassRouting, RouterProbe
from moecap.records import PassRecord, Phase, Request, RequestRecord, RoutingRecord, ServeRecord, TierRecord


@dataclass(slots=True)
class _Active:
    """A request in flight."""

    request: Request
    sent_ns: int
    tokens: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None

    def record(self, *, failed: str | None = None) -> RequestRecord:
        return RequestRecord(
            request_id=self.request.request_id, attempt=0, item_index=self.request.item_index, replica=0,
            scheduled_ns=None, sent_ns=self.sent_ns,
            first_token_ns=self.times_ns[0] if self.times_ns else None,
            end_ns=self.times_ns[-1] if self.times_ns else self.sent_ns,
            chunk_ns=tuple(self.times_ns), chunk_tokens=(1,) * len(self.times_ns),
            input_tokens=len(self.request.prompt_token_ids), cached_tokens=0, output_tokens=len(self.tokens),
            status="ok" if failed is None else "failed", error=failed, output_token_ids=tuple(self.tokens),
        )  # fmt: skip


@dataclass(slots=True)
class _Pass:
    """A pass that ran; what is costly to derive is derived after the loop."""

    record: PassRecord
    routing: PassRouting
    tier: TierTotals | None


class Serving:
    """Serves requests with one loaded model."""

    def __init__(
        self, *, net: Any, probe: RouterProbe, disk: DiskExperts | None, max_context_tokens: int,
        eos_ids: frozenset[int], pad_id: int,
    ) -> None:  # fmt: skip
        self.net, self.probe, self.disk = net, probe, disk
        self.max_context_tokens, self.eos_ids, self.pad_id = max_context_tokens, eos_ids, pad_id
        self.continuous = can_join(DynamicCache(config=net.config))
        self._passes: list[_Pass] = []
        self._previous_end_ns: int | None = None

    def closed_loop(
        self, requests: Sequence[Request], concurrency: int, *, staggered: bool, keep_tokens: bool
    ) -> ServeRecord:
        """Keep `concurrency` requests in flight until all are done."""
        waiting, active, done = deque(requests), list[_Active](), list[RequestRecord]()
        batch: KVBatch | None = None
        self._passes, self._previous_end_ns, observed = [], None, self.probe.observer_ns
        # decode passes between the first starts
        apart = max(1, requests[0].max_new_tokens // concurrency) if requests else 1
        decoded = 0
        with self.probe, torch.inference_mode():
            while waiting or active:
                allowed = min(concurrency, 1 + decoded // apart) if staggered else concurrency
                joined = self._admit(waiting, active, done, allowed)
                if joined:
                    batch = self._prefill(joined, batch)
                    active += joined
                elif active:
                    batch = self._decode(active, batch)
                    decoded += 1
                finished = [row for row, one in enumerate(active) if self._is_finished(one)]
                if finished:
                    done += [active[row].record() for row in finished]
                    left = [row for row in range(len(active)) if row not in finished]
                    active = [active[row] for row in left]
                    batch = keep(batch, left) if left and batch is not None else None
        return self._records(done, keep_tokens, self.probe.observer_ns - observed)

    def _admit(
        self, waiting: deque[Request], active: list[_Active], done: list[RequestRecord], allowed: int
    ) -> list[_Active]:
        """Requests that join now. One that can't fit the context fails at its index and takes no slot."""
        joined: list[_Active] = []
        if active and not self.continuous:
            return joined
        while waiting and len(active) + len(joined) < allowed:
            request = waiting.popleft()
            one = _Active(request=request, sent_ns=time.monotonic_ns())
            needed = len(request.prompt_token_ids) + request.max_new_tokens
            if needed > self.max_context_tokens or not request.prompt_token_ids:
                limit = self.max_context_tokens
                done.append(one.record(failed=f"needs {needed} tokens of context; the limit is {limit}, the least 1"))
                continue
            if request.temperature > 0:
                one.generator = torch.Generator().manual_seed(request.seed)
            joined.append(one)
        return joined

    def _is_finished(self, one: _Active) -> bool:
        ended = not one.request.ignore_eos and one.tokens[-1] in self.eos_ids
        return ended or len(one.tokens) >= one.request.max_new_tokens

    def _prefill(self, joined: list[_Active], batch: KVBatch | None) -> KVBatch:
        prompts = [one.request.prompt_token_ids for one in joined]
        ids, mask = left_pad(prompts, self.pad_id)
        new = KVBatch(cache=DynamicCache(config=self.net.config), mask=mask.to(self.net.device))
        self._forward(ids, new, joined, Phase.PREFILL, query_lens=tuple(map(len, prompts)))
        return new if batch is None else join(batch, new)

    def _decode(self, active: list[_Active], batch: KVBatch | None) -> KVBatch:
        assert batch is not None, "active requests without a cache"
        ids = torch.tensor([[one.tokens[-1]] for one in active])
        grown = KVBatch(cache=batch.cache, mask=torch.nn.functional.pad(batch.mask, (0, 1), value=1))
        self._forward(ids, grown, active, Phase.DECODE, query_lens=(1,) * len(active))
        return grown

    def _forward(
        self, ids: torch.Tensor, batch: KVBatch, rows: list[_Active], phase: Phase, query_lens: tuple[int, ...]
    ) -> None:
        """One timed pass: `ids` int64 [rows, new], `batch.mask` already covers the new columns."""
        device = self.net.device
        launched_ns = time.monotonic_ns()
        real = batch.mask[:, -ids.shape[1] :].bool()
        self.probe.begin_pass(None if phase is Phase.DECODE else real)
        if self.disk is not None:
            self.disk.begin_pass()
        positions = (batch.mask.cumsum(dim=1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        logits = self.net(
            input_ids=ids.to(device), attention_mask=batch.mask, position_ids=positions, past_key_values=batch.cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        tokens = _pick(logits, rows)
        end_ns = time.monotonic_ns()
        for one, token in zip(rows, tokens, strict=True):
            one.tokens.append(token)
            one.times_ns.append(end_ns)
        started_ns = launched_ns if self._previous_end_ns is None else self._previous_end_ns
        self._previous_end_ns = end_ns
        scheduled = sum(query_lens)
        record = PassRecord(
            pass_id=len(self._passes), step_id=len(self._passes), replica=0, phase=phase, started_ns=started_ns,
            launched_ns=launched_ns, duration_ns=end_ns - started_ns, num_requests=len(rows), query_lens=query_lens,
            context_lens=tuple(len(one.request.prompt_token_ids) + len(one.tokens) - 1 for one in rows),
            scheduled_tokens=scheduled, cached_tokens=0, logits_tokens=len(rows),
            padded_tokens=ids.numel() - scheduled, accepted_tokens=None, valid=True,
        )  # fmt: skip
        tier = None if self.disk is None else self.disk.end_pass()
        self._passes.append(_Pass(record=record, routing=self.probe.end_pass(), tier=tier))

    def _records(self, done: list[RequestRecord], keep_tokens: bool, observer_ns: int) -> ServeRecord:
        passes, routing, tiers = [], list[RoutingRecord](), list[TierRecord]()
        layers = {layer.layer: layer for layer in self.probe.layers}
        for ran in self._passes:
            found = ran.routing.layer_records(ran.record.pass_id, keep_tokens)
            broken = [
                f"layer {one.layer}: {why}"
                for one in found
                if (why := broken_invariant(
                    sum(one.counts), one.distinct, ran.record.scheduled_tokens, layers[one.layer].top_k,
                    layers[one.layer].num_experts, num_choices=len(one.counts),
                ))
            ]  # fmt: skip
            if len(found) != len(layers):
                broken.append(f"{len(found)} of {len(layers)} MoE layers were observed")
            reason = "; ".join(broken) or None
            passes.append(replace(ran.record, valid=reason is None, invalid_reason=reason))
            routing += found
            if ran.tier is not None:
                tiers.append(
                    TierRecord(
                        pass_id=ran.record.pass_id, tier="ssd", bytes_read=ran.tier.bytes_read,
                        expert_hits=ran.tier.expert_hits, expert_misses=ran.tier.expert_misses,
                        stall_ns=ran.tier.stall_ns,
                    )
                )  # fmt: skip
        requests = tuple(sorted(done, key=lambda one: one.item_index))
        return ServeRecord(
            passes=tuple(passes), routing=tuple(routing), requests=requests, tiers=tuple(tiers), observer_ns=observer_ns
        )


def _pick(logits: torch.Tensor, rows: Sequence[_Active]) -> list[int]:
    """Next token of every row: greedy, or sampled with the request's own generator. logits: [rows, vocabulary]."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, one in enumerate(rows):
        if one.generator is not None:
            tokens[row] = _sample(logits[row].float().cpu(), one.request, one.generator)
    return tokens


def _sample(logits: torch.Tensor, request: Request, generator: torch.Generator) -> int:
    """Nucleus sampling: the smallest set of tokens whose probability reaches top_p."""
    probabilities, order = torch.softmax(logits / request.temperature, dim=-1).sort(descending=True)
    outside = probabilities.cumsum(0) - probabilities >= request.top_p
    chosen = torch.multinomial(probabilities.masked_fill(outside, 0.0), 1, generator=generator)
    return int(order[chosen])

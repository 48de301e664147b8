"""Engine `fake`: a deterministic stand-in without weights, so that the whole pipeline runs anywhere in seconds.

It sleeps instead of computing (or moves a clock of its own) and routes by arithmetic; its records obey every invariant
that real ones do. It serves closed and open loops, as many requests at once as come. It can be told to fail. Its
numbers say nothing about any hardware, and every run of it is flagged as having dummy weights.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from moecap.engine.base import Engine, EngineFacts
from moecap.errors import ConfigError, EngineError
from moecap.records import (
    HeldWeights,
    LayerShape,
    LoadSpec,
    ModelShape,
    ModelSpec,
    PassRecord,
    Phase,
    Placement,
    Request,
    RequestRecord,
    RoutingRecord,
    ServeRecord,
    SystemSpec,
)

LAYERS, EXPERTS, TOP_K, HIDDEN, VOCABULARY, MAX_CONTEXT_TOKENS = 2, 4, 2, 8, 256, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeArgs:
    """What `args` of a system with this engine may hold."""

    pass_s: float = 0.001
    """Duration of every pass ..."""
    pass_s_per_request: float = 0.0
    """... plus so much for each request in it."""
    clock: Literal["wall", "simulated"] = "wall"
    """`simulated`: times are computed, nothing is waited for."""
    fail_at_start: bool = False
    crash_at_request: int | None = None
    """Ordinal, over the engine's life, of the request at which it crashes."""
    crash: Literal["error", "exit", "hang"] = "error"
    """How it crashes: an EngineError, a dead process, or no answer ever."""


@dataclass(slots=True)
class _Active:
    request: Request
    scheduled_ns: int | None
    sent_ns: int
    tokens: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)


class _Waiting:
    """Requests that were not sent yet, in the order of their arrival."""

    def __init__(self, requests: Sequence[Request], load: LoadSpec, begin_ns: int) -> None:
        self._is_open = load.is_open
        self._most = load.max_concurrency if load.is_open else load.concurrency
        timed = [(begin_ns + round(1e9 * (one.arrival_s or 0.0)), one) for one in requests]
        self._queue = deque(sorted(timed, key=lambda pair: pair[0]))
        self.occupied = 0
        """In flight during the last pass, and sent since."""

    @property
    def left(self) -> int:
        return len(self._queue)

    @property
    def next_ns(self) -> int:
        """When the next one arrives."""
        return self._queue[0][0]

    def take(self, now_ns: int, in_flight: int) -> _Active | None:
        """The next one, if it has arrived and is let in beside `in_flight` others."""
        if not self._queue or (self._most is not None and in_flight >= self._most):
            return None
        if not self._is_open:
            return _Active(request=self._queue.popleft()[1], scheduled_ns=None, sent_ns=now_ns)
        if self.next_ns > now_ns:
            return None
        scheduled_ns, request = self._queue.popleft()
        was_full = self._most is not None and self.occupied >= self._most
        self.occupied += 1
        return _Active(request=request, scheduled_ns=scheduled_ns, sent_ns=now_ns if was_full else scheduled_ns)


class _Clock:
    """`time.monotonic_ns`, or times that only this engine moves, from then on."""

    def __init__(self, *, simulated: bool) -> None:
        self._simulated_ns = time.monotonic_ns() if simulated else None

    def now_ns(self) -> int:
        return time.monotonic_ns() if self._simulated_ns is None else self._simulated_ns

    def wait_until(self, time_ns: int) -> None:
        """Returns at once when that has passed."""
        if self._simulated_ns is None:
            time.sleep(max(0, time_ns - time.monotonic_ns()) / 1e9)
        else:
            self._simulated_ns = max(self._simulated_ns, time_ns)


class FakeEngine(Engine):
    """Serves greedily, byte for byte predictable."""

    def start(self, model: ModelSpec, system: SystemSpec, placement: Placement) -> EngineFacts:
        """Nothing to load. Raises EngineError when told to."""
        known = [one.name for one in fields(FakeArgs)]
        for name, value in system.args.items():
            if name not in known:
                raise ConfigError("no such argument of the fake engine", f"args.{name}", value, f"use {known}")
        self._args = FakeArgs(**system.args)
        self._admitted = 0
        self._clock = _Clock(simulated=self._args.clock == "simulated")
        if self._args.fail_at_start:
            _print("can't start: told to fail")
            raise EngineError("told to fail at start")
        return EngineFacts(
            shape=virtual_shape(model.name), held=virtual_weights(), settings={"threads": placement.num_cpus},
            dummy_weights=True, max_context_tokens=MAX_CONTEXT_TOKENS,
        )  # fmt: skip

    def encode(self, text: str) -> tuple[int, ...]:
        """UTF-8 bytes."""
        return tuple(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """The reverse; what is no UTF-8 becomes a replacement character."""
        return bytes(token_ids).decode(errors="replace")

    def serve(self, requests: Sequence[Request], load: LoadSpec, routing: Literal["counts", "tokens"]) -> ServeRecord:
        """All of them; a pass is prefill or decode. An open loop's requests are sent when they arrive, or when fewer
        than `load.max_concurrency` are in flight, and join at the next pass."""
        begin_ns = self._clock.now_ns()
        waiting = _Waiting(requests, load, begin_ns)
        active, done = list[_Active](), list[RequestRecord]()
        passes, routes = list[PassRecord](), list[RoutingRecord]()
        while waiting.left or active:
            was_idle = load.is_open and not active and waiting.next_ns > self._clock.now_ns()
            if was_idle:
                waiting.occupied = 0
                self._clock.wait_until(waiting.next_ns)
            joined = self._admit(waiting, len(active), done)
            active += joined
            if active:
                rows, phase = (joined, Phase.PREFILL) if joined else (active, Phase.DECODE)
                passes.append(self._pass(len(passes), phase, rows, passes[-1:], was_idle=was_idle))
                routes += _route(passes[-1], rows, keep_tokens=routing == "tokens")
            waiting.occupied = len(active)
            done += [_record(one) for one in active if len(one.tokens) >= one.request.max_new_tokens]
            active = [one for one in active if len(one.tokens) < one.request.max_new_tokens]
        done.sort(key=lambda record: record.item_index)
        return ServeRecord(passes=tuple(passes), routing=tuple(routes), requests=tuple(done), observer_ns=0)

    def stop(self) -> None:
        """Nothing to free."""

    def _admit(self, waiting: _Waiting, in_flight: int, done: list[RequestRecord]) -> list[_Active]:
        joined: list[_Active] = []
        while (one := waiting.take(self._clock.now_ns(), in_flight + len(joined))) is not None:
            self._crash_if_told()
            if len(one.request.prompt_token_ids) + one.request.max_new_tokens > MAX_CONTEXT_TOKENS:
                done.append(_record(one, error=f"needs more than {MAX_CONTEXT_TOKENS} tokens of context"))
            else:
                joined.append(one)
        return joined

    def _crash_if_told(self) -> None:
        self._admitted += 1
        if self._admitted - 1 != self._args.crash_at_request:
            return
        _print(f"crashing at request {self._args.crash_at_request}")
        match self._args.crash:
            case "error":
                raise EngineError(f"told to crash at request {self._args.crash_at_request}")
            case "exit":
                os._exit(1)
            case "hang":
                while True:
                    time.sleep(3600)

    def _pass(
        self, pass_id: int, phase: Phase, rows: list[_Active], before: list[PassRecord], *, was_idle: bool
    ) -> PassRecord:
        """One pass over `rows`; each gets one token."""
        launched_ns = self._clock.now_ns()
        started_ns = before[0].started_ns + before[0].duration_ns if before and not was_idle else launched_ns
        queries = tuple(len(one.request.prompt_token_ids) if phase is Phase.PREFILL else 1 for one in rows)
        contexts = tuple(len(one.request.prompt_token_ids) + len(one.tokens) for one in rows)
        self._clock.wait_until(launched_ns + round(1e9 * self._pass_s(len(rows))))
        end_ns = self._clock.now_ns()
        for one in rows:
            one.tokens.append((sum(one.request.prompt_token_ids) + len(one.tokens)) % VOCABULARY)
            one.times_ns.append(end_ns)
        return PassRecord(
            pass_id=pass_id, step_id=pass_id, replica=0, phase=phase, started_ns=started_ns, launched_ns=launched_ns,
            duration_ns=end_ns - started_ns, num_requests=len(rows), query_lens=queries, context_lens=contexts,
            scheduled_tokens=sum(queries), cached_tokens=0, logits_tokens=len(rows), padded_tokens=0,
            accepted_tokens=None, valid=True,
        )  # fmt: skip

    def _pass_s(self, num_requests: int) -> float:
        return self._args.pass_s + self._args.pass_s_per_request * num_requests


def _print(text: str) -> None:
    """Last words, to where engines put theirs."""
    print(f"fake engine: {text}", file=sys.stderr, flush=True)


def _route(record: PassRecord, rows: Sequence[_Active], *, keep_tokens: bool) -> list[RoutingRecord]:
    """Every token goes to TOP_K neighbouring experts, chosen by its position, its layer and its request."""
    found = []
    for layer in range(LAYERS):
        chosen = [
            tuple((position + layer + one.request.item_index + k) % EXPERTS for k in range(TOP_K))
            for one, query, context in zip(rows, record.query_lens, record.context_lens, strict=True)
            for position in range(context - query, context)
        ]
        seen = Counter(expert for token in chosen for expert in token)
        found.append(
            RoutingRecord(
                pass_id=record.pass_id, layer=layer, counts=tuple(seen[expert] for expert in range(EXPERTS)),
                distinct=len(seen), distinct_physical=len(seen), token_experts=tuple(chosen) if keep_tokens else None,
            )
        )  # fmt: skip
    return found


def _record(one: _Active, error: str | None = None) -> RequestRecord:
    return RequestRecord(
        request_id=one.request.request_id, attempt=0, item_index=one.request.item_index, replica=0,
        scheduled_ns=one.scheduled_ns, sent_ns=one.sent_ns, first_token_ns=one.times_ns[0] if one.times_ns else None,
        end_ns=one.times_ns[-1] if one.times_ns else one.sent_ns, chunk_ns=tuple(one.times_ns),
        chunk_tokens=(1,) * len(one.times_ns), input_tokens=len(one.request.prompt_token_ids), cached_tokens=0,
        output_tokens=len(one.tokens), status="ok" if error is None else "failed", error=error,
        output_token_ids=tuple(one.tokens),
    )  # fmt: skip


def virtual_shape(name: str) -> ModelShape:
    """Two full-attention layers of four experts, hidden 8, expert width 16, untied head."""
    expert, router, mixer = 3 * HIDDEN * 16, HIDDEN * EXPERTS, 4 * HIDDEN * HIDDEN
    layers = tuple(
        LayerShape(
            index=index, mixer="full_attention", mixer_params=mixer, mixer_matmul_params=mixer,
            score_flops_per_pair=4 * HIDDEN, kv_elements_per_token=2 * HIDDEN, window_tokens=None, num_experts=EXPERTS,
            top_k=TOP_K, expert_params=expert, router_params=router, norm_params=2 * HIDDEN,
            ffn_matmul_params_per_token=router + TOP_K * expert,
        )
        for index in range(LAYERS)
    )  # fmt: skip
    head = VOCABULARY * HIDDEN
    return ModelShape(
        name=name, model_type="fake", hidden_size=HIDDEN, vocab_size=VOCABULARY, layers=layers, embedding_params=head,
        lm_head_params=head, lm_head_matrix_params=head, final_norm_params=HIDDEN,
    )  # fmt: skip


def virtual_weights() -> HeldWeights:
    """All in float32, all resident."""
    shape = virtual_shape("fake")
    layer = shape.layers[0]
    params: dict[str, int] = {
        "mixer": LAYERS * layer.mixer_params, "router": LAYERS * layer.router_params,
        "routed_expert": LAYERS * EXPERTS * layer.expert_params,
        "norm": LAYERS * layer.norm_params + shape.final_norm_params, "embedding": shape.embedding_params,
        "lm_head": shape.lm_head_params,
    }  # fmt: skip
    held = {kind: 4 * count for kind, count in params.items()}
    return HeldWeights(
        bytes_per_param=dict.fromkeys(params, 4.0), compute_dtype=dict.fromkeys([*params, "attention"], "float32"),
        kv_bytes_per_element=4.0, activation_bytes_per_element=4.0, weight_bytes=held,
        resident_weight_bytes=sum(held.values()),
    )  # fmt: skip

"""Engine `fake`: a deterministic stand-in without weights, so that the whole pipeline runs anywhere in seconds.

It sleeps instead of computing and routes by arithmetic; its records obey every invariant that real ones do. It can
be told to fail. Its numbers say nothing about any hardware, and every run of it is flagged as having dummy weights.
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
    """Duration of every pass."""
    fail_at_start: bool = False
    crash_at_request: int | None = None
    """Ordinal, over the engine's life, of the request at which it crashes."""
    crash: Literal["error", "exit", "hang"] = "error"
    """How it crashes: an EngineError, a dead process, or no answer ever."""


@dataclass(slots=True)
class _Active:
    request: Request
    sent_ns: int
    tokens: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)


class FakeEngine(Engine):
    """Serves in closed loop, greedily, byte for byte predictable."""

    def start(self, model: ModelSpec, system: SystemSpec, placement: Placement) -> EngineFacts:
        """Nothing to load. Raises EngineError when told to."""
        known = [one.name for one in fields(FakeArgs)]
        for name, value in system.args.items():
            if name not in known:
                raise ConfigError("no such argument of the fake engine", f"args.{name}", value, f"use {known}")
        self._args = FakeArgs(**system.args)
        self._admitted = 0
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
        """Keep `load.concurrency` requests in flight until all are done; a pass is prefill or decode."""
        if load.arrival != "closed" or load.concurrency is None:
            raise ConfigError("this engine serves a closed loop", "arrival", load.arrival, "use arrival: closed")
        waiting, active, done = deque(requests), list[_Active](), list[RequestRecord]()
        passes, routes = list[PassRecord](), list[RoutingRecord]()
        while waiting or active:
            joined = self._admit(waiting, load.concurrency - len(active), done)
            active += joined
            if active:
                rows, phase = (joined, Phase.PREFILL) if joined else (active, Phase.DECODE)
                passes.append(self._pass(len(passes), phase, rows, passes[-1:]))
                routes += _route(passes[-1], rows, keep_tokens=routing == "tokens")
            done += [_record(one) for one in active if len(one.tokens) >= one.request.max_new_tokens]
            active = [one for one in active if len(one.tokens) < one.request.max_new_tokens]
        done.sort(key=lambda record: record.item_index)
        return ServeRecord(passes=tuple(passes), routing=tuple(routes), requests=tuple(done), observer_ns=0)

    def stop(self) -> None:
        """Nothing to free."""

    def _admit(self, waiting: deque[Request], free: int, done: list[RequestRecord]) -> list[_Active]:
        joined: list[_Active] = []
        while waiting and len(joined) < free:
            one = _Active(request=waiting.popleft(), sent_ns=time.monotonic_ns())
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

    def _pass(self, pass_id: int, phase: Phase, rows: list[_Active], before: list[PassRecord]) -> PassRecord:
        """One pass over `rows`; each gets one token."""
        launched_ns = time.monotonic_ns()
        started_ns = before[0].started_ns + before[0].duration_ns if before else launched_ns
        queries = tuple(len(one.request.prompt_token_ids) if phase is Phase.PREFILL else 1 for one in rows)
        contexts = tuple(len(one.request.prompt_token_ids) + len(one.tokens) for one in rows)
        time.sleep(self._args.pass_s)
        end_ns = time.monotonic_ns()
        for one in rows:
            one.tokens.append((sum(one.request.prompt_token_ids) + len(one.tokens)) % VOCABULARY)
            one.times_ns.append(end_ns)
        return PassRecord(
            pass_id=pass_id, step_id=pass_id, replica=0, phase=phase, started_ns=started_ns, launched_ns=launched_ns,
            duration_ns=end_ns - started_ns, num_requests=len(rows), query_lens=queries, context_lens=contexts,
            scheduled_tokens=sum(queries), cached_tokens=0, logits_tokens=len(rows), padded_tokens=0,
            accepted_tokens=None, valid=True,
        )  # fmt: skip


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
        request_id=one.request.request_id, attempt=0, item_index=one.request.item_index, replica=0, scheduled_ns=None,
        sent_ns=one.sent_ns, first_token_ns=one.times_ns[0] if one.times_ns else None,
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

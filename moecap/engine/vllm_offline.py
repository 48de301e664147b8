"""A program that serves batches with vLLM's own engine loop, without a server. It runs in a process of its own.

    python -m moecap.engine.vllm_offline ENGINE_ARGUMENTS.json CONNECTION

It answers what `vllm_modes.OfflineBatch` asks through a connection (a file descriptor): requests are added to the
engine as others end, and every token is dated when the step that made it was handed over.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from moecap.engine.openai_client import Driven, too_short
from moecap.records import LoadSpec, Request, RequestRecord


@dataclass(slots=True)
class _Active:
    request: Request
    sent_ns: int
    chunk_ns: list[int] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cached_tokens: int = 0

    def record(self, error: str | None = None) -> RequestRecord:
        times = self.chunk_ns
        return RequestRecord(
            request_id=self.request.request_id, attempt=0, item_index=self.request.item_index, replica=0,
            scheduled_ns=None, sent_ns=self.sent_ns, first_token_ns=times[0] if times else None,
            end_ns=times[-1] if times else self.sent_ns, chunk_ns=tuple(times), chunk_tokens=tuple(self.chunk_tokens),
            input_tokens=len(self.request.prompt_token_ids), cached_tokens=self.cached_tokens,
            output_tokens=len(self.tokens), status="ok" if error is None else "failed", error=error,
            output_token_ids=tuple(self.tokens),
        )  # fmt: skip


def closed_loop(llm: Any, requests: Sequence[Request], load: LoadSpec) -> Driven:
    """Keep `load.concurrency` requests in flight until all are done; staggered, the first ones start spread over the
    tokens of the very first."""
    assert load.concurrency is not None
    waiting, done, active = deque(requests), list[RequestRecord](), dict[str, _Active]()
    leader: _Active | None = None
    while waiting or active:
        allowed = load.concurrency
        if load.staggered and leader is not None and not done:
            share = len(leader.tokens) / leader.request.max_new_tokens
            allowed = min(allowed, 1 + int(share * load.concurrency))
        elif load.staggered and leader is None:
            allowed = 1
        while waiting and len(active) < allowed:
            one = _Active(request=waiting.popleft(), sent_ns=time.monotonic_ns())
            needed, limit = len(one.request.prompt_token_ids) + one.request.max_new_tokens, _context_limit(llm)
            if needed > limit:  # the engine itself would answer with fewer tokens than were asked for
                done.append(one.record(f"needs {needed} tokens of context; the limit is {limit}"))
                continue
            try:
                prompt = {"prompt_token_ids": list(one.request.prompt_token_ids)}
                llm.llm_engine.add_request(one.request.request_id, prompt, _sampling(one.request))
            except ValueError as error:  # what vLLM refuses of one request
                done.append(one.record(str(error)))
                continue
            active[one.request.request_id] = one
            leader = leader or one
        for output in llm.llm_engine.step() if active else ():
            one = active[output.request_id]
            _extend(one, output)
            if output.finished:
                done.append(active.pop(output.request_id).record(too_short(one.request, len(one.tokens))))
    return Driven(requests=tuple(sorted(done, key=lambda one: one.item_index)), client=None)


def _context_limit(llm: Any) -> int:
    limit: int = llm.llm_engine.model_config.max_model_len
    return limit


def _sampling(request: Request) -> SamplingParams:
    return SamplingParams(
        temperature=request.temperature, top_p=request.top_p, seed=request.seed, max_tokens=request.max_new_tokens,
        ignore_eos=request.ignore_eos, detokenize=False, output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip


def _extend(one: _Active, output: Any) -> None:
    new = output.outputs[0].token_ids
    if new:
        one.tokens += new
        one.chunk_ns.append(time.monotonic_ns())
        one.chunk_tokens.append(len(new))
    one.cached_tokens = output.num_cached_tokens or 0


def main() -> None:
    """Answer until the connection closes."""
    arguments, connection = json.loads(Path(sys.argv[1]).read_text()), Connection(int(sys.argv[2]))
    llm = LLM(**arguments)
    answers = {
        "ready": lambda: None,
        "call": lambda method, args: llm.collective_rpc(method, args=args),
        "flush": llm.reset_prefix_cache,
        "serve": lambda requests, load: closed_loop(llm, requests, load),
    }
    while True:
        try:
            what, args = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", answers[what](*args)))
        except Exception as error:  # told to who asked, which decides
            connection.send(("failed", f"{type(error).__name__}: {error}"))
            raise


if __name__ == "__main__":
    main()

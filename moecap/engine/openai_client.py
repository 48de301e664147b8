"""Drives a server that speaks OpenAI's completions API, streaming, under a closed or an open loop.

Times are `time.monotonic_ns` when the bytes of an event were read, before anything is parsed: that happens after the
last request. Bodies are made before the first one. Prompts go out as token ids. It knows no engine: who starts the
server, and what its processes record beside this, is the engine's business.

Closed loop, staggered: slot n starts when the first request has brought n / concurrency of its tokens (events count as
tokens), or has ended.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from moecap.engine.client_delay import ClientDelay
from moecap.engine.openai_stream import Events, read_answer, server_message
from moecap.errors import EngineError
from moecap.records import ClientRecord, LoadSpec, Request, RequestRecord

KEEPALIVE_S = 2.0
"""An idle connection is not used again after it: servers close theirs after 5 s, and a request may not meet that."""
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Driven:
    """What the client saw."""

    requests: tuple[RequestRecord, ...]
    """In the order of `item_index`."""
    client: ClientRecord | None
    """None: no client stood between."""


def drive(
    base_url: str, model: str, requests: Sequence[Request], load: LoadSpec, *,
    extra_body: Mapping[str, Any] | None = None, api_key: str | None = None, timeout_s: float,
    replica: int | None = None,
) -> Driven:  # fmt: skip
    """Send all requests to `{base_url}/v1/completions` as `load` says, and follow them to their end.

    `extra_body` is added to every request's JSON body; `timeout_s` is for one request; `replica` is the one that serves
    them, None: there are several. A request that the server refuses, breaks off or doesn't answer in time is recorded
    as failed. Raises EngineError when nobody listens there (any more), ValueError for a load that can't be driven.
    """
    if load.search is not None:
        raise ValueError(f"a load that is searched for can't be driven: {load}")
    if load.is_open and any(one.arrival_s is None for one in requests):
        raise ValueError("requests of an open loop need an arrival_s each")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    bodies = {one.request_id: json.dumps({**_body(one, model), **(extra_body or {})}).encode() for one in requests}
    if len(bodies) < len(requests):
        raise ValueError("requests need an id each")
    with _no_collection():
        driver = _Driver(
            base_url=base_url.rstrip("/"), requests=requests, load=load, bodies=bodies, headers=headers,
            timeout_s=timeout_s,
        )  # fmt: skip
        attempts, client = asyncio.run(driver.run())
    records = sorted((one.record(replica) for one in attempts), key=lambda record: record.item_index)
    return Driven(requests=tuple(records), client=client)


@dataclass(slots=True)
class _Attempt:
    """One request, under way or over."""

    request: Request
    scheduled_ns: int | None
    sent_ns: int
    events: Events = field(default_factory=Events)
    end_ns: int | None = None
    """When it failed; a success ends with its last token."""
    failure: str | None = None

    def record(self, replica: int | None) -> RequestRecord:
        answer = read_answer(self.events.seen)
        failure = answer.error or self.failure  # what the server says of itself is the better reason
        if failure is None and not answer.output_tokens:
            failure = "the server brought no token, or doesn't say how many"
        failure = failure or too_short(self.request, answer.output_tokens or 0)
        times = answer.chunk_ns
        return RequestRecord(
            request_id=self.request.request_id, attempt=0, item_index=self.request.item_index, replica=replica,
            scheduled_ns=self.scheduled_ns, sent_ns=self.sent_ns, first_token_ns=times[0] if times else None,
            end_ns=times[-1] if failure is None else self.end_ns, chunk_ns=times, chunk_tokens=answer.chunk_tokens,
            input_tokens=answer.prompt_tokens or len(self.request.prompt_token_ids),
            cached_tokens=answer.cached_tokens, output_tokens=answer.output_tokens or 0,
            status="ok" if failure is None else "failed", error=failure, output_token_ids=answer.token_ids,
        )  # fmt: skip


def too_short(request: Request, tokens: int) -> str | None:
    """Why an answer of so many tokens is none to this request, which would have gone on past any end-of-sequence."""
    if request.ignore_eos and tokens != request.max_new_tokens:
        return f"{tokens} of the {request.max_new_tokens} tokens that were asked for came"
    return None


class _Stagger:
    """When the slots of a closed loop start: spread over the first request."""

    def __init__(self, requests: Sequence[Request], concurrency: int, *, staggered: bool) -> None:
        self._apart = max(1, requests[0].max_new_tokens // concurrency) if staggered and requests else 0
        self._starts = [asyncio.Event() for _ in range(concurrency)]
        self.progress(0)

    async def start(self, slot: int) -> None:
        """Wait for this slot's turn."""
        await self._starts[slot].wait()

    def progress(self, events: int) -> None:
        """So many events of the first request have come."""
        for slot, start in enumerate(self._starts):
            if slot * self._apart <= events:
                start.set()

    def release(self) -> None:
        """All may start."""
        for start in self._starts:
            start.set()


class _Driver:
    """One drive."""

    def __init__(
        self, *, base_url: str, requests: Sequence[Request], load: LoadSpec, bodies: Mapping[str, bytes],
        headers: Mapping[str, str], timeout_s: float,
    ) -> None:  # fmt: skip
        self._base_url, self._load, self._timeout_s = base_url, load, timeout_s
        self._requests = sorted(requests, key=lambda one: one.arrival_s or 0.0) if load.is_open else list(requests)
        self._bodies, self._headers = bodies, headers
        self._attempts: list[_Attempt] = []

    async def run(self) -> tuple[list[_Attempt], ClientRecord]:
        """Everything, from the first request to the last."""
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=KEEPALIVE_S)
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as self._session:
            delay = ClientDelay()
            try:
                await (self._open() if self._load.is_open else self._closed(self._load.concurrency or 1))
            except ExceptionGroup as group:  # of tasks: the first one cancelled the others
                raise group.exceptions[0] from None
            finally:
                delays = [one.sent_ns - one.scheduled_ns for one in self._attempts if one.scheduled_ns is not None]
                client = delay.record(delays)
        if any(one.failure for one in self._attempts):
            await self._check_that_it_listens()
        return self._attempts, client

    async def _closed(self, concurrency: int) -> None:
        """Every slot sends its next request when its last one has ended."""
        waiting = deque(self._requests)
        stagger = _Stagger(self._requests, concurrency, staggered=self._load.staggered)

        async def serve_slot(slot: int) -> None:
            await stagger.start(slot)
            if slot == 0 and waiting:
                await self._send(waiting.popleft(), None, stagger.progress)
                stagger.release()
            while waiting:
                await self._send(waiting.popleft(), None, None)

        await _all(serve_slot(slot) for slot in range(concurrency))

    async def _open(self) -> None:
        """Every request is sent when it is due, or when there is room."""
        most = self._load.max_concurrency
        room = nullcontext() if most is None else asyncio.Semaphore(most)
        begin_ns = time.monotonic_ns()

        async def send(request: Request, due_ns: int) -> None:
            async with room:
                await self._send(request, due_ns, None)

        async with asyncio.TaskGroup() as tasks:
            for request in self._requests:
                due_ns = begin_ns + round(1e9 * (request.arrival_s or 0.0))
                await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
                tasks.create_task(send(request, due_ns))

    async def _send(self, request: Request, due_ns: int | None, progress: Callable[[int], None] | None) -> None:
        """One request to its end. EngineError when there is no server to connect to."""
        attempt = _Attempt(request=request, scheduled_ns=due_ns, sent_ns=time.monotonic_ns())
        self._attempts.append(attempt)
        events = attempt.events
        try:
            async with self._session.post(
                f"{self._base_url}/v1/completions", data=self._bodies[request.request_id],
                headers={**self._headers, "X-Request-Id": request.request_id},
            ) as response:  # fmt: skip
                if response.status != 200:
                    attempt.failure = f"HTTP {response.status}: {server_message(await response.read())}"
                else:
                    async for data in response.content.iter_any():
                        events.feed(data, time.monotonic_ns())
                        if progress is not None:
                            progress(len(events.seen))
                    if not events.is_done:
                        attempt.failure = f"the stream ended after {len(events.seen)} events, before its end was told"
        except TimeoutError:
            attempt.failure = f"not answered within {self._timeout_s:g} s, {len(events.seen)} events had come"
        except aiohttp.ClientConnectorError as error:
            raise EngineError(self._gone(str(error))) from error
        except (aiohttp.ClientError, OSError) as error:
            told = str(error) or type(error).__name__
            attempt.failure = f"the connection broke after {len(events.seen)} events: {told}"
        finally:
            attempt.end_ns = time.monotonic_ns()

    async def _check_that_it_listens(self) -> None:
        """EngineError when the server can't be connected to any more."""
        where = urlsplit(self._base_url)
        port = where.port or (443 if where.scheme == "https" else 80)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(where.hostname, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise EngineError(self._gone(str(error))) from error
        writer.close()

    def _gone(self, why: str) -> str:
        answered = sum(one.end_ns is not None and one.failure is None for one in self._attempts)
        broken = next((f"; before: {one.failure}" for one in self._attempts if one.failure), "")
        counted = f"{answered} of {len(self._requests)} requests were answered"
        return f"no server at {self._base_url}: {why}; {counted}{broken}"


def _body(request: Request, model: str) -> dict[str, Any]:
    return {
        "model": model, "prompt": list(request.prompt_token_ids), "max_tokens": request.max_new_tokens,
        "temperature": request.temperature, "top_p": request.top_p, "seed": request.seed,
        "ignore_eos": request.ignore_eos, "stream": True, "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }  # fmt: skip


async def _all(tasks: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in tasks:
            group.create_task(one)


@contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector stops everything for as long as a large process is large: not while times are taken."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

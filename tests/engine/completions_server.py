"""A server of OpenAI's completions API in a thread of its own, with tokens at known times. Nothing is asserted here.

What it does with a request is said by the request's own `behave`, which a test puts into `extra_body`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Seen:
    """One request as the server saw it."""

    body: dict[str, Any]
    headers: dict[str, str]
    came_ns: int
    in_flight: int
    """With this one."""
    written_ns: list[int] = field(default_factory=list)
    """Just before each chunk was written."""


class CompletionsServer:
    """`behave` keys: gap_s (before each chunk), tokens_per_chunk, ids (return token ids), usage (end|each), barrier
    (nobody is answered before so many are in flight), full with of (requests end one by one, each when so many are in
    flight or all of so many have come), status and message, fail_after (chunks) with fail (break|error|end)."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.base_url = ""
        self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._crowd, self._ending = asyncio.Event(), asyncio.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        """Safe to call twice."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    async def _listen(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        came_ns = time.monotonic_ns()
        body = await request.json()
        behave = body.pop("behave", {})
        self._in_flight += 1
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(body=body, headers=headers, came_ns=came_ns, in_flight=self._in_flight)
        self.seen.append(seen)
        try:
            if self._in_flight >= behave.get("barrier", 0):
                self._crowd.set()
            await self._crowd.wait()
            if "status" in behave:
                return web.json_response({"error": {"message": behave["message"]}}, status=behave["status"])
            return await self._stream(request, seen, behave)
        finally:
            self._in_flight -= 1

    async def _stream(self, request: web.Request, seen: Seen, behave: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        total, size = seen.body["max_tokens"], behave.get("tokens_per_chunk", 1)
        prompt = len(seen.body["prompt"])
        for index, start in enumerate(range(0, total, size)):
            if index == behave.get("fail_after"):
                if behave["fail"] == "break":
                    assert request.transport is not None
                    request.transport.close()
                elif behave["fail"] == "error":
                    await response.write(event({"error": {"message": "out of memory"}}) + b"data: [DONE]\n\n")
                return response
            await asyncio.sleep(behave.get("gap_s", 0.0))
            ids = list(range(start, min(start + size, total)))
            choice: dict[str, Any] = {"index": 0, "text": "x" * len(ids), "finish_reason": None}
            if behave.get("ids", True):
                choice["token_ids"] = ids
            document: dict[str, Any] = {"choices": [choice]}
            if behave.get("usage") == "each":
                document["usage"] = {"prompt_tokens": prompt, "completion_tokens": ids[-1] + 1}
            seen.written_ns.append(time.monotonic_ns())
            await response.write(event(document))
        usage = {"prompt_tokens": prompt, "completion_tokens": total, "prompt_tokens_details": {"cached_tokens": 3}}
        if "full" in behave:
            await self._until_full(behave["full"], behave["of"])
        else:
            self._in_flight -= 1  # before the client can know that it ended
        last = event({"choices": [], "usage": usage}) if behave.get("usage", "end") == "end" else b""
        await response.write(last + b"data: [DONE]\n\n")
        self._in_flight += 1
        return response

    async def _until_full(self, full: int, of: int) -> None:
        async with self._ending:
            while self._in_flight < full and len(self.seen) < of:
                await asyncio.sleep(0.001)
            self._in_flight -= 1


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@contextmanager
def completions_server() -> Iterator[CompletionsServer]:
    server = CompletionsServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()

"""What a server streamed, event by event, and what it amounts to. Pure; it sends nothing and looks at no clock.

The format is that of OpenAI's completions API: lines `data: {...}`, each one event, the last one `data: [DONE]`. Tokens
of a chunk are known from its `token_ids` (vLLM's `return_token_ids`), else from usage that grows from event to event,
else when the chunks are as many as the tokens; otherwise they are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

DONE = b"[DONE]"


class Events:
    """Cuts a stream of bytes into events. An event's time is that of its last byte."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []
        """Time and content of every event."""
        self._rest = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        """Bytes that arrived at `now_ns`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.seen += [(now_ns, line[5:].strip()) for line in lines if line.startswith(b"data:")]

    @property
    def is_done(self) -> bool:
        """Whether the server said that this was all."""
        return bool(self.seen) and self.seen[-1][1] == DONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a request got."""

    chunk_ns: tuple[int, ...] = ()
    chunk_tokens: tuple[int | None, ...] = ()
    token_ids: tuple[int, ...] = ()
    """Empty where the server doesn't return them."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    """What the server said was wrong, or what is wrong with what it said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    time_ns: int
    token_ids: tuple[int, ...] | None
    total_tokens: int | None
    """Output tokens up to here, if the event says so."""


def read_answer(events: Sequence[tuple[int, bytes]]) -> Answer:
    """The events of one stream, whole or cut off."""
    chunks: list[_Chunk] = []
    usage: dict[str, Any] = {}
    error = None
    for time_ns, content in events:
        if content == DONE:
            continue
        try:
            event = json.loads(content)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            error = error or f"the server sent an event that is no JSON object: {content[:200]!r}"
            continue
        if event.get("error"):
            error = error or server_message(content)
        usage = event.get("usage") or usage
        chunks += _chunk(event, time_ns)
    total = usage.get("completion_tokens")
    counts = _counts(chunks, total)
    known = sum(one for one in counts if one is not None) if None not in counts else None
    if error is None and None not in (known, total) and known != total:
        error = f"the server's chunks hold {known} tokens, but it counted {total}"
    return Answer(
        chunk_ns=tuple(one.time_ns for one in chunks), chunk_tokens=counts,
        token_ids=tuple(token for one in chunks for token in one.token_ids or ()),
        prompt_tokens=usage.get("prompt_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        output_tokens=known if total is None else total, error=error,
    )  # fmt: skip


def server_message(body: bytes) -> str:
    """The message in a server's error document, else its text, at most 500 characters."""
    text = body.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return text[:500]
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return (found if isinstance(found, str) else json.dumps(found))[:500]


def _chunk(event: dict[str, Any], time_ns: int) -> list[_Chunk]:
    """The event's chunk, if it has one: what brings neither token nor text is none."""
    for choice in event.get("choices") or ():
        ids = choice.get("token_ids")
        if ids or (ids is None and choice.get("text")):
            total = (event.get("usage") or {}).get("completion_tokens")
            return [_Chunk(time_ns=time_ns, token_ids=None if ids is None else tuple(ids), total_tokens=total)]
    return []


def _counts(chunks: Sequence[_Chunk], total: int | None) -> tuple[int | None, ...]:
    """Tokens of every chunk, None where they can't be known."""
    if all(one.token_ids is not None for one in chunks):
        return tuple(len(one.token_ids or ()) for one in chunks)
    if all(one.total_tokens is not None for one in chunks):
        totals = [0, *(one.total_tokens or 0 for one in chunks)]
        return tuple(later - earlier for earlier, later in pairwise(totals))
    return (1 if total == len(chunks) else None,) * len(chunks)  # a chunk has at least one token

"""Events of a stream, cut and read, by hand."""

import json
from typing import Any

import pytest

from moecap.engine.openai_stream import Events, read_answer, server_message


def event(time_ns: int, text: str = "", **fields: Any) -> tuple[int, bytes]:
    choice = {"text": text, **{key: fields.pop(key) for key in ("token_ids", "finish_reason") if key in fields}}
    return time_ns, json.dumps({"choices": [choice], **fields}).encode()


def usage(time_ns: int, completion_tokens: int, **more: Any) -> tuple[int, bytes]:
    told = {"prompt_tokens": 7, "completion_tokens": completion_tokens, **more}
    return time_ns, json.dumps({"choices": [], "usage": told}).encode()


def test_an_event_has_the_time_of_its_last_byte() -> None:
    events = Events()
    events.feed(b'data: {"a"', 1)
    events.feed(b": 1}\r\n\r\ndata: 2\n\nda", 5)
    events.feed(b"ta: [DO", 8)
    assert not events.is_done
    events.feed(b"NE]\n\n: a comment\n", 9)
    assert events.seen == [(5, b'{"a": 1}'), (5, b"2"), (9, b"[DONE]")]
    assert events.is_done


def test_tokens_are_counted_by_their_ids() -> None:
    """An empty text still brings a token; a chunk without either brings none."""
    answer = read_answer(
        [event(1, "", token_ids=[5]), event(4, "ab", token_ids=[6, 7]),
         event(6, "", token_ids=[], finish_reason="length"),
         usage(7, 3, prompt_tokens_details={"cached_tokens": 4}), (8, b"[DONE]")]
    )  # fmt: skip
    assert (answer.chunk_ns, answer.chunk_tokens, answer.token_ids) == ((1, 4), (1, 2), (5, 6, 7))
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (7, 4, 3)
    assert answer.error is None


def test_without_ids_growing_usage_counts() -> None:
    grown = [event(t, "x", usage={"prompt_tokens": 7, "completion_tokens": n}) for t, n in ((1, 1), (2, 4), (3, 5))]
    answer = read_answer(grown)
    assert (answer.chunk_tokens, answer.output_tokens, answer.token_ids) == ((1, 3, 1), 5, ())


def test_as_many_chunks_as_tokens_are_one_token_each_and_otherwise_nobody_knows() -> None:
    texts = [event(1, "a"), event(2, "b"), event(3, "", finish_reason="stop")]
    assert read_answer([*texts, usage(4, 2)]).chunk_tokens == (1, 1)
    unknown = read_answer([*texts, usage(4, 5)])
    assert (unknown.chunk_ns, unknown.chunk_tokens, unknown.output_tokens) == ((1, 2), (None, None), 5)
    untold = read_answer(texts)
    assert (untold.chunk_tokens, untold.output_tokens, untold.cached_tokens) == ((None, None), None, None)


def test_what_the_server_says_is_wrong_is_the_error() -> None:
    assert read_answer([event(1, "a"), (2, b'{"error": {"message": "no memory", "code": 500}}')]).error == "no memory"
    assert "no JSON object" in str(read_answer([(2, b"<html>")]).error)
    answer = read_answer([event(1, "a", token_ids=[1]), usage(2, 3)])
    assert answer.error == "the server's chunks hold 1 tokens, but it counted 3"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too long", "type": "BadRequestError"}}', "too long"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        (b'{"error": "too long"}', "too long"),
        (b" Bad Gateway ", "Bad Gateway"),
    ],
)
def test_messages_of_servers(body: bytes, message: str) -> None:
    assert server_message(body) == message

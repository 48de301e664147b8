"""What a scheduler's outputs say of steps, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moecap.probe.vllm_steps import Step, StepLog
from moecap.records import Phase


def scheduled(
    tokens: dict[str, int], new: dict[str, tuple[int, int]] | None = None, known: dict[str, int] | None = None,
    finished: set[str] | None = None, speculated: dict[str, list[int]] | None = None,
) -> Any:  # fmt: skip
    """`new`: prompt tokens and those that are cached; `known`: tokens computed before."""
    news = [
        SimpleNamespace(req_id=name, prompt_token_ids=[0] * prompt, num_computed_tokens=cached)
        for name, (prompt, cached) in (new or {}).items()
    ]
    olds = SimpleNamespace(req_ids=list(known or {}), num_computed_tokens=list((known or {}).values()))
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        finished_req_ids=finished or set(),
        scheduled_spec_decode_tokens=speculated or {},
        scheduled_new_reqs=news,
        scheduled_cached_reqs=olds,
    )


def seen(log: StepLog, output: Any) -> Step:
    step = log.see(output)
    assert step is not None
    return step


def test_a_prompt_in_chunks_then_decode_beside_another() -> None:
    log = StepLog()
    first = seen(log, scheduled({"a": 4}, new={"a": (6, 0)}))
    assert (first.phase, first.query_lens, first.context_lens) == (Phase.PREFILL, (4,), (4,))
    assert first.after_idle
    rest = seen(log, scheduled({"a": 2}, known={"a": 4}))
    assert (rest.phase, rest.query_lens, rest.context_lens) == (Phase.PREFILL, (2,), (6,))
    assert not rest.after_idle
    both = seen(log, scheduled({"a": 1, "b": 5}, known={"a": 6}, new={"b": (5, 0)}))
    assert (both.phase, both.query_lens, both.context_lens) == (Phase.MIXED, (1, 5), (7, 5))
    assert (both.tokens, both.logits_tokens, both.cached_tokens) == (6, 2, 0)
    decode = seen(log, scheduled({"a": 1, "b": 1}, known={"a": 7, "b": 5}))
    assert (decode.phase, decode.context_lens) == (Phase.DECODE, (8, 6))


def test_cached_prompts_are_told_apart() -> None:
    step = seen(StepLog(), scheduled({"a": 3}, new={"a": (19, 16)}))
    assert (step.phase, step.cached_tokens, step.query_lens, step.context_lens) == (Phase.PREFILL, 16, (3,), (19,))


def test_a_step_after_all_had_finished_waited_for_nothing() -> None:
    log = StepLog()
    log.see(scheduled({"a": 2}, new={"a": (2, 0)}))
    assert not seen(log, scheduled({"a": 1}, known={"a": 2})).after_idle
    assert seen(log, scheduled({"b": 2}, new={"b": (2, 0)}, finished={"a"})).after_idle
    assert not seen(log, scheduled({"b": 1, "c": 2}, known={"b": 2}, new={"c": (2, 0)})).after_idle


def test_the_end_of_the_last_request_comes_without_tokens() -> None:
    log = StepLog()
    log.see(scheduled({"a": 2}, new={"a": (2, 0)}))
    assert log.see(scheduled({}, finished={"a"})) is None
    assert seen(log, scheduled({"b": 2}, new={"b": (2, 0)})).after_idle


def test_speculated_tokens_make_logits_too() -> None:
    log = StepLog()
    log.see(scheduled({"a": 2}, new={"a": (2, 0)}))
    step = seen(log, scheduled({"a": 4}, known={"a": 2}, speculated={"a": [7, 8, 9]}))
    assert (step.phase, step.logits_tokens) == (Phase.DECODE, 4)


def test_a_request_out_of_nowhere() -> None:
    with pytest.raises(KeyError):
        StepLog().see(scheduled({"a": 1}, known={"a": 2}))

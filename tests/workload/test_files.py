"""Prompts and traces from JSONL files: what is read, what identifies it, what is wrong with it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from moecap.registry import resolve
from moecap.workload import WORKLOADS
from moecap.workload.base import Drawn, Workload
from moecap.workload.trace import BLOCK_TOKENS, Trace

MOONCAKE = """\
{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27]}
{"timestamp": 3000, "input_length": 2290, "output_length": 316, "hash_ids": [0, 42, 43, 44, 45]}
"""  # noqa: E501
"""Rows of the public trace (toolagent_trace.jsonl in github.com/kvcache-ai/Mooncake), the last one's time changed."""


def written(folder: Path, text: str) -> str:
    path = folder / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    return str(path)


def workload(kind: str, **options: Any) -> Workload:
    made: Workload = resolve(WORKLOADS, "moecap.workloads", kind).model_validate(options)
    return made


def drawn(one: Workload, count: int, seed: int = 0) -> list[Drawn]:
    return one.draw(count, seed, lambda text: tuple(text.encode()), 5000)


def test_rows_hold_texts_or_token_ids_and_may_say_how_much_they_want(tmp_path: Path) -> None:
    rows = [{"text": "ab", "id": 1}, {"text": [7, 8, 9], "output_tokens": 3}]
    path = written(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n")
    made = drawn(workload("jsonl", path=path, field="text", output_tokens=11), 4)
    assert sorted((one.prompt_token_ids, one.output_tokens) for one in made[:2]) == [((7, 8, 9), 3), ((97, 98), 11)]
    assert sorted(made[2:], key=str) == sorted(made[:2], key=str)  # each once before any comes again


def test_rows_come_in_a_seeded_order(tmp_path: Path) -> None:
    path = written(tmp_path, "\n".join(json.dumps({"prompt": [i]}) for i in range(50)))
    order = [one.prompt_token_ids for one in drawn(workload("jsonl", path=path), 50, seed=1)]
    assert order == [one.prompt_token_ids for one in drawn(workload("jsonl", path=path), 50, seed=1)]
    assert order != [one.prompt_token_ids for one in drawn(workload("jsonl", path=path), 50, seed=2)]
    assert sorted(order) == [(i,) for i in range(50)]


def test_the_file_is_identified_by_its_content(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "a"}')
    options = workload("jsonl", path=path).model_dump(mode="json", exclude_none=True)
    assert options["content"] == hashlib.sha256(b'{"prompt": "a"}').hexdigest()[:16]
    assert workload("jsonl", **options).model_dump(mode="json", exclude_none=True) == options
    written(tmp_path, '{"prompt": "b"}')
    with pytest.raises(ValidationError, match="put the planned file there"):
        workload("jsonl", **options)


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("jsonl", '{"prompt": "a"}\nnonsense', r"rows\.jsonl:2 is no JSON"),
        ("jsonl", "[1]", r"rows\.jsonl:1 is no JSON object"),
        ("jsonl", '{"question": "a"}', r"rows\.jsonl:1 has no text or token ids under 'prompt'.*question"),
        ("jsonl", '{"prompt": [1, -2]}', r"rows\.jsonl:1 has no text"),
        ("jsonl", '{"prompt": ""}', r"rows\.jsonl:1 has no text"),
        ("jsonl", '{"prompt": "a", "output_tokens": 0}', r"rows\.jsonl:1 has output_tokens = 0"),
        ("jsonl", "\n", "holds no row"),
        ("trace", "\n", "holds no row"),
        ("trace", '{"input_tokens": 1}', r"rows\.jsonl:1 has arrival_s = None"),
        ("trace", '{"timestamp": -1, "input_length": 1, "output_length": 1}', r"rows\.jsonl:1 has timestamp = -1"),
        ("trace", '\n{"arrival_s": 0, "input_tokens": 1.5, "output_tokens": 1}', r"rows\.jsonl:2 has input_tokens"),
        (
            "trace",
            '{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]}',
            r"rows\.jsonl:1 has hash_ids of 1 entries for a prompt of 2 blocks",
        ),
    ],
)
def test_what_is_wrong_names_file_and_line(tmp_path: Path, kind: str, text: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        workload(kind, path=written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"absent\.jsonl can't be read .*name a JSONL file"):
        workload("jsonl", path=str(tmp_path / "absent.jsonl"))


def test_a_mooncake_trace_keeps_times_lengths_and_shared_blocks(tmp_path: Path) -> None:
    made = drawn(workload("trace", path=written(tmp_path, MOONCAKE), speedup=2.0), 3)
    assert [one.arrival_s for one in made] == [0.0, 0.0, 1.5]
    assert [len(one.prompt_token_ids) for one in made] == [6758, 7322, 2290]
    assert [one.output_tokens for one in made] == [500, 490, 316]
    first = {one.prompt_token_ids[:BLOCK_TOKENS] for one in made}
    assert len(first) == 1  # all have block 0
    assert len({one.prompt_token_ids[BLOCK_TOKENS : 2 * BLOCK_TOKENS] for one in made}) == 3
    assert (
        drawn(workload("trace", path=str(tmp_path / "rows.jsonl")), 3, seed=1)[0].prompt_token_ids[:9]
        != made[0].prompt_token_ids[:9]
    )


def test_a_plain_trace_is_sorted_by_time_and_its_prompts_share_nothing(tmp_path: Path) -> None:
    rows = [{"arrival_s": 9.5, "input_tokens": 600, "output_tokens": 2},
            {"arrival_s": 4.5, "input_tokens": 600, "output_tokens": 1}]  # fmt: skip
    trace = workload("trace", path=written(tmp_path, "\n".join(map(json.dumps, rows))))
    assert isinstance(trace, Trace)
    assert trace.arrivals_s() == [0.0, 5.0]
    made = drawn(trace, 2)
    assert [(one.arrival_s, len(one.prompt_token_ids), one.output_tokens) for one in made] == [(0, 600, 1), (5, 600, 2)]
    assert made[0].prompt_token_ids[:20] != made[1].prompt_token_ids[:20]
    with pytest.raises(ValueError, match="recorded 2 requests, not 3"):
        drawn(trace, 3)

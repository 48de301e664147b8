"""Every engine as its contract is tested: on one CPU, with the packaged model. Nothing is asserted here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from moecap.accuracy import load_task
from moecap.engine import ENGINES
from moecap.engine.base import Engine, EngineFacts
from moecap.records import LoadSpec, ModelSpec, Placement, Request, ServeRecord, SystemSpec
from moecap.registry import resolve

CONCURRENCY = 3
CASES: dict[str, dict[str, Any]] = {
    "fake": {"engine": "fake", "args": {"pass_s": 0.0}},
    "resident": {"dtype": "float32"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "offloaded": {"dtype": "float32", "node": "cpu-offload"},
    "int8, half offloaded": {"dtype": "bfloat16", "quantization": "int8", "resident_share": 0.5},
    "one expert per token": {"dtype": "float32", "top_k": 1},
    "random weights": {"args": {"load_format": "dummy", "max_context_tokens": 128}},
    "vllm, a server": {"engine": "vllm", "dtype": "float32", "args": {"max_model_len": 128, "mode": "online"}},
    "vllm, batches": {"engine": "vllm", "dtype": "float32", "args": {"max_model_len": 128, "mode": "offline"}},
}
"""What differs from `engine: transformers, node: cpu`."""


def is_apart(case: str) -> bool:
    """Whether an engine runs in processes of its own: tokens are seen later than the passes that made them ended."""
    return CASES[case].get("engine") == "vllm"


TOO_LONG = 2
"""Index of the request that fits no context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What one engine said and recorded in its life."""

    is_apart: bool
    facts: EngineFacts
    text: str
    """After a round trip through the tokenizer."""
    requests: list[Request]
    record: ServeRecord
    """At CONCURRENCY, experts of every token kept."""
    alone: ServeRecord
    """The same requests, one at a time."""


def system(**changes: Any) -> SystemSpec:
    """Of the transformers engine on CPUs, unless changed."""
    return SystemSpec(**{"name": "s", "engine": "transformers", "node": "cpu", **changes})


@contextmanager
def started(spec: SystemSpec, **placement: Any) -> Iterator[tuple[Engine, EngineFacts]]:
    """One thread: passes of several would wait for each other where tests share the machine."""
    threads = torch.get_num_threads()
    where = {"node_id": "n", "hostname": "h", "kind": spec.node, "num_cpus": 1, **placement}
    engine: Engine = resolve(ENGINES, "moecap.engines", spec.engine)()
    try:
        yield engine, engine.start(ModelSpec(name="reference"), spec, Placement(**where))
    finally:
        engine.stop()
        engine.stop()  # which is safe
        torch.set_num_threads(threads)


@cache
def served(case: str) -> Served:
    """Start, serve twice, stop; once for all tests."""
    with started(system(**CASES[case])) as (engine, facts):
        requests = _requests(engine, facts.max_context_tokens)
        return Served(
            is_apart=is_apart(case), facts=facts, text=engine.decode(engine.encode("3 + 4 = 7")), requests=requests,
            record=engine.serve(requests, LoadSpec(concurrency=CONCURRENCY, staggered=False), "tokens"),
            alone=engine.serve(requests, LoadSpec(concurrency=1), "counts"),
        )  # fmt: skip


def _requests(engine: Engine, limit: int) -> list[Request]:
    """Prompts and answers of several lengths."""
    prompts = [engine.encode(item.prompt) for item in (*load_task("add", 3), *load_task("sort", 3))]
    prompts[TOO_LONG] *= 1 + limit // len(prompts[TOO_LONG])
    return [
        Request(request_id=f"r{i}", item_index=i, prompt_token_ids=prompt, max_new_tokens=3 + i)
        for i, prompt in enumerate(prompts)
    ]

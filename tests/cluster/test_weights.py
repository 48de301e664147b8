"""What weights take in memory before anything is loaded: by hand from published element counts and configurations."""

from __future__ import annotations

from typing import Any

import pytest
from fleet import GIB, node, point

from cluster.place import Placer
from cluster.weights import needed_bytes, weight_bytes_of
from moecap.model.source import checkpoint_bytes
from moecap.records import ModelSpec, Refusal, SystemSpec

QWEN = "Qwen/Qwen3-30B-A3B"
QWEN_ELEMENTS = 30_532_122_624
"""Of its published safetensors files."""
QWEN_ROUTED = 48 * 128 * 3 * 2048 * 768


def needed(model: str, **system: Any) -> int | None:
    asked: dict[str, Any] = {"name": "s", "engine": "transformers", "node": "cpu", **system}
    return needed_bytes(ModelSpec(name=model), SystemSpec(**asked))


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ({}, 2 * QWEN_ELEMENTS),
        ({"dtype": "float32"}, 4 * QWEN_ELEMENTS),
        ({"engine": "vllm", "dtype": "half", "node": "gpu"}, 2 * QWEN_ELEMENTS),
        ({"node": "cpu-offload"}, 2 * (QWEN_ELEMENTS - QWEN_ROUTED)),
        ({"node": "cpu-offload", "resident_share": 0.5}, 2 * QWEN_ELEMENTS - QWEN_ROUTED),
        ({"node": "cpu-offload", "engine": "vllm"}, 2 * QWEN_ELEMENTS),
        ({"quantization": "int8"}, None),
        ({"engine": "vllm", "args": {"quantization": "fp8"}}, None),
        ({"dtype": "own"}, None),
    ],
)
def test_a_card_tells_what_is_held_in_the_system_s_dtype(system: dict[str, Any], expected: int | None) -> None:
    assert needed(QWEN, **system) == expected


def test_packed_matrices_stay_packed() -> None:
    """gpt-oss-20b's files hold 13,761,264,768 bytes, most of them mxfp4."""
    assert needed("openai/gpt-oss-20b", dtype="bfloat16") == 13_761_264_768


def test_float32_is_not_what_vllm_holds_unasked() -> None:
    assert needed("google/switch-base-8", engine="vllm") is None
    assert needed("google/switch-base-8") is not None


def test_local_files_are_counted_and_what_nothing_tells_is_left_out() -> None:
    assert needed("reference") == checkpoint_bytes("reference")
    assert needed("org/no-card") is None
    assert weight_bytes_of([point(model="org/no-card")]) == {}


def test_a_model_of_the_catalogue_that_cannot_fit_is_refused() -> None:
    asked = point(model=QWEN)
    answer = Placer(nodes=[node("a", memory_bytes=25 * GIB)], weight_bytes=weight_bytes_of([asked])).place(asked)
    assert isinstance(answer, Refusal)
    assert answer.reason == f"{QWEN} takes 61.1 GB; the largest cpu node has 26.8 GB for it"

"""The transformers engine on the CPU with the packaged model: what its ways to hold experts change, and what not.

By hand: 6 layers of 16 experts; an expert is 3 matrices of 256 x 128.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import CASES, is_apart, served, started, system

from moecap.engine.disk import READ_AHEAD
from moecap.engine.transformers import TransformersEngine, resident_share
from moecap.errors import ConfigError, EngineError, MoECapError
from moecap.records import LoadSpec, ModelSpec, Placement, ServeRecord
from moecap.reference import MODEL_DIR

EXPERTS = 6 * 16
FLOAT32_EXPERT = 3 * 256 * 128 * 4  # 393,216: 96 blocks of 4,096 to the byte
INT8_EXPERT = 3 * 256 * 128 + (128 + 128 + 256) * 4  # 100,352: a byte a weight, a float32 scale an output row
INT8_BLOCKS = 25 * 4096  # 24.5 of them, read as whole ones
HALF = 8  # of 16, half offloaded: experts 0 to 7 of every layer stay


def tokens(record: ServeRecord) -> list[tuple[int, ...]]:
    return [one.output_token_ids for one in record.requests]


def test_offloading_changes_no_token() -> None:
    for offloaded, resident in (("offloaded", "resident"), ("int8, half offloaded", "int8")):
        assert tokens(served(offloaded).record) == tokens(served(resident).record)
        assert tokens(served(offloaded).alone) == tokens(served(resident).alone)
    assert tokens(served("resident").record) != tokens(served("one expert per token").record)


def test_int8_holds_routed_experts_in_less_than_30_percent_of_the_bytes() -> None:
    plain, int8 = served("resident").facts.held, served("int8").facts.held
    assert plain.weight_bytes["routed_expert"] == EXPERTS * FLOAT32_EXPERT
    assert int8.weight_bytes["routed_expert"] == EXPERTS * INT8_EXPERT
    assert int8.weight_bytes["routed_expert"] < 0.3 * plain.weight_bytes["routed_expert"]
    assert int8.bytes_per_param["routed_expert"] == pytest.approx(INT8_EXPERT / (3 * 256 * 128))
    assert int8.bytes_per_param["router"] == 2.0  # bfloat16, as the checkpoint


def test_what_is_offloaded_is_not_resident_but_for_the_buffers_of_reads() -> None:
    plain, offloaded = served("resident").facts.held, served("offloaded").facts.held
    assert offloaded.weight_bytes == plain.weight_bytes
    assert plain.resident_weight_bytes == sum(plain.weight_bytes.values())
    gone = EXPERTS * FLOAT32_EXPERT - READ_AHEAD * FLOAT32_EXPERT
    assert offloaded.resident_weight_bytes == plain.resident_weight_bytes - gone
    int8, half = served("int8").facts.held, served("int8, half offloaded").facts.held
    gone = EXPERTS // 2 * INT8_EXPERT - READ_AHEAD * INT8_BLOCKS
    assert half.resident_weight_bytes == int8.resident_weight_bytes - gone


@pytest.mark.parametrize(
    ("case", "resident", "bytes_per_read"),
    [("offloaded", 0, FLOAT32_EXPERT), ("int8, half offloaded", HALF, INT8_BLOCKS)],
)
def test_a_pass_reads_each_expert_that_fired_and_is_not_resident_once(
    case: str, resident: int, bytes_per_read: int
) -> None:
    """Counted from the recorded routing. One request at a time: there is no padding that fires experts too."""
    record = served(case).alone
    assert [one.pass_id for one in record.tiers] == [one.pass_id for one in record.passes]
    for tier in record.tiers:
        fired = [one.counts for one in record.routing if one.pass_id == tier.pass_id]
        missed = sum(count > 0 for counts in fired for count in counts[resident:])
        assert tier.expert_misses == missed
        assert tier.expert_hits == sum(count > 0 for counts in fired for count in counts[:resident])
        assert tier.bytes_read == missed * bytes_per_read
    assert sum(one.bytes_read for one in record.tiers) > 0
    assert served("resident").alone.tiers == ()


def test_a_padded_pass_reads_what_its_padding_fires_too() -> None:
    record = served("offloaded").record
    assert any(one.padded_tokens for one in record.passes)
    for tier in record.tiers:
        fired = sum(one.distinct_physical for one in record.routing if one.pass_id == tier.pass_id)
        assert tier.bytes_read == fired * FLOAT32_EXPERT


def test_settings_tell_how_experts_are_held() -> None:
    told = {case: served(case).facts.settings for case in CASES if case != "fake" and not is_apart(case)}
    assert {case: settings["resident_share"] for case, settings in told.items() if "offloaded" in case} == {
        "offloaded": 0.0, "int8, half offloaded": 0.5,
    }  # fmt: skip
    assert told["resident"]["resident_share"] is None and told["resident"]["expert_io"] is None
    assert told["offloaded"]["expert_io"].startswith(("O_DIRECT", "buffered"))
    assert {case: settings["dtype"] for case, settings in told.items()} == {
        "resident": "float32", "int8": "bfloat16", "offloaded": "float32", "int8, half offloaded": "bfloat16",
        "one expert per token": "float32", "random weights": "bfloat16",
    }  # fmt: skip
    assert {settings["device"] for settings in told.values()} == {"cpu"}
    assert {settings["num_threads"] for settings in told.values()} == {1}


def test_random_weights_are_told_and_the_asked_limits_hold() -> None:
    facts = {case: served(case).facts for case in CASES if not is_apart(case)}
    assert [case for case, fact in facts.items() if fact.dummy_weights] == ["fake", "random weights"]
    assert facts["random weights"].max_context_tokens == 128
    assert facts["resident"].max_context_tokens == 1024  # the model's own
    assert {layer.top_k for layer in facts["one expert per token"].shape.layers} == {1}


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        ({"node": "cpu"}, None),
        ({"node": "gpu"}, None),
        ({"node": "cpu-offload"}, 0.0),
        ({"node": "cpu-offload", "resident_share": 0.25}, 0.25),
        ({"node": "cpu", "resident_share": 0.5}, 0.5),
    ],
)
def test_a_cpu_offload_node_is_never_resident_unasked(asked: dict[str, Any], share: float | None) -> None:
    assert resident_share(system(**asked)) == share


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"args": {"load_format": "lazy"}}, ConfigError, r"args\.load_format = 'lazy'.*auto or dummy"),
        ({"args": {"max_context_tokens": 0}}, ConfigError, r"args\.max_context_tokens = 0.*above 0"),
        ({"args": {"max_context_tokens": "8k"}}, ConfigError, r"args\.max_context_tokens = '8k'"),
        ({"args": {"offload_folder": "/x"}}, ConfigError, r"args\.offload_folder = '/x'.*resident_share"),
        ({"top_k": 17}, ConfigError, r"top_k = 17.*1 to 16"),
        ({"quantization": "fp4"}, ConfigError, r"quantization = 'fp4'.*int8"),
        ({"args": {"colour": 1}}, EngineError, "'reference'.*colour"),
        ({"args": {"attn_implementation": "none-such"}}, EngineError, "'reference'.*none-such"),
        ({"node": "cpu-offload", "args": {"offload_folder": "/no/such"}}, EngineError, "/no/such.*No such file"),
    ],
)
def test_what_cannot_be_asked_is_named(asked: dict[str, Any], error: type[MoECapError], told: str) -> None:
    with pytest.raises(error, match=told), started(system(**asked)):
        pass


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((MODEL_DIR / "config.json").read_bytes())
    engine = TransformersEngine()
    with pytest.raises(EngineError, match=str(tmp_path)):
        engine.start(ModelSpec(name=str(tmp_path)), system(), Placement(node_id="n", hostname="h", kind="cpu"))
    with pytest.raises(EngineError, match="before start"):
        engine.serve((), LoadSpec(concurrency=1), "counts")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is missing here")
def test_a_gpu_that_torch_does_not_see_is_named() -> None:
    with pytest.raises(EngineError, match=r"GPU-7.*no CUDA"), started(system(node="gpu"), device_uuids=("GPU-7",)):
        pass


def test_a_stopped_engine_serves_no_more() -> None:
    with started(system(**CASES["offloaded"])) as (engine, _):
        pass
    with pytest.raises(EngineError, match="before start"):
        engine.serve((), LoadSpec(concurrency=1), "counts")

"""Bytes of packed matrices by hand, which matrices are packed, and whole checkpoints against their published sizes."""

from typing import Any

import published
import pytest
from published import raw_config

from moecap.errors import ConfigError, UnsupportedModelError
from moecap.model import accounting
from moecap.model.build import meta_model
from moecap.model.cards import find_card
from moecap.model.quantization import Packing, read_quantization
from moecap.model.stored import stored_weights
from moecap.model.widths import width_of
from moecap.records import StoredWeights

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
W4A16 = {"config_groups": {"g": {"targets": ["Linear"], "weights": INT4}}, "format": "pack-quantized"}
FP8_CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}


def packing(config: dict[str, Any], name: str = "model.layers.0.mlp.experts.0.down_proj") -> Packing | None:
    found = read_quantization(config, 2)
    assert found is not None
    return found.packing_of(name)


def grouped(**weights: Any) -> dict[str, Any]:
    return {**W4A16, "quant_method": "compressed-tensors",
            "config_groups": {"g": {"targets": ["Linear"], "weights": {**INT4, **weights}}}}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # a matrix of 300 outputs and 256 inputs: 76,800 weights
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 76_800 + 3 * 2 * 4),  # 300 rows touch three blocks
        ({"quant_method": "fp8"}, 76_800 + 4),
        ({"quant_method": "fp8", "activation_scheme": "static"}, 76_800 + 8),
        ({"quant_method": "mxfp4"}, 38_400 + 300 * 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 38_400 + 300 * 16 + 8),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 76_800 + 8),
        # int32 holds 8 weights: 300 x 32 words, 300 x 8 scales of 2 bytes, and the shape as two int64
        (grouped(), 300 * 32 * 4 + 300 * 8 * 2 + 16),
        (grouped(symmetric=False), 300 * 32 * 4 + 300 * 8 * 2 + 16 + 300 * 4),  # and 2,400 zero points of 4 bits
        (grouped(num_bits=8, strategy="channel"), 300 * 64 * 4 + 300 * 2 + 16),
        # 128-groups: 32 x 300 words of weights, 2 groups of 38 words of zero points and 300 scales, 256 group indices
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 32 * 300 * 4 + 2 * 38 * 4 + 2 * 300 * 2 + 256 * 4),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 256 * 38 * 4 + 2 * 38 * 4 + 2 * 300 * 2),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 76_800 + 300 * 4 + 1),
    ],
)
def test_bytes_of_a_matrix_by_hand(config: dict[str, Any], expected: int) -> None:
    found = packing(config)
    assert found is not None
    assert found.bytes_of(300, 256) == expected


@pytest.mark.parametrize(
    ("pattern", "name", "skipped"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.layers.0.lm_head_like", False),
        ("gate", "model.layers.3.mlp.gate", True),
        ("gate", "model.layers.3.mlp.experts.0.gate_proj", False),
        ("model.layers.1", "model.layers.1.self_attn.q_proj", True),
        ("model.layers.1", "model.layers.10.self_attn.q_proj", False),
        ("model.layers.*.self_attn", "model.layers.7.self_attn.o_proj", True),
        ("model.layers.0*", "model.layers.0.mlp.down_proj", True),
        ("*.mlp.shared_expert.*", "model.layers.0.mlp.shared_expert.up_proj", True),
        ("re:.*self_attn.*", "model.layers.0.self_attn.q_proj", True),
        ("re:.*mlp\\.(gate|up)_proj.*", "model.layers.0.mlp.experts.0.up_proj", False),
    ],
)
def test_what_a_pattern_leaves_out(pattern: str, name: str, skipped: bool) -> None:
    config = {**W4A16, "quant_method": "compressed-tensors", "ignore": [pattern]}
    assert (packing(config, name) is None) == skipped


def test_a_mixture_packs_each_module_its_own_way() -> None:
    layers = {
        "model.layers.0.mlp.experts": {"quant_algo": "NVFP4"},
        "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
    }
    config = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    names = [
        "model.layers.0.mlp.experts.0.up_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
    ]
    assert [found and found.name for found in (packing(config, name) for name in names)] == [
        "nvfp4",
        "fp8 tensor",
        None,
    ]


def test_routed_experts_of_another_width() -> None:
    """DeepSeek-V4: 4 bits and a byte per 32 of a row where the rest has a byte each and scales per block."""
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"}
    names = ["experts.3.up_proj", "shared_experts.up_proj"]
    routed, shared = (packing(config, f"model.layers.0.mlp.{name}") for name in names)
    assert routed is not None and shared is not None
    assert (routed.bytes_of(300, 256), shared.bytes_of(300, 256)) == (38_400 + 300 * 8, 76_800 + 6 * 4)


def test_what_bitsandbytes_leaves_out() -> None:
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["self_attn", "lm_head"]}
    found = read_quantization(config, 2)
    assert found is not None
    assert found.packing_of("model.layers.0.self_attn.q_proj") is None
    assert found.packing_of("model.layers.0.mlp.experts.0.up_proj") is not None


def test_a_block_that_names_no_matrix_is_refused() -> None:
    """Layers under names that the built model doesn't have: what is packed can't be told."""
    raw = raw_config("deepseek-ai/DeepSeek-V4-Flash")
    layers = {"layers.0.ffn.experts": {"quant_algo": "NVFP4"}}
    quantised = {**raw, "quantization_config": {"quant_method": "modelopt", "quantized_layers": layers}}
    with pytest.raises(UnsupportedModelError, match="names no matrix"):
        stored_weights(meta_model(raw), quantised)


def test_unknown_methods_are_named() -> None:
    assert read_quantization(None, 2) is None
    with pytest.raises(UnsupportedModelError, match=r"'hqq'.*--dtype"):
        read_quantization({"quant_method": "hqq"}, 2)
    with pytest.raises(UnsupportedModelError, match=r"'bitsandbytes' with 4 bits.*--dtype"):
        read_quantization({"quant_method": "bitsandbytes", "load_in_4bit": True}, 2)
    with pytest.raises(UnsupportedModelError, match="INT3"):
        read_quantization({"quant_method": "modelopt", "quant_algo": "INT3"}, 2)


def stored(model: str, quantization: dict[str, Any] | None = None) -> StoredWeights:
    raw = raw_config(model)
    return stored_weights(
        meta_model(raw), raw if quantization is None else {**raw, "quantization_config": quantization}
    )


def test_scales_of_a_block_quantised_checkpoint_are_as_many_as_it_holds() -> None:
    """Qwen3-30B-A3B-FP8's files hold 30,533,947,392 elements: the model's, and a scale per block. Everything but
    embedding, head, norms and routers is packed, so its bytes follow."""
    shape = published.shape("Qwen/Qwen3-30B-A3B-FP8")
    params = accounting.params_by_class(shape)
    scales = 30_533_947_392 - accounting.total_params(shape)
    packed = params["routed_expert"] + params["mixer"] - 48 * 2 * 128  # query and key norms stay
    found = stored("Qwen/Qwen3-30B-A3B-FP8")
    assert sum(found.bytes.values()) == packed + 4 * scales + 2 * (accounting.total_params(shape) - packed)


def test_scales_of_a_group_quantised_checkpoint_are_as_many_as_it_holds() -> None:
    """RedHatAI's w4a16 holds 30,765,730,176 elements: the model's, a scale per 128 weights, and two numbers for the
    shape of each of 48 x (128 x 3 + 4) matrices."""
    shape = published.shape("RedHatAI/Qwen3-30B-A3B-quantized.w4a16")
    params = accounting.params_by_class(shape)
    matrices = 48 * (128 * 3 + 4)
    scales = 30_765_730_176 - accounting.total_params(shape) - 2 * matrices
    packed = params["routed_expert"] + params["mixer"] - 48 * 2 * 128
    found = stored("RedHatAI/Qwen3-30B-A3B-quantized.w4a16")
    rest = accounting.total_params(shape) - packed
    assert sum(found.bytes.values()) == packed // 2 + 2 * scales + 16 * matrices + 2 * rest


def test_scales_of_a_channel_quantised_checkpoint_are_as_many_as_it_holds() -> None:
    """RedHatAI's FP8-dynamic: 30,554,486,784 elements, one scale per output channel."""
    shape = published.shape("RedHatAI/Qwen3-30B-A3B-FP8-dynamic")
    params = accounting.params_by_class(shape)
    scales = 30_554_486_784 - accounting.total_params(shape)
    packed = params["routed_expert"] + params["mixer"] - 48 * 2 * 128
    rest = accounting.total_params(shape) - packed
    assert sum(stored("RedHatAI/Qwen3-30B-A3B-FP8-dynamic").bytes.values()) == packed + 2 * scales + 2 * rest


GIB = 2**30
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"
SIZES: list[tuple[str, dict[str, Any] | None, float, float]] = [
    # model, quantisation if not its own, published bytes, and half of their last digit
    ("openai/gpt-oss-120b", None, 60.8 * GIB, 0.05 * GIB),  # gpt-oss model card, table 1
    ("openai/gpt-oss-20b", None, 12.8 * GIB, 0.05 * GIB),
    ("mistralai/Mixtral-8x22B-v0.1", None, 281_241_268_224, 0.5),  # total_size of a checkpoint of the same shape
    # TheBloke's quantised Mixtrals, sizes as listed with them; GPTQ files also hold a bias of zeros per matrix (17 MB)
    (MIXTRAL, {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["gate"]}, 24.65e9, 5e6),
    (MIXTRAL, {"quant_method": "gptq", "bits": 4, "group_size": 128}, 24.70e9, 25e6),
    (MIXTRAL, {"quant_method": "gptq", "bits": 4, "group_size": -1}, 23.81e9, 25e6),
    (MIXTRAL, {"quant_method": "gptq", "bits": 4, "group_size": 32}, 27.42e9, 25e6),
    (MIXTRAL, {"quant_method": "gptq", "bits": 8, "group_size": 128}, 48.10e9, 25e6),
    (MIXTRAL, {"quant_method": "gptq", "bits": 3, "group_size": 128}, 18.85e9, 25e6),
]


@pytest.mark.parametrize(("model", "quantization", "size", "rounding"), SIZES)
def test_checkpoint_is_as_large_as_published(
    model: str, quantization: dict[str, Any] | None, size: float, rounding: float
) -> None:
    assert sum(stored(model, quantization).bytes.values()) == pytest.approx(size, abs=rounding)


def test_kv_and_notes() -> None:
    assert stored("nvidia/Qwen3.5-397B-A17B-NVFP4").kv_dtype == "float8"
    card = find_card("openai/gpt-oss-20b")
    assert card is not None
    assert card.stored.notes == ("the configuration names no dtype: bfloat16 is assumed",)


def test_widths() -> None:
    assert [width_of(name, "--dtype") for name in ("float32", "bf16", "fp8", "float8_e4m3fn", "int4")] == [
        4,
        2,
        1,
        1,
        0.5,
    ]
    with pytest.raises(ConfigError, match="--dtype = 'bf1'"):
        width_of("bf1", "--dtype")

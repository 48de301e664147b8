"""`moecap-cluster model` against golden values, and what it says of bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cluster.cli import main

DATA = Path(__file__).parent.parent / "data"
GOLDEN: dict[str, dict[str, Any]] = json.loads((DATA / "golden_models.json").read_text())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["model", *arguments])


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_from_the_catalogue(name: str) -> None:
    found = json.loads(run(name.replace("--", "/"), "--dtype", "bfloat16", "--kv-dtype", "bfloat16", "--json").stdout)
    golden = {key: value for key, value in GOLDEN[name].items() if key != "notes"}
    activated = golden.pop("activated_weight_bytes")
    contexts = golden.pop("kv_bytes_at_context")
    assert {key: found[key] for key in golden} == golden
    assert {key: found["kv_bytes_at_context"][key] for key in contexts} == contexts
    assert found["activated_weight_bytes"] == pytest.approx(activated, rel=1e-12)
    assert found["weight_bytes_total"] == 2 * golden["total_params"]


def test_as_stored_a_quantised_model_is_smaller_and_its_kv_is_not() -> None:
    """gpt-oss-20b: 4.25 bits an expert's weight, KV in bfloat16: 24 layers of 2 x 8 x 64."""
    stored = json.loads(run("openai/gpt-oss-20b", "--json").stdout)
    assert stored["weight_bytes_total"] == 13_761_264_768
    assert stored["quantization"] == "mxfp4 (mxfp4)"
    assert stored["kv_bytes_per_token"] == 24 * 2 * 8 * 64 * 2
    fp8_kv = json.loads(run("openai/gpt-oss-20b", "--kv-dtype", "fp8", "--json").stdout)
    assert fp8_kv["kv_bytes_per_token"] * 2 == stored["kv_bytes_per_token"]
    assert fp8_kv["weight_bytes_total"] == stored["weight_bytes_total"]


def test_text_for_people() -> None:
    shown = run("deepseek-ai/DeepSeek-R1").stdout
    for part in ("671B in all, 36.63B active", "671B / 37B", "256, top-8, 1 shared", "fp8 128x128", "70.27 kB a token"):
        assert part in shown
    assert "446.6M" in run("Qwen/Qwen3.5-35B-A3B").stdout  # its vision model, beside the text model


def test_keys_of_indexers_are_apart() -> None:
    """DeepSeek-V3.2, 61 layers: latent and rope 576 and a key of 128, two bytes each."""
    found = json.loads(run("deepseek-ai/DeepSeek-V3.2", "--kv-dtype", "bfloat16", "--json").stdout)
    assert (found["kv_bytes_per_token"], found["index_bytes_per_token"]) == (61 * 576 * 2, 61 * 128 * 2)
    assert found["kv_bytes_at_context"]["32768"] == 61 * 576 * 2 * 32768
    assert found["index_bytes_at_context"]["32768"] == 61 * 128 * 2 * 32768
    assert "indexer keys  15.62 kB a token as bfloat16" in run("deepseek-ai/DeepSeek-V3.2").stdout
    assert json.loads(run("deepseek-ai/DeepSeek-R1", "--json").stdout)["index_bytes_per_token"] == 0
    assert "indexer keys" not in run("deepseek-ai/DeepSeek-R1").stdout


def test_a_local_configuration_equals_the_card(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text((DATA / "hf_configs" / "openai--gpt-oss-20b.json").read_text())
    here, card = (json.loads(run(name, "--json").stdout) for name in (str(path), "openai/gpt-oss-20b"))
    for key in card.keys() - {"model", "origin", "source", "published"}:
        assert here[key] == card[key], key


def test_an_unknown_quantisation_leaves_the_rest_known(tmp_path: Path) -> None:
    raw = json.loads((DATA / "hf_configs" / "openai--gpt-oss-20b.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**raw, "quantization_config": {"quant_method": "hqq"}}))
    found = json.loads(run(str(path), "--json").stdout)
    assert found["total_params"] == GOLDEN["openai--gpt-oss-20b"]["total_params"]
    assert (found["weight_bytes_total"], found["activated_weight_bytes"]["1"]) == (None, None)
    assert "hqq" in found["notes"][0]
    assert "unknown" in run(str(path)).stdout
    assert (found["kv_dtype"], found["kv_bytes_per_token"]) == (None, None)  # the configuration names no dtype


def test_how_weights_are_packed_says_nothing_of_the_kv_cache(tmp_path: Path) -> None:
    """Qwen3-30B-A3B, 48 layers of 4 heads of 128, keys and values; its configuration names bfloat16."""
    raw = json.loads((DATA / "hf_configs" / "Qwen--Qwen3-30B-A3B.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": {"quant_method": "gguf"}}))
    found = json.loads(run(str(tmp_path), "--json").stdout)
    assert found["weight_bytes_total"] is None
    assert (found["kv_dtype"], found["kv_bytes_per_token"]) == ("bfloat16", 48 * 2 * 4 * 128 * 2)


@pytest.mark.parametrize(
    ("model", "elements"),
    [
        # 30 layers: 32 heads of a 128 x 128 matrix, and 3 inputs of a convolution over (16 + 16 + 32) x 128 channels
        ("Qwen/Qwen3.5-35B-A3B", 30 * (32 * 128 * 128 + 3 * 64 * 128)),
        # 23 Mamba-2 layers: 64 heads of 64 x 128, and 3 inputs of a convolution over 64 x 64 + 2 x 8 x 128 channels
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 23 * (64 * 64 * 128 + 3 * (64 * 64 + 2 * 8 * 128))),
    ],
)
def test_states_have_the_dtype_that_the_checkpoint_asks_for(model: str, elements: int) -> None:
    found = json.loads(run(model, "--json").stdout)
    assert (found["kv_dtype"], found["state_dtype"]) == ("bfloat16", "float32")
    assert found["state_bytes_per_sequence"] == 4 * elements
    assert "a sequence as float32, at any length" in run(model).stdout
    asked = json.loads(run(model, "--kv-dtype", "bfloat16", "--json").stdout)
    assert (asked["state_dtype"], asked["state_bytes_per_sequence"]) == ("bfloat16", 2 * elements)


def test_keys_in_8_bits_leave_states_as_they_are(tmp_path: Path) -> None:
    """A Qwen3-Next whose block asks for an fp8 KV cache, and names no dtype of states: 36 layers with 32 heads of
    128 x 128, and 3 inputs of a convolution over (16 + 16 + 32) x 128 channels, in bfloat16."""
    raw = json.loads((DATA / "hf_configs" / "Qwen--Qwen3-Next-80B-A3B-Instruct.json").read_text())
    block = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": block}))
    found = json.loads(run(str(tmp_path), "--json").stdout)
    assert (found["kv_dtype"], found["state_dtype"]) == ("float8", "bfloat16")
    assert found["state_bytes_per_sequence"] == 2 * 36 * (32 * 128 * 128 + 3 * 64 * 128)


def test_a_model_without_states_has_no_dtype_of_them() -> None:
    found = json.loads(run("openai/gpt-oss-20b", "--json").stdout)
    assert (found["state_dtype"], found["state_bytes_per_sequence"]) == (None, 0)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-Next-80B-A3B-Instruct", "XiaomiMiMo/MiMo-V2-Flash"])
def test_prediction_layers_that_a_configuration_hides_are_unknown(model: str) -> None:
    found = json.loads(run(model, "--json").stdout)
    assert (found["mtp_layers"], found["mtp_params"]) == (None, None)
    assert any("mtp_layers and mtp_params are unknown" in note for note in found["notes"])
    assert "prediction    unknown" in run(model).stdout
    plain = json.loads(run("Qwen/Qwen3-30B-A3B", "--json").stdout)
    assert (plain["mtp_layers"], plain["mtp_params"]) == (0, 0)


def test_keys_that_a_configuration_leaves_to_defaults_are_told(tmp_path: Path) -> None:
    """transformers' Qwen3MoeConfig: 128 experts, top-8."""
    raw = json.loads((DATA / "hf_configs" / "Qwen--Qwen3-30B-A3B.json").read_text())
    left_out = ("num_experts", "num_local_experts", "num_experts_per_tok")
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k not in left_out}))
    found = json.loads(run(str(tmp_path), "--json").stdout)
    assert (found["num_experts"], found["top_k"]) == (128, 8)
    told = [note for note in found["notes"] if "default of transformers" in note]
    assert len(told) == 2
    assert "doesn't name num_experts or num_local_experts: 128" in told[0]
    assert "num_experts_per_tok: 8" in told[1]
    assert "doesn't name num_experts_per_tok: 8" in run(str(tmp_path)).stdout
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert json.loads(run(str(tmp_path), "--json").stdout)["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["openai/gpt-oss-20b", "--dtype", "bf1"], "--dtype = 'bf1'"),
        (["openai/gpt-oss-20b", "--kv-dtype", "x"], "--kv-dtype = 'x'"),
        (["./nothing"], "no such path"),
        (["two words"], "is no model"),
    ],
)
def test_bad_input_is_named(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_dtypes_go_by_any_case_and_are_listed() -> None:
    """Qwen3-30B-A3B's 30,532,122,624 elements in two bytes."""
    found = json.loads(run("Qwen/Qwen3-30B-A3B", "--dtype", "FP16", "--json").stdout)
    assert found["weight_bytes_total"] == 2 * 30_532_122_624
    shown = run("--help").stdout
    assert all(name in shown for name in ("float32", "bfloat16", "float8", "int4"))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_json_object_is_to_be_mended(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    result = run(str(tmp_path))
    assert result.exit_code == 2
    assert f"mend {tmp_path / 'config.json'}" in result.stderr


def test_a_model_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    result = run(str(tmp_path))
    assert result.exit_code == 2
    assert "'nonesuch'" in result.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 0}, "check num_hidden_layers"),
        ({"num_experts_per_tok": 99}, "chooses 99 of 8 experts"),
        ({"num_experts_per_tok": 0}, "chooses 0 of 8 experts"),
        ({"model_type": None}, "names no model_type"),
    ],
)
def test_an_impossible_configuration_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    raw = json.loads((DATA / "hf_configs" / "mistralai--Mixtral-8x7B-v0.1.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
    result = run(str(tmp_path), "--json")
    assert result.exit_code == 2
    assert said in json.loads(result.stdout)["error"]["message"]


def test_another_training_is_answered_under_its_own_name() -> None:
    found = json.loads(run("deepseek-ai/DeepSeek-V2-Lite-Chat", "--json").stdout)
    assert found["model"] == "deepseek-ai/DeepSeek-V2-Lite-Chat"
    assert found["notes"][0] == "the same configuration as deepseek-ai/DeepSeek-V2-Lite"


def test_a_name_without_card_or_network_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecap.model.build.PreTrainedConfig.get_config_dict", _unreachable)
    result = run("Qwen/Qwen3-30B-A3BB")
    assert result.exit_code == 2
    assert "did you mean Qwen/Qwen3-30B-A3B" in result.stderr


def _unreachable(*_: Any, **__: Any) -> None:
    raise OSError("We couldn't connect to 'https://huggingface.co'")

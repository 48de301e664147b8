"""Names of models: what they resolve to, and when the identity of local weights changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from moecap.errors import ConfigError
from moecap.model.accounting import expected_distinct_experts
from moecap.model.source import checkpoint_bytes, model_spec, resolve
from moecap.reference import MODEL_DIR


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    for shard in (1, 2):
        (tmp_path / f"model-0000{shard}.safetensors").write_bytes(bytes([shard]) * 200_000)
    (tmp_path / "README.md").write_text("about it")
    return tmp_path


def test_names_resolve(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("reference") == MODEL_DIR
    assert resolve("Qwen/Qwen3-30B-A3B") == "Qwen/Qwen3-30B-A3B"
    assert resolve(str(checkpoint)) == checkpoint
    assert resolve(str(checkpoint / "config.json")) == checkpoint / "config.json"
    monkeypatch.chdir(checkpoint.parent)
    assert resolve(f"./{checkpoint.name}") == checkpoint
    assert resolve(checkpoint.name) == checkpoint
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert resolve(f"~/{checkpoint.name}") == checkpoint


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing", "~/nothing"])
def test_missing_local_path_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such path") as caught:
        resolve(name)
    assert caught.value.value == name
    assert "config.json" in caught.value.remedy


def test_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model there"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["", "two words", "a/b/c", "org/", "model?"])
def test_what_is_no_id_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no model"):
        resolve(name)


def test_hub_revision_is_kept_as_given() -> None:
    assert model_spec("org/model").revision is None
    assert model_spec("org/model", "v2").revision == "v2"


def test_local_revision_follows_content(checkpoint: Path) -> None:
    name = str(checkpoint)
    seen = [model_spec(name).revision]
    assert model_spec(name, "ignored").revision == seen[0]
    (checkpoint / "README.md").write_text("reworded")
    assert model_spec(name).revision == seen[0]
    weights = checkpoint / "model-00002.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")  # one weight changes
    seen.append(model_spec(name).revision)
    weights.rename(checkpoint / "model-00003.safetensors")
    seen.append(model_spec(name).revision)
    (checkpoint / "config.json").write_text('{"model_type": "mixtral", "top_k": 1}')
    seen.append(model_spec(name).revision)
    assert len(set(seen)) == 4


def test_large_weights_are_sampled_over_their_whole_length(checkpoint: Path) -> None:
    weights = checkpoint / "model-00001.safetensors"
    content = bytearray(64 * 1024 * 256)
    weights.write_bytes(content)
    before = model_spec(str(checkpoint)).revision
    for offset in range(len(content) * 3 // 4, len(content), 1024):  # the last quarter is trained further
        content[offset] = 1
    weights.write_bytes(content)
    assert model_spec(str(checkpoint)).revision != before


def test_weights_are_counted_in_the_one_format_that_loaders_read(checkpoint: Path) -> None:
    """Two shards of 200,000 bytes each; then the same weights in three other forms beside what holds none."""
    name = str(checkpoint)
    assert checkpoint_bytes(name) == 400_000
    revision = model_spec(name).revision
    (checkpoint / "consolidated.safetensors").write_bytes(bytes(400_000))
    for file in ("pytorch_model-00001.bin", "pytorch_model-00002.bin", "optimizer.bin", "training_args.bin"):
        (checkpoint / file).write_bytes(bytes(150_000))
    assert checkpoint_bytes(name) == 400_000
    assert model_spec(name).revision == revision
    for shard in checkpoint.glob("model-*"):
        shard.unlink()
    assert checkpoint_bytes(name) == 400_000  # any other name of safetensors
    (checkpoint / "consolidated.safetensors").unlink()
    assert checkpoint_bytes(name) == 300_000
    for shard in checkpoint.glob("pytorch_model*"):
        shard.unlink()
    assert checkpoint_bytes(name) is None
    assert checkpoint_bytes("org/model") is None


def test_expected_distinct_experts_by_enumeration() -> None:
    """4 experts, top-2, 2 tokens: the pairs of choices among 6 x 6 hit 2, 3 or 4 experts in 6, 24 and 6 cases."""
    assert expected_distinct_experts(4, 2, 2) == pytest.approx((6 * 2 + 24 * 3 + 6 * 4) / 36)
    assert expected_distinct_experts(128, 8, 1) == pytest.approx(8)
    assert expected_distinct_experts(8, 2, 10_000) == pytest.approx(8)


def test_names_and_arithmetic_load_neither_torch_nor_transformers() -> None:
    check = (
        "import sys, moecap.model, moecap.model.source, moecap.model.accounting;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

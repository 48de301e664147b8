"""Names of models: what they resolve to, and when the identity of local weights changes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moecap.errors import ConfigError
from moecap.model import source
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


def test_folder_without_a_model_given_by_its_bare_name_is_no_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("checkpoint") == "checkpoint"
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ConfigError, match="no model there"):
        resolve("checkpoint")


@pytest.mark.parametrize("name", ["", "two words", "a/b/c", "org/", "model?"])
def test_what_is_no_id_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no model"):
        resolve(name)


@pytest.mark.parametrize(
    "name",
    [
        "org/a-model/", "https://huggingface.co/org/a-model", "huggingface.co/org/a-model/",
        "https://huggingface.co/org/a-model/tree/main", "https://hf.co/org/a-model?library=vllm",
    ],
)  # fmt: skip
def test_an_id_written_otherwise_is_told(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(name)
    assert caught.value.remedy == "use its Hugging Face id, org/a-model"


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


@pytest.mark.parametrize("changed", ["tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_local_revision_follows_what_decides_tokens(checkpoint: Path, changed: str) -> None:
    (checkpoint / changed).write_text("{}")
    before = model_spec(str(checkpoint)).revision
    (checkpoint / changed).write_text('{"eos_token_id": 3}')
    assert model_spec(str(checkpoint)).revision != before


def test_one_byte_of_a_large_file_changes_the_revision(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    weights = checkpoint / "model-00001.safetensors"
    with weights.open("wb") as file:
        file.truncate(source.LARGE_BYTES + 1)
    before = model_spec(str(checkpoint)).revision
    assert model_spec(str(checkpoint)).revision == before
    assert (home / ".cache/moecap/file_hashes.json").is_file()
    with weights.open("r+b") as file:
        file.seek(12_345_678)
        file.write(b"\1")
    assert model_spec(str(checkpoint)).revision != before


def test_a_hub_id_is_the_commit_in_the_cache(tmp_path: Path) -> None:
    """The layout that huggingface_hub writes: refs name the commit of a branch, snapshots hold its files."""
    repo = tmp_path / "hub" / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee")
    (repo / "snapshots" / "c0ffee").mkdir(parents=True)
    (repo / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    check = (
        "from moecap.model.hub import hub_commit as at; print(at('org/model'), at('org/other'), at('no/such--name'))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.split() == ["c0ffee", "None", "None"]


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


def test_a_hub_where_nothing_answers_is_not_waited_for() -> None:
    """A port that is bound and doesn't listen; without a cache nobody tells the commit."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        check = "from moecap.model import hub; print(hub.is_hub_reachable(), hub.hub_commit('org/model'))"
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}", "HF_HOME": "/nonexistent"}
        environment.pop("HF_HUB_OFFLINE", None)
        ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.split() == ["False", "None"]


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

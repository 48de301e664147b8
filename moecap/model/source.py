"""The name of a model, as a study writes it -> where its weights are, and which weights exactly.

Looks at local files only: it opens no network connection and loads neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from moecap import reference
from moecap.errors import ConfigError
from moecap.records import ModelSpec

REFERENCE = "reference"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
LOCAL_PREFIXES = ("/", "./", "../", "~")
WEIGHT_PATTERNS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
"""The first that a folder has files of is what loaders read: the same weights may lie there in another format too
(`consolidated*.safetensors`), and a trainer leaves `.bin` files that hold none."""
SAMPLES, SAMPLE_BYTES = 64, 64 * 1024
"""How a large weight file is read for its hash: evenly spaced blocks, 4 MiB in all."""


def resolve(name: str) -> Path | str:
    """The packaged reference model's folder, an existing local folder or config file, or a Hugging Face id as it is.

    ConfigError for a local path that holds no model, or what is neither a path nor an id.
    """
    if name == REFERENCE:
        return reference.MODEL_DIR
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        return path.resolve()
    if path.is_dir() and (path / "config.json").is_file():
        return path.resolve()
    if name.startswith(LOCAL_PREFIXES) or name in (".", "..") or path.is_file():
        raise ConfigError(
            "no model there" if path.exists() else "no such path", "model", name, "give a folder that holds config.json"
        )
    if not HUB_ID.fullmatch(name):
        raise ConfigError(
            "is no model",
            "model",
            name,
            "use `reference`, a Hugging Face id (org/name) or a local folder with config.json",
        )
    return name


def model_spec(name: str, revision: str | None = None) -> ModelSpec:
    """What identifies the weights: for local ones the revision is a hash of their content, whatever was asked for."""
    source = resolve(name)
    return ModelSpec(name=name, revision=_content_revision(source) if isinstance(source, Path) else revision)


def checkpoint_bytes(name: str) -> int | None:
    """Bytes of a local model's weight files; None where they aren't here to be counted."""
    source = resolve(name)
    if not isinstance(source, Path) or not source.is_dir():
        return None
    return sum(file.stat().st_size for file in _weight_files(source)) or None


def _weight_files(folder: Path) -> list[Path]:
    found = (sorted(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS)
    return next(filter(None, found), [])


def _content_revision(source: Path) -> str:
    """12 hexadecimal digits over config.json and the weights beside it; a lone config file stands for itself."""
    digest = hashlib.sha256()
    files = [source]
    if source.is_dir():
        files = [source / "config.json", *_weight_files(source)]
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        _sample(file, digest)
    return digest.hexdigest()[:12]


def _sample(file: Path, digest: hashlib._Hash) -> None:
    """All of a small file, evenly spaced blocks of a large one: training moves every block."""
    size = file.stat().st_size
    step = max(SAMPLE_BYTES, size // SAMPLES)
    with file.open("rb") as stream:
        for offset in range(0, size, step):
            stream.seek(offset)
            digest.update(stream.read(SAMPLE_BYTES))

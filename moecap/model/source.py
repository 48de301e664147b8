"""The name of a model, as a study writes it -> where its weights are, and which weights exactly.

Looks at local files only: it opens no network connection and loads neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path

from moecap import reference
from moecap.errors import ConfigError
from moecap.records import ModelSpec

REFERENCE = "reference"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_URL = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/(?P<id>[^/?#]+/[^/?#]+)([/?#].*)?")
LOCAL_PREFIXES = ("/", "./", "../", "~")
WEIGHT_PATTERNS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
"""The first that a folder has files of is what loaders read: the same weights may lie there in another format too
(`consolidated*.safetensors`), and a trainer leaves `.bin` files that hold none."""
SHAPING_SUFFIXES = (".json", ".txt", ".jinja", ".model")
"""What decides a model's tokens beside its weights: configuration, generation settings, tokenizer."""
HASHES = Path("~/.cache/moecap/file_hashes.json")
"""Hashes of large files by path, size and modification time, so that 60 GB are read once."""
LARGE_BYTES = 64 * 2**20


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
    is_bare_folder = bool(name) and path.is_dir() and "/" not in name
    if name.startswith(LOCAL_PREFIXES) or name in (".", "..") or path.is_file() or is_bare_folder:
        raise ConfigError(
            "no model there" if path.exists() else "no such path", "model", name, "give a folder that holds config.json"
        )
    if not HUB_ID.fullmatch(name):
        raise ConfigError("is no model", "model", name, _remedy(name))
    return name


def _remedy(name: str) -> str:
    """Runs are compared by a model's one name: what means an id, but is written otherwise, isn't taken for it."""
    url = HUB_URL.fullmatch(name)
    meant = url["id"] if url else name.strip("/")
    if "/" in meant and HUB_ID.fullmatch(meant):
        return f"use its Hugging Face id, {meant}"
    return "use `reference`, a Hugging Face id (org/name) or a local folder with config.json"


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
    """12 hexadecimal digits over every file that decides the model's tokens; a lone config file stands for itself."""
    files = [source]
    if source.is_dir():
        beside = (file for file in source.iterdir() if file.suffix in SHAPING_SUFFIXES and file.is_file())
        files = sorted({*beside, *_weight_files(source)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {_file_hash(file)}\n".encode())
    return digest.hexdigest()[:12]


def _file_hash(file: Path) -> str:
    """SHA-256 of all its bytes, remembered for large files."""
    status = file.stat()
    if status.st_size < LARGE_BYTES:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    store, key = HASHES.expanduser(), f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    known = _remembered(store)
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        _remember(store, known)
    return known[key]


def _remembered(store: Path) -> dict[str, str]:
    try:
        return dict(json.loads(store.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _remember(store: Path, known: dict[str, str]) -> None:
    """Best effort: a home that can't be written costs another reading."""
    with suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        part = store.with_name(f"{store.name}.{os.getpid()}.part")
        part.write_text(json.dumps(known), encoding="utf-8")
        part.replace(store)

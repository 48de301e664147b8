"""A configuration -> the language model on the meta device: every module and shape, no weights, no memory.

A multimodal wrapper is built whole, so that what it holds beside its text model can be named. Code that ships inside a
model repository is never run. What comes out is for `shape`; nothing here counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)

from moecap.errors import ConfigError, UnsupportedModelError
from moecap.model.hub import is_hub_reachable
from moecap.model.source import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME_ARCHITECTURE = {"kimi_k2": "deepseek_v3"}
"""Model types that transformers doesn't know, but which declare the classes of one that it knows."""


AUTO_CLASSES = (AutoModelForMultimodalLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM)
"""What builds a language model, wrappers first: some families are both."""


def meta_model(source: str | Path | Mapping[str, Any]) -> PreTrainedModel:
    """The model that a Hugging Face id, a folder, a config.json or its content describes, a multimodal wrapper whole.

    UnsupportedModelError when it can't be built, ConfigError when the configuration can't be read.
    """
    raw = source if isinstance(source, Mapping) else read_config(source)
    config = _known_config(raw)
    text = config.get_text_config(decoder=True)
    for built in (config, text, *_wrappers_of(text)):
        for auto in AUTO_CLASSES:
            if type(built) in auto._model_mapping:
                model = _built(auto, built, raw)
                return model if built in (config, text) else _text_alone(model)
    raise UnsupportedModelError(f"model type {raw['model_type']!r} can't be built as a language model")


def _built(auto: Any, config: PreTrainedConfig, raw: Mapping[str, Any]) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises anything from KeyError to ImportError here
        cause = str(error).partition("\n")[0]
        raise UnsupportedModelError(
            f"model type {raw['model_type']!r} can't be built as a language model: {cause}"
        ) from error
    return model


def _wrappers_of(text: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Configurations of the same family that hold one like `text` as their text model (Step 3.7, of Step 3.5)."""
    kinds: list[Any] = [kind for kind in vars(sys.modules[type(text).__module__]).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, PreTrainedConfig) and kind.sub_configs.get("text_config") is type(text):
            yield kind(text_config=text)


def _text_alone(model: PreTrainedModel) -> PreTrainedModel:
    """Without what a wrapper holds beside its text model and shares no weight with it: that only helped to build it."""
    text: nn.Module = model.get_decoder()
    own = set(text.parameters())
    for holder in [one for one in model.modules() if text in one.children()]:
        for name, child in list(holder.named_children()):
            if own.isdisjoint(child.parameters()):
                delattr(holder, name)
    return model


def _known_config(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """Of the wrapper if transformers knows it, else of the text model inside it."""
    for candidate in (raw, raw.get("text_config") or {}):
        declared = candidate.get("model_type", "")
        model_type = SAME_ARCHITECTURE.get(declared, declared)
        if model_type in CONFIG_MAPPING:
            # Parameters are counted as such: how a checkpoint packs them must not change the modules.
            plain = {k: v for k, v in candidate.items() if k not in ("model_type", "quantization_config")}
            kind = CONFIG_MAPPING[model_type]
            if "text_config" in kind.sub_configs and "text_config" not in plain and "hidden_size" in plain:
                plain = {"text_config": plain}  # a wrapper written flat: its defaults must not stand for the text model
            try:
                return kind.from_dict(plain)
            except Exception as error:  # configurations validate themselves with exceptions of every kind
                raise UnsupportedModelError(f"model type {declared!r}: bad configuration: {error}") from error
    raise UnsupportedModelError(f"model type {raw.get('model_type')!r} is not one that transformers knows")


def read_config(source: str | Path) -> Mapping[str, Any]:
    """The config.json that a Hugging Face id, a folder or a file names; ConfigError when there is none."""
    found = resolve(str(source.absolute() if isinstance(source, Path) else source))
    try:
        if isinstance(found, Path):
            raw = dict(json.loads((found / "config.json" if found.is_dir() else found).read_text()))
        else:
            raw, _ = PreTrainedConfig.get_config_dict(found, local_files_only=not is_hub_reachable())
    except (OSError, ValueError, TypeError) as error:
        remedy = "give a Hugging Face id or a local folder that holds config.json"
        if isinstance(found, Path) and not isinstance(error, OSError):
            remedy = f"mend {found / 'config.json' if found.is_dir() else found}: it holds no JSON object"
        cause = str(error).partition("\n")[0]
        raise ConfigError(f"its configuration can't be read: {cause}", "model", str(source), remedy) from error
    if not raw.get("model_type"):
        remedy = "give a Hugging Face id, or a local folder or file with the config.json of a model"
        raise ConfigError("its configuration names no model_type", "model", str(source), remedy)
    return dict(raw)

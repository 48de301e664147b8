"""What is published of the models in tests/data, and their shapes, built once. Nothing is asserted here."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

from moecap.model.shape import shape_from_config
from moecap.records import ModelShape

DATA = Path(__file__).parent.parent / "data"
NOT_BUILT = ("grok-1", "arctic")
"""Model types that transformers doesn't know."""


def _rows() -> dict[str, dict[str, str]]:
    with (DATA / "models.csv").open(encoding="utf-8") as lines:
        return {row["model"]: row for row in csv.DictReader(lines)}


MODELS = _rows()
"""Rows of models.csv by Hugging Face id."""


def config_path(model: str) -> Path:
    """Where the config.json of a Hugging Face id lies."""
    return DATA / "hf_configs" / f"{model.replace('/', '--')}.json"


@cache
def raw_config(model: str) -> dict[str, Any]:
    """Its content."""
    found: dict[str, Any] = json.loads(config_path(model).read_text(encoding="utf-8"))
    return found


@cache
def shape(model: str) -> ModelShape:
    """Built from its modules."""
    return shape_from_config(config_path(model))


BUILT = [model for model in MODELS if raw_config(model)["model_type"] not in NOT_BUILT]

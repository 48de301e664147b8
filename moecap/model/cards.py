"""Shape cards: what well-known models weigh and compute, kept as small files so that no network or torch is needed.

A card is made by `scripts/make_shape_cards.py` from the model's own modules and checked against them by a test. What
transformers can't build has a card by hand, which says so. This module reads and writes cards; it derives nothing.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any, Literal

from moecap.records import LayerShape, ModelShape, StoredWeights, to_jsonable


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a model's authors say of its size."""

    total: str
    """As they write it: `30.5B`."""
    active: str | None
    source: str
    note: str = ""
    """What their count holds that ours doesn't, or the reverse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One model."""

    model: str
    """Hugging Face id."""
    also: tuple[str, ...]
    """Ids of models with the same configuration: other trainings of it."""
    origin: Literal["modules", "by hand"]
    source: str
    """Where the configuration comes from."""
    published: Published | None
    shape: ModelShape
    stored: StoredWeights


def find_card(model: str) -> Card | None:
    """The card of a Hugging Face id, whatever its case; None: there is none."""
    return _cards_by_id().get(model.lower())


def all_cards() -> tuple[Card, ...]:
    """Every card, by id."""
    return tuple(sorted({card.model: card for card in _cards_by_id().values()}.values(), key=lambda card: card.model))


def near_ids(model: str) -> list[str]:
    """Ids with a card that look like `model`."""
    known = {name.lower(): name for card in _cards_by_id().values() for name in (card.model, *card.also)}
    return [known[key] for key in difflib.get_close_matches(model.lower(), known, n=3)]


def card_text(card: Card) -> str:
    """A card as it is kept: JSON with layers that are alike written once."""
    document = to_jsonable(replace(card, shape=replace(card.shape, layers=())))
    if not card.shape.further_row_elements:
        del document["shape"]["further_row_elements"]
    if not card.stored.state_dtype:
        del document["stored"]["state_dtype"]
    alike = groupby(card.shape.layers, key=lambda layer: replace(layer, index=0))
    document["shape"]["layers"] = [
        {"from": members[0].index, "count": len(members), **_without_defaults(layer)}
        for layer, group in alike
        if (members := list(group))
    ]
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def read_card(text: str) -> Card:
    """What `card_text` wrote."""
    raw = json.loads(text)
    shape = ModelShape(**{**raw["shape"], "layers": tuple(_layers(raw["shape"]["layers"]))})
    stored = StoredWeights(**{**raw["stored"], "notes": tuple(raw["stored"]["notes"])})
    published = Published(**raw["published"]) if raw["published"] else None
    return Card(**{**raw, "also": tuple(raw["also"]), "shape": shape, "stored": stored, "published": published})


@cache
def _cards_by_id() -> Mapping[str, Card]:
    """Lower-case id -> card."""
    found: dict[str, Card] = {}
    for file in sorted(files("moecap.model").joinpath("catalogue").iterdir(), key=lambda one: one.name):
        if file.name.endswith(".json"):
            card = read_card(file.read_text(encoding="utf-8"))
            found |= {name.lower(): card for name in (card.model, *card.also)}
    return found


def _layers(groups: list[dict[str, Any]]) -> Iterator[LayerShape]:
    for group in groups:
        first, count = group.pop("from"), group.pop("count")
        for index in range(first, first + count):
            yield LayerShape(index=index, **group)


DEFAULTS = {one.name: one.default for one in fields(LayerShape)}


def _without_defaults(layer: LayerShape) -> dict[str, Any]:
    document: dict[str, Any] = to_jsonable(layer)
    return {name: value for name, value in document.items() if name != "index" and value != DEFAULTS[name]}

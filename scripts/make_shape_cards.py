"""Make the shape cards of moecap/model/catalogue, and their table in docs/models.md, from configurations.

Run it when a model is added or shapes change.

    python scripts/make_shape_cards.py [--configs tests/data/hf_configs] [--models tests/data/models.csv]

`models.csv` names the models, what else has the same configuration, and what is published of their size. Models that
transformers can't build are made by hand below: from the modules of a model that is built alike, and what differs.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moecap.model import cards
from moecap.model.accounting import active_params, params_by_class, total_params
from moecap.model.build import meta_model
from moecap.model.cards import Card, Published, card_text
from moecap.model.shape import shape_of
from moecap.model.stored import stored_weights
from moecap.records import LayerShape

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = Path(cards.__file__).parent / "catalogue"
DOCS = ROOT / "docs/models.md"
TABLE_HEAD = (
    "| model | total, B | published | active, B | published | experts / top-k | checkpoint, GB | made from | note |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


def grok_1(layer: LayerShape, hidden: int) -> LayerShape:
    """Grok-1 (xai-org/grok-1, model.py): Mixtral's layer with two more norms, after attention and after the experts."""
    return replace(layer, norm_params=layer.norm_params + 2 * hidden)


def arctic(layer: LayerShape, hidden: int) -> LayerShape:
    """Arctic (Snowflake, modeling_arctic.py): Mixtral's layer, a dense SwiGLU as wide as the hidden state beside its
    experts (`use_residual`), and a norm before that."""
    dense = 3 * hidden * hidden
    moved = 2 * hidden + 3 * 2 * hidden + 3 * hidden + 3 * hidden  # norm, three products, activation, addition
    return replace(
        layer,
        dense_ffn_params=dense,
        norm_params=layer.norm_params + hidden,
        ffn_matmul_params_per_token=layer.ffn_matmul_params_per_token + dense,
        activation_elements_per_token=layer.activation_elements_per_token + moved,
    )


BY_HAND: Mapping[str, Callable[[LayerShape, int], LayerShape]] = {"grok-1": grok_1, "arctic": arctic}
"""Model type -> what its layers are, from Mixtral's of the same sizes."""


def make_card(row: Mapping[str, str], raw: Mapping[str, Any]) -> Card:
    """The card of one row of models.csv, whose config.json is `raw`."""
    change = BY_HAND.get(raw["model_type"])
    built = raw if change is None else {**raw, "model_type": "mixtral", "num_local_experts": _experts(raw)}
    model = meta_model(built)
    shape = shape_of(model, row["model"])
    if change is not None:
        shape = replace(shape, layers=tuple(change(layer, shape.hidden_size) for layer in shape.layers))
    shape = replace(shape, model_type=raw["model_type"])
    stored = stored_weights(model, raw)
    if change is not None:
        stored = replace(stored, bytes={kind: params * 2 for kind, params in params_by_class(shape).items() if params})
    published = Published(
        total=row["published_total"], active=row["published_active"] or None, source=row["published_source"],
        note=row["note"],
    )  # fmt: skip
    return Card(
        model=row["model"], also=tuple(row["also"].split()), origin="modules" if change is None else "by hand",
        source=row["config"], published=published if published.total else None, shape=shape, stored=stored,
    )  # fmt: skip


def _experts(raw: Mapping[str, Any]) -> int:
    return int(raw.get("num_local_experts") or raw["num_experts"])


def table_line(card: Card) -> str:
    """One line of the table."""
    shape, moe = card.shape, [layer for layer in card.shape.layers if layer.num_experts]
    said = card.published
    total, active = total_params(shape), active_params(shape)
    size, stored_as = sum(card.stored.bytes.values()) / 1e9, card.stored.quantization or card.stored.dtype
    cells = [
        card.model, f"{total / 1e9:,.2f}", said.total if said else "", f"{active / 1e9:,.2f}",
        (said.active or "") if said else "", f"{moe[0].num_experts} / {moe[0].top_k}", f"{size:,.1f} ({stored_as})",
        f"{card.origin}; {card.source}", said.note if said else "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Write every card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, default=ROOT / "tests/data/hf_configs")
    parser.add_argument("--models", type=Path, default=ROOT / "tests/data/models.csv")
    options = parser.parse_args()
    with options.models.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            name = row["model"].replace("/", "--")
            raw = json.loads((options.configs / f"{name}.json").read_text(encoding="utf-8"))
            (CATALOGUE / f"{name}.json").write_text(card_text(make_card(row, raw)), encoding="utf-8")
    cards._cards_by_id.cache_clear()
    page = DOCS.read_text(encoding="utf-8").partition(TABLE_HEAD)[0]
    DOCS.write_text(page + TABLE_HEAD + "".join(map(table_line, cards.all_cards())), encoding="utf-8")


if __name__ == "__main__":
    main()

"""A model's name -> what it weighs and computes, as one document: what `moecap-cluster model` prints.

Models with a shape card are described from it, without network, torch or transformers; all others from their modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moecap.errors import ConfigError, UnsupportedModelError
from moecap.model import accounting
from moecap.model.cards import Published, find_card, near_ids
from moecap.model.source import resolve
from moecap.model.widths import width_of
from moecap.records import ModelShape, StoredWeights, TensorClass

CONTEXTS = (4096, 32768, 131072)
BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A model and where its description comes from."""

    shape: ModelShape
    stored: StoredWeights | None
    """None: its quantisation isn't known."""
    dtype: str | None = None
    """Of what isn't quantised; None: the checkpoint doesn't tell, and its quantisation isn't known."""
    kv_dtype: str | None = None
    """As the checkpoint asks, however its weights are packed; None: it doesn't tell."""
    state_dtype: str | None = None
    """Of recurrent states, where the checkpoint asks for one."""
    origin: str
    source: str
    published: Published | None
    notes: tuple[str, ...]


def find_model(name: str) -> Described:
    """`reference`, a local folder, a config.json or a Hugging Face id, with a card or not.

    ConfigError when there is none by that name, UnsupportedModelError for one that can't be accounted for.
    """
    found = resolve(name)
    card = None if isinstance(found, Path) else find_card(name)
    if card is not None:
        alike = () if name.lower() == card.model.lower() else (f"the same configuration as {card.model}",)
        return Described(
            shape=replace(card.shape, name=name) if alike else card.shape,
            stored=card.stored,
            dtype=card.stored.dtype,
            kv_dtype=card.stored.kv_dtype,
            state_dtype=card.stored.state_dtype,
            origin=f"shape card, {card.origin}",
            source=card.source,
            published=card.published,
            notes=(*alike, *card.stored.notes),
        )
    return _from_modules(name, found)


def _from_modules(name: str, found: Path | str) -> Described:
    from moecap.model.build import meta_model, read_config  # noqa: PLC0415 - torch, which a card doesn't need
    from moecap.model.shape import keys_by_default, shape_of  # noqa: PLC0415
    from moecap.model.stored import (  # noqa: PLC0415
        declared_dtype,
        declared_kv_dtype,
        declared_state_dtype,
        stored_weights,
    )

    try:
        raw = read_config(found)
    except ConfigError as error:
        near = near_ids(name)
        remedy = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(error.message, "model", name, remedy + error.remedy) from error
    model = meta_model(raw)
    shape, stored, notes = shape_of(model, name), None, tuple[str, ...]()
    for layer in shape.layers:
        if layer.num_experts and not 1 <= layer.top_k <= layer.num_experts:
            choice = f"{layer.top_k} of {layer.num_experts} experts"
            raise UnsupportedModelError(f"{name}: layer {layer.index} chooses {choice}; check its configuration")
    try:
        stored = stored_weights(model, raw)
        notes = stored.notes
    except UnsupportedModelError as error:
        notes = (str(error),)
    by_default = keys_by_default(model.config, raw) if any(layer.num_experts for layer in shape.layers) else {}
    defaults = [
        f"the configuration doesn't name {key}: {value} is the default of transformers for its family"
        for key, value in by_default.items()
    ]
    return Described(
        shape=shape, stored=stored, dtype=stored.dtype if stored else declared_dtype(raw),
        kv_dtype=stored.kv_dtype if stored else declared_kv_dtype(raw), state_dtype=declared_state_dtype(raw),
        origin="modules", source=str(found), published=None, notes=(*notes, *defaults),
    )  # fmt: skip


def document(described: Described, dtype: str | None = None, kv_dtype: str | None = None) -> dict[str, Any]:
    """Every number, under the names of the command line's contract; None, and a note, where a width isn't known.

    `dtype`: as if every weight had that width, without scales; None: as stored. `kv_dtype` likewise, for KV and
    state.
    """
    shape, stored = described.shape, described.stored
    params, moe = accounting.params_by_class(shape), [layer for layer in shape.layers if layer.num_experts]
    widths = _widths(shape, stored, dtype)
    kv_name = kv_dtype or described.kv_dtype
    kv = None if kv_name is None else width_of(kv_name, "--kv-dtype")
    state_elements = accounting.state_bytes_per_sequence(shape, 1)
    # A KV cache in 8 bits says nothing of states: these are as wide as what isn't quantised, unless they have a dtype.
    state_name = kv_dtype or described.state_dtype or described.dtype
    state = None if state_name is None else width_of(state_name, "the state's dtype")
    first = moe[0] if moe else None
    return {
        "model": shape.name, "model_type": shape.model_type,
        "total_params": accounting.total_params(shape), "routed_expert_params": params["routed_expert"],
        "expert_params": first.expert_params if first else 0, "shared_expert_params": params["shared_expert"],
        "dense_ffn_params": params["dense_ffn"], "mixer_params": params["mixer"], "router_params": params["router"],
        "norm_params": params["norm"], "embedding_params": params["embedding"], "lm_head_params": params["lm_head"],
        "active_params": accounting.active_params(shape),
        "num_layers": len(shape.layers), "num_moe_layers": len(moe),
        "num_experts": first.num_experts if first else 0, "top_k": first.top_k if first else 0,
        "num_shared_experts": first.num_shared_experts if first else 0,
        "kv_bytes_per_token": _times(kv, accounting.kv_bytes_per_token(shape, 1)),
        "kv_bytes_at_context": {
            str(one): _times(kv, accounting.kv_bytes_at_context(shape, one, 1)) for one in CONTEXTS
        },
        "index_bytes_per_token": _times(kv, accounting.index_bytes_per_token(shape, 1)),
        "index_bytes_at_context": {
            str(one): _times(kv, accounting.index_bytes_at_context(shape, one, 1)) for one in CONTEXTS
        },
        "state_bytes_per_sequence": _times(state, state_elements) if state_elements else 0,
        "flops_per_token_linear": accounting.flops_per_token_linear(shape),
        "flops_per_token_attention_at_context": {
            str(one): accounting.attention_flops(shape, 1, one) for one in CONTEXTS
        },
        "weight_bytes_total": _weight_bytes(shape, widths, dtype, stored),
        "activated_weight_bytes": {str(one): _activated(shape, one, widths) for one in BATCHES},
        "dtype": dtype or (stored.dtype if stored else None),
        "quantization": None if dtype or stored is None else stored.quantization,
        "kv_dtype": kv_name, "state_dtype": state_name if state_elements else None,
        "other_params": dict(shape.other_params), "mtp_layers": shape.mtp_layers, "mtp_params": shape.mtp_params,
        "published": None if described.published is None else {
            "total": described.published.total, "active": described.published.active,
            "source": described.published.source, "note": described.published.note,
        },
        "origin": described.origin, "source": described.source, "notes": [*described.notes, *_shape_notes(shape)],
    }  # fmt: skip


def _shape_notes(shape: ModelShape) -> Iterator[str]:
    """What a reader of the numbers must know of the model's kind."""
    if shape.mtp_layers is None:
        yield (
            "checkpoints of this family hold layers for speculative decoding that their configuration doesn't mention: "
            "mtp_layers and mtp_params are unknown"
        )
    for layer in shape.layers:
        if layer.num_weightless_choices:
            yield (
                f"the router also chooses among {layer.num_weightless_choices} without weights: active parameters are "
                f"those of a token that takes {layer.top_k} experts, the most"
            )
            break
    for layer in shape.layers:
        if layer.mixer_num_experts:
            yield (
                f"attention has {layer.mixer_num_experts} experts of its own, top-{layer.mixer_top_k}, counted as "
                "mixers; all of them are in mixer_params, the chosen ones in active_params"
            )
            break


def _widths(shape: ModelShape, stored: StoredWeights | None, dtype: str | None) -> Mapping[TensorClass, float] | None:
    """Bytes per parameter of every class; None: unknown."""
    params = accounting.params_by_class(shape)
    if dtype is not None:
        return dict.fromkeys(params, width_of(dtype, "--dtype"))
    if stored is None:
        return None
    plain = width_of(stored.dtype, "dtype")
    return {kind: stored.bytes[kind] / count if count else plain for kind, count in params.items()}


def _weight_bytes(
    shape: ModelShape, widths: Mapping[TensorClass, float] | None, dtype: str | None, stored: StoredWeights | None
) -> int | None:
    if dtype is None:
        return None if stored is None else sum(stored.bytes.values())
    assert widths is not None
    return round(sum(count * widths[kind] for kind, count in accounting.params_by_class(shape).items()))


def _activated(shape: ModelShape, tokens: int, widths: Mapping[TensorClass, float] | None) -> float | None:
    return None if widths is None else accounting.activated_weight_bytes(shape, widths, accounting.uniform(tokens))


def _times(width: float | None, elements: float) -> float | None:
    if width is None:
        return None
    found = width * elements
    return int(found) if found == int(found) else found

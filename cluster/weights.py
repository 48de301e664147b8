"""What a point's weights take in its node's memory at least, where that is known before anything is loaded.

From files on this machine, else from the model's shape card: no network, no torch. It places nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moecap.dtypes import BITS, canonical
from moecap.model.accounting import total_params
from moecap.model.cards import Card, find_card
from moecap.model.source import checkpoint_bytes
from moecap.records import ModelSpec, PointSpec, SystemSpec, content_hash

OTHER_WEIGHTS = ("quantization", "hf_overrides", "load_format", "dtype", "cpu_offload_gb")
"""Engine arguments that may make the weights other than the checkpoint's, or put them elsewhere."""


def weight_bytes_of(points: Iterable[PointSpec]) -> Mapping[str, int]:
    """`weights_key` -> bytes of the weights; without those of which nothing is known."""
    pairs = {weights_key(point.model, point.system): (point.model, point.system) for point in points}
    found = {key: needed_bytes(model, system) for key, (model, system) in pairs.items()}
    return {key: held for key, held in found.items() if held is not None}


def weights_key(model: ModelSpec, system: SystemSpec) -> str:
    """What one engine start loads."""
    return content_hash([model, system])


def needed_bytes(model: ModelSpec, system: SystemSpec) -> int | None:
    """Bytes of a local checkpoint's files, else of the card's model in the system's dtype; None: not known."""
    local = checkpoint_bytes(model.name)
    if local is not None:
        return local
    card = find_card(model.name)
    return None if card is None else _from_card(card, system)


def _from_card(card: Card, system: SystemSpec) -> int | None:
    """None where the engine packs the weights itself, or chooses their dtype by rules of its own."""
    stored, dtype = card.stored, system.dtype
    if system.quantization or any(name in system.args for name in OTHER_WEIGHTS):
        return None
    is_own_choice = dtype == "auto" and stored.dtype == "float32" and system.engine == "vllm"  # it narrows float32
    if is_own_choice or (dtype != "auto" and canonical(dtype) not in BITS):
        return None
    if dtype == "auto" or stored.quantization:  # packed matrices stay packed, whatever the rest is computed in
        needed, routed = sum(stored.bytes.values()), stored.bytes.get("routed_expert", 0)
    else:
        width = BITS[canonical(dtype)] / 8
        needed = round(total_params(card.shape) * width)
        routed = round(sum(layer.num_experts * layer.expert_params for layer in card.shape.layers) * width)
    return needed - round(routed * _share_on_disk(system))


def _share_on_disk(system: SystemSpec) -> float:
    """Of the routed experts: what engine `transformers` offloads stays on the disk."""
    if system.engine != "transformers" or (system.resident_share is None and system.node != "cpu-offload"):
        return 0.0
    return 1 - (system.resident_share or 0.0)

"""Which part of a transformers model is the text model: its layers, embedding and head; the rest is only named.

A multimodal wrapper holds other models beside it, an omni model a whole causal model among others. Roles inside the
text model are `classify`'s.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.experts import VISION

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """A list of layers: the decoder, or of two stacks the encoder or the decoder."""

    path: str
    layers: nn.ModuleList
    is_encoder: bool


def stacks_of(model: PreTrainedModel) -> list[Stack]:
    """The text model's lists of layers, an encoder's first."""
    decoder = _stack(model, decoder_of(model), is_encoder=False)
    if not model.config.is_encoder_decoder:
        return [decoder]
    return [_stack(model, model.get_encoder(), is_encoder=True), decoder]


def causal_model_of(model: PreTrainedModel) -> PreTrainedModel:
    """What has a head: the model, or one inside it (the text model, head and all, of an omni model)."""
    inside: list[Any] = [one for one in (model, *model.children()) if hasattr(one, "get_output_embeddings")]
    return next((one for one in inside if one.get_output_embeddings() is not None), model)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The text model without its head.

    Of two that share the weights of their layers it is the one under whose name these are listed: DiffusionGemma's
    encoder, which is causal and keeps keys and values; its decoder only reads them.
    """
    decoder: nn.Module = causal_model_of(model).get_decoder()
    name, parameter = next(iter(decoder.named_parameters()), ("", None))
    listed = next((path for path, one in model.named_parameters() if one is parameter), name)
    twin = listed.removesuffix(f".{name}")
    return decoder if not twin or twin == listed else model.get_submodule(twin)


def head_of(model: PreTrainedModel) -> nn.Linear:
    """What makes logits."""
    head: nn.Linear = causal_model_of(model).get_output_embeddings()
    return head


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """What turns token ids into the stream."""
    embedding: nn.Embedding = causal_model_of(model).get_input_embeddings()
    return embedding


def text_root(model: PreTrainedModel) -> str:
    """Path of the text model; empty when it is the whole, encoder and all."""
    return "" if model.config.is_encoder_decoder else _path_of(model, decoder_of(model))


def is_text(model: PreTrainedModel, root: str, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the text model's: in it, or its embedding or head."""
    if _vision_module(root, name):
        return False
    if not root or name.startswith(f"{root}.") or parameter is embedding_of(model).weight:
        return True
    return any(parameter is one for one in head_of(model).parameters())


def other_params(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of a multimodal wrapper outside its text model, by module (`visual`, `audio_tower`)."""
    root = text_root(model)
    container = root.rpartition(".")[0]
    found = Counter[str]()
    for name, parameter in model.named_parameters():
        if not is_text(model, root, name, parameter):
            found[_vision_module(root, name) or _beside(container, name)] += parameter.numel()
    return dict(found)


def _stack(model: PreTrainedModel, inside: nn.Module, *, is_encoder: bool) -> Stack:
    config = model.config.get_text_config(decoder=True)
    root = _path_of(model, inside)
    lists = [(name, module) for name, module in inside.named_modules() if isinstance(module, nn.ModuleList)]
    counted = [pair for pair in lists if len(pair[1]) == config.num_hidden_layers]
    named = [pair for pair in lists if pair[0] in ("layers", "block")]  # an encoder may have another number of them
    for name, module in counted + named:
        return Stack(path=f"{root}.{name}" if root else name, layers=module, is_encoder=is_encoder)
    raise UnsupportedModelError(
        f"{model.config.model_type}: no list of {config.num_hidden_layers} layers in {type(inside).__name__}"
    )


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def _beside(container: str, name: str) -> str:
    """The module that holds parameter `name`: where its path parts from that of the text model's container."""
    inside = name.removeprefix(f"{container}.")
    if inside != name:
        return inside.partition(".")[0]
    return next(one for one, other in zip_longest(name.split("."), container.split(".")) if one != other)


def _vision_module(root: str, name: str) -> str | None:
    """The module inside the text model that only vision's tokens pass (ERNIE-VL's `vision_moe`), if `name` is in it."""
    inside = name.removeprefix(f"{root}.").split(".") if name.startswith(f"{root}.") else []
    return next((one for one in inside if one.startswith(VISION)), None)

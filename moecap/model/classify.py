"""Every parameter of a transformers language model -> its tensor class and layer, from module structure.

Layers are walked from the outside in; the first module with a known role takes its whole subtree. What has no known
role raises: a parameter of the text model is counted in exactly one class or the model is refused. Buffers don't count.
Of a multimodal wrapper the text model is classified, the rest is only named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.mixers import is_norm, is_residual, recognise_mixer
from moecap.records import TensorClass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERTS = "experts"
ROUTERS = ("gate", "router")
DENSE_FFNS = ("mlp", "feed_forward", "ffn")
SHARED_EXPERTS = ("shared_expert", "shared_mlp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A module, or the loose parameters of one, that has one role."""

    tensor_class: TensorClass
    layer: int | None
    """None: outside the decoder's layers."""
    module: nn.Module
    parent: nn.Module
    """What holds `module`; `module` itself for loose parameters."""
    parameters: Mapping[str, nn.Parameter]
    """By full name."""

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def matmul_params(self) -> int:
        """Parameters that are operands of matrix products: no bias, norm, scale or convolution."""
        owners = dict(self.module.named_modules())
        local = {id(p): name for name, p in self.module.named_parameters()}
        return sum(
            parameter.numel()
            for parameter in self.parameters.values()
            if _is_matrix(local[id(parameter)], parameter, owners, in_mixer=self.tensor_class == "mixer")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """A list of layers: the decoder, or of two stacks the encoder or the decoder."""

    path: str
    layers: nn.ModuleList
    is_encoder: bool


def classify_parameters(model: PreTrainedModel) -> dict[str, tuple[TensorClass, int | None]]:
    """Parameter name -> (tensor class, layer index; None outside the layers). A tied matrix appears once, as embedding.

    UnsupportedModelError names the first module whose role is unknown.
    """
    return {name: (part.tensor_class, part.layer) for part in parts_of(model) for name in part.parameters}


def parts_of(model: PreTrainedModel) -> list[Part]:
    """The whole text model in parts, in module order; together they hold each of its parameters once.

    Layers are numbered through, an encoder's before a decoder's.
    """
    stacks = stacks_of(model)
    inside = {name for stack in stacks for name, _ in stack.layers.named_parameters(prefix=stack.path)}
    parts = list(_outer_parts(model, inside))
    index = 0
    for stack in stacks:
        for number, layer in enumerate(stack.layers):
            parts += _layer_parts(layer, f"{stack.path}.{number}", index)
            index += 1
    _check_complete(model, parts)
    return parts


def stacks_of(model: PreTrainedModel) -> list[Stack]:
    """The text model's lists of layers, an encoder's first."""
    decoder = _stack(model, model.get_decoder(), is_encoder=False)
    if not model.config.is_encoder_decoder:
        return [decoder]
    return [_stack(model, model.get_encoder(), is_encoder=True), decoder]


def other_params(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of a multimodal wrapper outside its text model, by module (`visual`, `audio_tower`)."""
    root = _text_root(model)
    container = root.rpartition(".")[0]
    found = Counter[str]()
    for name, parameter in model.named_parameters():
        if not _is_text(model, root, name, parameter):
            found[name.removeprefix(f"{container}.").partition(".")[0]] += parameter.numel()
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


def _text_root(model: PreTrainedModel) -> str:
    """Path of the text model; empty when it is the whole, encoder and all."""
    return "" if model.config.is_encoder_decoder else _path_of(model, model.get_decoder())


def _is_text(model: PreTrainedModel, root: str, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the text model's: in it, or its embedding or head."""
    head = model.get_output_embeddings()
    if not root or name.startswith(f"{root}.") or parameter is model.get_input_embeddings().weight:
        return True
    return any(parameter is one for one in head.parameters())


def _check_complete(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    """Layers that share a parameter would count it twice: such a model is refused."""
    root = _text_root(model)
    counted = Counter(name for part in parts for name in part.parameters)
    counted.subtract(name for name, parameter in model.named_parameters() if _is_text(model, root, name, parameter))
    wrong = [name for name, surplus in counted.items() if surplus]
    if wrong:
        raise UnsupportedModelError(
            f"{model.config.model_type}: parameters shared between layers: {', '.join(wrong[:3])}"
        )


def _outer_parts(model: PreTrainedModel, inside_layers: Set[str]) -> Iterator[Part]:
    """Embedding, final norm, lm_head. By identity, because a tied matrix is listed under whichever name comes first."""
    root, embedding, head = _text_root(model), model.get_input_embeddings(), model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if name in inside_layers or not _is_text(model, root, name, parameter):
            continue
        path = name.rpartition(".")[0]
        owner = model.get_submodule(path)
        if isinstance(owner, nn.Embedding) or parameter is embedding.weight:
            kind: TensorClass = "embedding"
        elif owner is head:
            kind = "lm_head"
        elif is_norm(owner) or is_residual(owner):
            kind = "norm"
        else:
            raise _unknown(path, owner)
        yield Part(tensor_class=kind, layer=None, module=owner, parent=model, parameters={name: parameter})


def _layer_parts(module: nn.Module, prefix: str, layer: int) -> Iterator[Part]:
    """Parts of one layer, or of a container inside it: a module that holds a mixer or experts among other things."""
    loose = {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters(recurse=False)}
    if loose and not hasattr(module, EXPERTS):
        raise _unknown(prefix, module)
    if loose:  # beside the experts, what isn't a module belongs to the choice among them (correction biases)
        yield Part(tensor_class="router", layer=layer, module=module, parent=module, parameters=loose)
    for name, child in module.named_children():
        path = f"{prefix}.{name}"
        parameters = {f"{path}.{key}": parameter for key, parameter in child.named_parameters()}
        role = _role(name, child)
        if not parameters:
            continue
        if role is None and hasattr(module, EXPERTS) and isinstance(child, nn.Linear):
            role = "dense_ffn"  # around latent experts: into and out of their narrower space
        if role is not None:
            yield Part(tensor_class=role, layer=layer, module=child, parent=module, parameters=parameters)
        elif _is_container(child):
            yield from _layer_parts(child, path, layer)
        else:
            raise _unknown(path, child)


def _role(name: str, module: nn.Module) -> TensorClass | None:
    """By the name under which its parent uses it for what surrounds experts, by its parts for what mixes tokens."""
    kind = type(module).__name__
    if name == EXPERTS:
        return "routed_expert"
    if name in ROUTERS or "router" in kind.lower() or (name.startswith(SHARED_EXPERTS) and name.endswith("gate")):
        return "router"
    if name.startswith(SHARED_EXPERTS):
        return "shared_expert"
    if recognise_mixer(module) is not None:
        return "mixer"
    if (is_norm(module) and not _is_container(module)) or is_residual(module):
        return "norm"
    return "dense_ffn" if (name in DENSE_FFNS or kind.endswith("MLP")) and _is_feed_forward(module) else None


def _is_feed_forward(module: nn.Module) -> bool:
    """Projections alone; experts inside make it a container."""
    return any(module.children()) and all(
        isinstance(child, nn.Linear) for child in module.children() if any(True for _ in child.parameters())
    )


def _is_container(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):
        return True
    inner = (pair for pair in module.named_modules() if pair[0])
    roles = ("mixer", "routed_expert", "dense_ffn")
    return any(_role(path.rpartition(".")[2], child) in roles for path, child in inner)


def _is_matrix(name: str, parameter: nn.Parameter, owners: Mapping[str, nn.Module], *, in_mixer: bool) -> bool:
    owner_path, _, leaf = name.rpartition(".")
    if isinstance(owners[owner_path], nn.Linear):
        return leaf == "weight"
    # Experts and routers hold bare matrices; fused experts' biases are two-dimensional as well. A mixer's bare
    # parameters are sinks, decays and convolutions.
    return parameter.dim() > 1 and not leaf.endswith("bias") and not in_mixer


def _unknown(path: str, module: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"module {path} ({type(module).__name__}) is no mixer, feed-forward, expert, router or norm that moecap can "
        "account for; a new kind of mixer is one function in moecap/model/mixers.py"
    )

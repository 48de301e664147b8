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
from moecap.model.experts import VISION, expert_pieces, with_weights
from moecap.model.mixers import is_norm, is_residual, recognise_mixer
from moecap.model.text_model import embedding_of, head_of, is_text, stacks_of, text_root
from moecap.records import TensorClass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERTS = "experts"
ROUTERS = ("gate", "router", "router_gate")
DENSE_FFNS = ("mlp", "feed_forward", "ffn")
SHARED_EXPERTS = ("shared_expert", "shared_mlp")
PER_LAYER = "per_layer_"
"""Projections of the inputs that Gemma gives to each layer apart from the stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A module, or the loose parameters of one, that has one role."""

    tensor_class: TensorClass
    layer: int | None
    """None: outside the decoder's layers."""
    module: nn.Module
    path: str
    """Of `module` in the model."""
    parent: nn.Module
    """What holds `module`, or the loose parameters; outside the layers what holds these, a module of its own or not."""
    parameters: Mapping[str, nn.Parameter]
    """By full name; of experts only the rows that an expert uses."""

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def matmul_params(self) -> int:
        """Parameters that are operands of matrix products: no bias, norm, scale or convolution."""
        owners = dict(self.module.named_modules())
        return sum(
            parameter.numel()
            for name, parameter in self.parameters.items()
            if _is_matrix(name.removeprefix(f"{self.path}."), parameter, owners, in_mixer=self.tensor_class == "mixer")
        )


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
    parts = list(_outer_parts(model, inside, sum(len(stack.layers) for stack in stacks) - 1))
    index = 0
    for stack in stacks:
        for number, layer in enumerate(stack.layers):
            parts += _layer_parts(layer, f"{stack.path}.{number}", index)
            index += 1
    _check_complete(model, parts)
    return parts


def _check_complete(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    """Layers that share a parameter would count it twice: such a model is refused."""
    root = text_root(model)
    counted = Counter(name for part in parts for name in part.parameters)
    counted.subtract(name for name, parameter in model.named_parameters() if is_text(model, root, name, parameter))
    wrong = [name for name, surplus in counted.items() if surplus]
    if wrong:
        raise UnsupportedModelError(
            f"{model.config.model_type}: parameters shared between layers: {', '.join(wrong[:3])}"
        )


def _outer_parts(model: PreTrainedModel, inside_layers: Set[str], last_layer: int) -> Iterator[Part]:
    """Embedding, final norm, lm_head. By identity, because a tied matrix is listed under whichever name comes first.

    What projects a token's embedding to the inputs of all layers (Gemma) counts with the first layer, what mixes the
    streams of hyper-connections after the last one with that.
    """
    root, embedding, head = text_root(model), embedding_of(model), head_of(model)
    for name, parameter in model.named_parameters():
        if name in inside_layers or not is_text(model, root, name, parameter):
            continue
        path = name.rpartition(".")[0]
        owner = model.get_submodule(path)
        layer = None
        if isinstance(owner, nn.Embedding) or parameter is embedding.weight:
            kind: TensorClass = "embedding"
        elif owner is head:
            kind = "lm_head"
        elif is_norm(owner) or (path == root and parameter.dim() == 1):
            kind = "norm"
        elif is_residual(owner) or is_residual(model.get_submodule(path.rpartition(".")[0])):
            kind, layer = "norm", last_layer if parameter.dim() > 1 else None
        elif path.startswith(f"{root}.{PER_LAYER}"):
            kind, layer = "dense_ffn", 0
        else:
            raise _unknown(path, owner)
        held = owner if isinstance(owner, nn.Linear) else nn.ParameterDict({name.rpartition(".")[2]: parameter})
        yield Part(tensor_class=kind, layer=layer, module=held, path=path, parent=owner, parameters={name: parameter})


def _layer_parts(module: nn.Module, prefix: str, layer: int) -> Iterator[Part]:
    """Parts of one layer, or of a container inside it: a module that holds a mixer or experts among other things."""

    def part(kind: TensorClass, held: nn.Module, path: str, parameters: Mapping[str, nn.Parameter]) -> Part:
        return Part(tensor_class=kind, layer=layer, module=held, path=path, parent=module, parameters=parameters)

    pieces = expert_pieces(module)
    for name, parameter in module.named_parameters(recurse=False):
        alone = nn.ParameterDict({name: parameter})
        yield part(_loose_class(module, prefix, name), alone, prefix, {f"{prefix}.{name}": parameter})
    for kind, group in _groups(module, pieces):
        held = module if kind == "routed_expert" else nn.ModuleDict(group)
        yield part(kind, held, prefix, _parameters_of(group, prefix))
        pieces |= group
    for name, child in module.named_children():
        path = f"{prefix}.{name}"
        parameters = _parameters_of({name: child}, prefix)
        if not parameters or name in pieces or name.startswith(VISION):
            continue
        role = _role(name, child)
        if role is None and hasattr(module, EXPERTS) and isinstance(child, nn.Linear):
            role = "dense_ffn"  # around latent experts: into and out of their narrower space
        if role == "routed_expert":
            parameters = with_weights(child, parameters)
        if role is not None:
            yield part(role, child, path, parameters)
        elif _is_container(child):
            yield from _layer_parts(child, path, layer)
        elif _is_lookup(child):
            yield from _lookup_parts(child, path, layer)
        else:
            raise _unknown(path, child)


def _is_lookup(module: nn.Module) -> bool:
    """Tables and what brings their rows into the stream, nothing else (Qwen4-Exp's n-grams)."""
    holders = [one for one in module.modules() if any(True for _ in one.parameters(recurse=False))]
    known = (nn.Embedding, nn.Linear, nn.Conv1d)
    has_table = any(isinstance(one, nn.Embedding) for one in holders)
    return has_table and all(isinstance(one, known) or is_norm(one) for one in holders)


def _lookup_parts(module: nn.Module, prefix: str, layer: int) -> Iterator[Part]:
    """Tables are embedding, outside the layers; projections are dense FFN, a convolution is a mixer of its own."""
    for name, one in module.named_modules():
        parameters = {f"{prefix}.{name}.{key}": value for key, value in one.named_parameters(recurse=False)}
        if not parameters:
            continue
        kind: TensorClass = "norm" if is_norm(one) else "dense_ffn"
        held, outside = one, isinstance(one, nn.Embedding)
        if isinstance(one, nn.Conv1d):
            kind, held = "mixer", nn.ModuleDict({"conv1d": one})
        yield Part(
            tensor_class="embedding" if outside else kind, layer=None if outside else layer, module=held,
            path=f"{prefix}.{name}", parent=module.get_submodule(name.rpartition(".")[0]), parameters=parameters,
        )  # fmt: skip


def _groups(module: nn.Module, pieces: Mapping[str, nn.Module]) -> Iterator[tuple[TensorClass, dict[str, nn.Module]]]:
    """Children of one role together: experts in pieces, the projections beside them that every token passes, and those
    that mix a layer's own input in (Gemma)."""
    linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    beside = {name: child for name, child in linears.items() if name not in ROUTERS}
    per_layer = {name: child for name, child in linears.items() if name.startswith(PER_LAYER)}
    if pieces:
        yield "routed_expert", dict(pieces)
    if pieces and beside:
        yield "shared_expert", dict(beside)
    if per_layer:
        yield "dense_ffn", dict(per_layer)


def _parameters_of(children: Mapping[str, nn.Module], prefix: str) -> dict[str, nn.Parameter]:
    return {
        f"{prefix}.{name}.{key}": parameter
        for name, child in children.items()
        for key, parameter in child.named_parameters()
    }


def _loose_class(module: nn.Module, prefix: str, name: str) -> TensorClass:
    """Of a parameter that isn't a module's: beside the experts it belongs to the choice among them (correction biases),
    beside experts in pieces it is the bias of their sum, in a layer it may scale the residual stream."""
    if hasattr(module, EXPERTS):
        return "router"
    if expert_pieces(module) or "residual" in name:
        return "norm"
    raise _unknown(prefix, module)


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
    if any(expert_pieces(one) for one in module.modules()):
        return True
    inner = (pair for pair in module.named_modules() if pair[0])
    roles = ("mixer", "routed_expert", "dense_ffn")
    return any(_role(path.rpartition(".")[2], child) in roles for path, child in inner)


def _is_matrix(name: str, parameter: nn.Parameter, owners: Mapping[str, nn.Module], *, in_mixer: bool) -> bool:
    owner_path, _, leaf = name.rpartition(".")
    if isinstance(owners[owner_path], nn.Linear):
        return leaf == "weight"
    # Experts and routers hold bare matrices; fused experts' biases are two-dimensional as well. A mixer's bare
    # parameters are sinks, decays and convolutions; queries attend to a residual stream's own blocks.
    return parameter.dim() > 1 and not leaf.endswith(("bias", "query")) and not in_mixer


def _unknown(path: str, module: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"module {path} ({type(module).__name__}) is no mixer, feed-forward, expert, router or norm that moecap can "
        "account for; a new kind of mixer is one function in moecap/model/mixers.py"
    )

"""Every parameter of a transformers causal LM -> its tensor class and layer, from module structure.

The decoder's layers are walked from the outside in; the first module with a known role takes its whole subtree. What
has no known role raises: a parameter is counted in exactly one class or the model is refused. Buffers don't count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.mixers import is_norm, recognise_mixer
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


def classify_parameters(model: PreTrainedModel) -> dict[str, tuple[TensorClass, int | None]]:
    """Parameter name -> (tensor class, layer index; None outside the layers). A tied matrix appears once, as embedding.

    UnsupportedModelError names the first module whose role is unknown.
    """
    return {name: (part.tensor_class, part.layer) for part in parts_of(model) for name in part.parameters}


def parts_of(model: PreTrainedModel) -> list[Part]:
    """The whole model in parts, in module order; together they hold every parameter once."""
    prefix, layers = _decoder_layers(model)
    parts = list(_outer_parts(model, prefix))
    for index, layer in enumerate(layers.children()):
        parts += _layer_parts(layer, f"{prefix}.{index}", index)
    _check_complete(model, parts)
    return parts


def _decoder_layers(model: PreTrainedModel) -> tuple[str, nn.Module]:
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UnsupportedModelError(
        f"{model.config.model_type}: no list of {count} decoder layers in {type(model).__name__}"
    )


def _check_complete(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    """Layers that share a parameter would count it twice: such a model is refused."""
    counted = Counter(name for part in parts for name in part.parameters)
    counted.subtract(name for name, _ in model.named_parameters())
    wrong = [name for name, surplus in counted.items() if surplus]
    if wrong:
        raise UnsupportedModelError(
            f"{model.config.model_type}: parameters shared between layers: {', '.join(wrong[:3])}"
        )


def _outer_parts(model: PreTrainedModel, layers_prefix: str) -> Iterator[Part]:
    """Embedding, final norm, lm_head. By identity, because a tied matrix is listed under whichever name comes first."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if name.startswith(f"{layers_prefix}."):
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Embedding) or parameter is embedding.weight:
            kind: TensorClass = "embedding"
        elif owner is head:
            kind = "lm_head"
        elif is_norm(owner):
            kind = "norm"
        else:
            raise _unknown(name.rpartition(".")[0], owner)
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
        kind = _role(name, child)
        if not parameters:
            continue
        if kind is not None:
            yield Part(tensor_class=kind, layer=layer, module=child, parent=module, parameters=parameters)
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
    if is_norm(module):
        return "norm"
    if recognise_mixer(module) is not None:
        return "mixer"
    return "dense_ffn" if (name in DENSE_FFNS or kind.endswith("MLP")) and _is_feed_forward(module) else None


def _is_feed_forward(module: nn.Module) -> bool:
    """Projections alone; experts inside make it a container."""
    return any(module.children()) and all(
        isinstance(child, nn.Linear) for child in module.children() if any(True for _ in child.parameters())
    )


def _is_container(module: nn.Module) -> bool:
    inner = (pair for pair in module.named_modules() if pair[0])
    return any(_role(path.rpartition(".")[2], child) in ("mixer", "routed_expert") for path, child in inner)


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

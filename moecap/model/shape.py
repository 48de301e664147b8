"""A language model, real or on the meta device -> its ModelShape: exact parameters, KV and FLOPs per layer.

Roles come from `classify`, mixers from `mixers`; here they are counted. Bytes need widths, which only an engine knows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.model.activations import activation_elements
from moecap.model.build import meta_model
from moecap.model.classify import Part, classify_parameters, parts_of
from moecap.model.experts import choices_without_weights
from moecap.model.mixers import Mixer, is_residual, recognise_mixer
from moecap.model.text_model import head_of, other_params, stacks_of
from moecap.records import LayerShape, ModelShape, TensorClass

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["classify_parameters", "declared_top_k", "keys_by_default", "shape_from_config", "shape_of"]

TOP_K = ("top_k", "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_topk", "moe_k")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
MTP_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
MTP_LIKE_LAST_LAYER = {
    "deepseek_v3", "deepseek_v32", "deepseek_v4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "qwen3_5_moe_text",
    "bailing_hybrid",
}  # fmt: skip
"""Text models whose published checkpoints hold just what that layout says, to the parameter."""
MTP_UNTOLD = {"qwen3_next", "mimo_v2_flash"}
"""Text models whose published checkpoints hold prediction layers that their configurations don't mention."""
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


def shape_from_config(source: str | Path | Mapping[str, Any]) -> ModelShape:
    """ModelShape of a Hugging Face id, a folder, a config.json or its content, without any weights.

    UnsupportedModelError names the model type or module that can't be built or accounted for.
    """
    model = meta_model(source)
    return shape_of(model, model.config.model_type if isinstance(source, Mapping) else str(source))


def shape_of(model: PreTrainedModel, name: str) -> ModelShape:
    """ModelShape of an instantiated model: of a multimodal wrapper the text model, the rest by name.

    UnsupportedModelError names the module that can't be accounted for.
    """
    config, parts = model.config.get_text_config(decoder=True), parts_of(model)
    outer = _params([part for part in parts if part.layer is None])
    encoders = [stack.is_encoder for stack in stacks_of(model) for _ in stack.layers]
    if not encoders:
        raise UnsupportedModelError(f"{name}: a model without layers can't be accounted for; check num_hidden_layers")
    by_layer: list[list[Part]] = [[] for _ in encoders]
    for part in parts:
        if part.layer is not None:
            by_layer[part.layer].append(part)
    try:
        layers = tuple(
            _layer_shape(index, layer, config, keeps_kv=not is_encoder)
            for index, (layer, is_encoder) in enumerate(zip(by_layer, encoders, strict=True))
        )
    except ValueError as error:
        raise UnsupportedModelError(f"{name}: {error}; check its configuration") from error
    return ModelShape(
        name=name,
        model_type=model.config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        layers=layers,
        embedding_params=outer["embedding"],
        lm_head_params=outer["lm_head"],
        lm_head_matrix_params=head_of(model).weight.numel(),
        final_norm_params=outer["norm"],
        further_row_elements=sum(map(_row_elements, parts)) - config.hidden_size,
        other_params=other_params(model),
        mtp_layers=(mtp_layers := _mtp_layers(config)),
        mtp_params=_mtp_params(mtp_layers, config, by_layer[-1], [part for part in parts if part.layer is None]),
    )


def _row_elements(part: Part) -> int:
    """What one token looks up in a table: a row, or several of a table that n-grams share."""
    if part.tensor_class != "embedding":
        return 0
    return sum(int(table.shape[1]) for table in part.parameters.values()) * getattr(part.parent, "ngram_heads", 1)


def _mtp_layers(config: PreTrainedConfig) -> int | None:
    """As configured; 0: none. None: the family's checkpoints hold some, and the configuration doesn't say how many."""
    told = [count for name in MTP_LAYERS if (count := getattr(config, name, None)) is not None]
    if not told and config.model_type in MTP_UNTOLD:
        return None
    return max(told, default=0)


def _mtp_params(
    count: int | None, config: PreTrainedConfig, last_layer: Sequence[Part], outer: Sequence[Part]
) -> int | None:
    """Of multi-token prediction layers, which transformers doesn't build, where families lay them out as DeepSeek-V3
    does: a layer like the last one, a projection of hidden state and embedding, three norms. DeepSeek-V4's attend to a
    window alone, and bring their residual streams together as the model does at its end."""
    if not count:
        return count
    shares_indexer = "shared" in (getattr(config, "indexer_types", None) or ())
    if config.model_type not in MTP_LIKE_LAST_LAYER or shares_indexer:
        return None
    hidden = config.hidden_size
    named = [pair for part in last_layer for pair in part.parameters.items()]
    layer = sum(parameter.numel() for name, parameter in named if ".compressor." not in name)
    streams = sum(part.params for part in outer if is_residual(part.parent))
    return int(count * (layer + streams + 2 * hidden * hidden + 3 * hidden))


def _layer_shape(index: int, parts: Sequence[Part], config: PreTrainedConfig, *, keeps_kv: bool) -> LayerShape:
    params = _params(parts)
    experts = _experts(parts, index)
    mixer, window_tokens = _mixer(index, parts, config)
    num_experts = _num_experts(experts) if experts else 0
    top_k = _top_k(parts, config) if experts else 0
    used = Counter({kind: _matmul_params(parts, kind) for kind in ("router", "shared_expert", "dense_ffn", "norm")})
    if experts:
        used["routed_expert"] = top_k * _share(experts.matmul_params, num_experts, experts)
    return LayerShape(
        index=index,
        mixer=mixer.kind,
        mixer_params=params["mixer"],
        mixer_matmul_params=_matmul_params(parts, "mixer") + mixer.matmul_params_beyond_linears,
        score_flops_per_pair=mixer.score_flops_per_pair,
        kv_elements_per_token=mixer.kv_elements_per_token if keeps_kv else 0,
        window_tokens=window_tokens,
        state_elements=mixer.state_elements,
        tokens_per_entry=mixer.tokens_per_entry,
        elements_per_entry=mixer.elements_per_entry,
        waiting_elements=mixer.waiting_elements,
        selected_max=mixer.selected_max,
        selected_block=mixer.selected_block,
        index_elements_per_key=mixer.index_elements_per_key,
        index_flops_per_pair=mixer.index_flops_per_pair,
        tokens_per_index_key=mixer.tokens_per_index_key,
        mixer_num_experts=mixer.num_experts,
        mixer_top_k=mixer.top_k,
        mixer_expert_params=mixer.expert_params,
        dense_ffn_params=params["dense_ffn"],
        num_experts=num_experts,
        top_k=top_k,
        num_weightless_choices=_weightless_choices(parts, num_experts),
        expert_params=_share(experts.params, num_experts, experts) if experts else 0,
        num_shared_experts=_num_shared_experts(config) if params["shared_expert"] else 0,
        shared_expert_params=params["shared_expert"],
        router_params=params["router"],
        norm_params=params["norm"],
        ffn_matmul_params_per_token=used.total(),
        routed_matmul_params_per_token=used["routed_expert"],
        shared_matmul_params=used["shared_expert"],
        dense_matmul_params=used["dense_ffn"],
        activation_elements_per_token=activation_elements(
            parts, mixer, config.hidden_size, num_experts=num_experts, top_k=top_k
        ),
    )


def _params(parts: Sequence[Part]) -> Counter[TensorClass]:
    counted: Counter[TensorClass] = Counter()
    for part in parts:
        counted[part.tensor_class] += part.params
    return counted


def _matmul_params(parts: Sequence[Part], kind: str) -> int:
    return sum(part.matmul_params for part in parts if part.tensor_class == kind)


def _experts(parts: Sequence[Part], index: int) -> Part | None:
    found = [part for part in parts if part.tensor_class == "routed_expert"]
    if len(found) > 1:
        names = ", ".join(type(part.module).__name__ for part in found)
        raise UnsupportedModelError(f"layer {index} has {len(found)} groups of routed experts ({names}); one counts")
    return found[0] if found else None


def _mixer(index: int, parts: Sequence[Part], config: PreTrainedConfig) -> tuple[Mixer, int | None]:
    """The layer's mixer and window; of several (cross-attention, two in one layer, convolutions beside attention) the
    sum, under the name of the one that keeps most.

    Hybrids that alternate mixers and MoE blocks have layers without a mixer.
    """
    modules = [part.module for part in parts if part.tensor_class == "mixer"]
    found = [(mixer, module) for module in modules if (mixer := recognise_mixer(module)) is not None]
    if not found:
        return Mixer(kind="none"), None
    main, module = max(found, key=lambda pair: pair[0].kv_elements_per_token)
    mixers = [mixer for mixer, _ in found]
    if len(mixers) > 1 and any(one.selected_max or one.tokens_per_entry for one in mixers):
        raise UnsupportedModelError(f"layer {index}: attention that selects or compresses keys beside another mixer")
    mixer = replace(
        main,
        score_flops_per_pair=sum(one.score_flops_per_pair for one in mixers),
        kv_elements_per_token=sum(one.kv_elements_per_token for one in mixers),
        state_elements=sum(one.state_elements for one in mixers),
        matmul_params_beyond_linears=sum(one.matmul_params_beyond_linears for one in mixers),
    )
    window_tokens = _window_tokens(index, module, config) if mixer.kv_elements_per_token else None
    if window_tokens is not None and mixer.kind == "full_attention":
        mixer = replace(mixer, kind="sliding_attention")
    return mixer, window_tokens


def _window_tokens(index: int, module: nn.Module, config: PreTrainedConfig) -> int | None:
    """The layer's window by the model's own layer types; without these, the one of all layers.

    A chunk (Llama 4) bounds the attended tokens like a window of its size does: right for the memory that KV takes, an
    upper bound for the tokens that a query attends to.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(module, "sliding_window", getattr(config, "sliding_window", None))
    return int(getattr(config, WINDOWS[kinds[index]])) if kinds[index] in WINDOWS else None


WINDOWS = {
    "sliding_attention": "sliding_window", "hybrid_sliding": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "compressed_sparse_attention": "sliding_window", "heavily_compressed_attention": "sliding_window",
}  # fmt: skip
"""Layer type -> what the configuration calls its window."""


def _num_experts(experts: Part) -> int:
    if isinstance(experts.module, nn.ModuleList | nn.ModuleDict):
        return sum(any(True for _ in child.parameters()) for child in experts.module.children())
    fused = {parameter.shape[0] for parameter in experts.parameters.values() if parameter.dim() == 3}
    if len(fused) > 1:
        raise UnsupportedModelError(f"{type(experts.module).__name__}: tensors of {sorted(fused)} experts disagree")
    count: int | None = next(iter(fused), None) or getattr(experts.module, "num_experts", None)
    if count is None:
        raise UnsupportedModelError(f"{type(experts.module).__name__} doesn't tell how many experts it holds")
    return count


def _weightless_choices(parts: Sequence[Part], num_experts: int) -> int:
    routing = [part.module for part in parts if part.tensor_class in ("routed_expert", "router")]
    return choices_without_weights(routing, num_experts)


def _top_k(parts: Sequence[Part], config: PreTrainedConfig) -> int:
    routing = [part for part in parts if part.tensor_class in ("routed_expert", "router")]
    return declared_top_k([holder for part in routing for holder in (part.parent, part.module)], config)


def declared_top_k(modules: Iterable[nn.Module], config: PreTrainedConfig) -> int:
    """Experts per token as MoE modules hold it (they route by it), else as the configuration says.

    UnsupportedModelError when neither tells.
    """
    for holder in (*modules, config):
        for name in TOP_K:
            if isinstance(top_k := getattr(holder, name, None), int):
                return top_k
        if named := re.search(r"top(\d+)router", type(holder).__name__.lower()):
            return int(named[1])
    raise UnsupportedModelError(f"model type {config.model_type!r}: neither its modules nor its config tell top-k")


def keys_by_default(config: PreTrainedConfig, raw: Mapping[str, Any]) -> dict[str, int]:
    """Of the keys that decide sizes, experts and top-k: those that `raw`, the config.json, doesn't name under any of
    their names, with what transformers takes instead."""
    written, text = set(_keys_in(raw)), config.get_text_config(decoder=True)
    found: dict[str, int] = {}
    for names in (EXPERT_COUNTS, TOP_K):
        if written.isdisjoint(names):
            taken = {name: value for name in names if isinstance(value := getattr(text, name, None), int)}
            if taken:  # one number under several names
                found[" or ".join(taken)] = next(iter(taken.values()))
    return found


def _keys_in(raw: Any) -> Iterator[str]:
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield key
            yield from _keys_in(value)


def _num_shared_experts(config: PreTrainedConfig) -> int:
    """As configured; families with just one don't say so."""
    counts = (getattr(config, name, None) for name in SHARED_EXPERTS)
    return next((count for count in counts if count), 1)


def _share(params: int, num_experts: int, experts: Part) -> int:
    if params % num_experts:
        raise UnsupportedModelError(
            f"{type(experts.module).__name__}: {params} parameters don't divide by {num_experts}"
        )
    return params // num_experts

"""What mixes tokens in a layer: recognises attention and linear mixers by their parts, and says what they keep.

A module is recognised by the submodules and attributes that its own forward uses, never by a model's name. A new kind
of mixer is one function here, added to `RECOGNISERS`. What isn't recognised is refused by the caller, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from moecap.errors import UnsupportedModelError
from moecap.records import MixerKind

FUSED_QKV = ("qkv_proj", "Wqkv", "query_key_value")
OUTPUT = ("o_proj", "out_proj", "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixer:
    """One mixer, apart from its parameters. Field meanings as in `records.LayerShape`."""

    kind: MixerKind
    """`full_attention` also for a layer that a window narrows later: the window is the layer's, not the module's."""
    score_flops_per_pair: int = 0
    kv_elements_per_token: int = 0
    state_elements: int = 0
    tokens_per_entry: int | None = None
    elements_per_entry: int = 0
    waiting_elements: int = 0
    selected_max: int | None = None
    selected_block: int = 1
    index_elements_per_key: int = 0
    index_flops_per_pair: int = 0
    tokens_per_index_key: int = 1
    matmul_params_beyond_linears: int = 0
    """Matrix parameters that one token uses in bare tensors, each as often as it is multiplied by."""
    num_experts: int = 0
    """Experts inside the mixer itself; of these a token uses `top_k`."""
    top_k: int = 0
    expert_params: int = 0


def recognise_mixer(module: nn.Module) -> Mixer | None:
    """The mixer that `module` is; None when it is none, or of an unknown kind."""
    return next((mixer for recognise in RECOGNISERS if (mixer := recognise(module)) is not None), None)


def is_norm(module: nn.Module) -> bool:
    """Any normalisation, gated ones too: transformers has one class of its own per family, all named so."""
    return "norm" in type(module).__name__.lower() and not isinstance(module, nn.Embedding)


def is_residual(module: nn.Module) -> bool:
    """What mixes or scales residual streams (hyper-connections and their like): counted with the norms around it."""
    name = type(module).__name__.lower()
    return "hyper" in name or "residual" in name


def _latent_attention(module: Any) -> Mixer | None:
    """MLA (DeepSeek-V2): one latent and one rope key per token, shared by all heads.

    Engines absorb kv_b_proj into query and output: scores over latent + rope, values over the latent, per head.
    """
    if not _has(module, "kv_b_proj", "kv_lora_rank"):
        return None
    latent, rope = module.kv_lora_rank, module.qk_rope_head_dim
    return Mixer(
        kind="mla",
        score_flops_per_pair=2 * module.num_heads * ((latent + rope) + latent),
        kv_elements_per_token=latent + rope,
        **_token_selection(module),
    )


def _token_selection(attention: Any) -> dict[str, int]:
    """DeepSeek sparse attention (DeepSeek-V3.2): an indexer scores every token, with heads of its own and a weight for
    each, against one key per token, and a query attends to the best. A layer without an indexer may use the last choice
    (GLM-5.2).

    Some score pools of tokens (GLM-5.3-Flash), counted as if of a pool its own key alone were kept; what comes after
    the last whole pool is then attended to as well.
    """
    indexer = getattr(attention, "indexer", None)
    if indexer is None and not getattr(attention, "skip_topk", False):
        return {}
    settings = attention.config if indexer is None else indexer
    pool, has_tail = getattr(settings, "index_kpool", 1), getattr(settings, "index_kpool_always_select_tail", False)
    selection = {
        "selected_max": settings.index_topk + (pool - 1 if has_tail else 0),
        "selected_block": pool if has_tail else 1,
    }
    if indexer is None:
        return selection
    return selection | {
        "index_elements_per_key": indexer.head_dim,
        "index_flops_per_pair": 2 * indexer.n_heads * (indexer.head_dim + 1),
        "tokens_per_index_key": pool,
        "waiting_elements": 2 * indexer.head_dim * (pool - 1),
    }


def _compressed_attention(module: Any) -> Mixer | None:
    """DeepSeek-V4: one key per token, which is the value as well, in a window; older tokens as compressed entries, all
    of them or, with an indexer, the best by their own compressed keys."""
    if not _has(module, "kv_proj", "o_a_proj", "o_b_proj", "sinks", "sliding_window", "num_heads", "head_dim"):
        return None
    dense = Mixer(
        kind="full_attention", score_flops_per_pair=4 * module.num_heads * module.head_dim,
        kv_elements_per_token=module.head_dim,
    )  # fmt: skip
    compressor = module.compressor
    if compressor is None:
        return dense
    compressed = replace(
        dense, kind="compressed_attention", tokens_per_entry=compressor.compress_rate,
        elements_per_entry=compressor.head_dim, waiting_elements=_waiting(compressor),
    )  # fmt: skip
    if (indexer := getattr(compressor, "indexer", None)) is None:
        return compressed
    return replace(
        compressed, selected_max=indexer.index_topk, index_elements_per_key=indexer.head_dim,
        index_flops_per_pair=2 * indexer.num_heads * (indexer.head_dim + 1),
        tokens_per_index_key=indexer.compress_rate,
        waiting_elements=compressed.waiting_elements + _waiting(indexer),
    )  # fmt: skip


def _waiting(compressor: Any) -> int:
    """Values and gates of the tokens of an unfinished entry; where entries overlap, of the entry before as well."""
    width = 2 * compressor.head_dim
    overlaps = compressor.kv_proj.out_features > compressor.head_dim
    unfinished, rate = (compressor.compress_rate - 1) * width, compressor.compress_rate
    return int(2 * unfinished + rate * width if overlaps else unfinished)


def _gated_delta_net(module: Any) -> Mixer | None:
    """Gated DeltaNet (Qwen3-Next): a key x value matrix per value head, and the convolution's last inputs."""
    if not _has(module, "conv1d", "A_log", "num_v_heads", "head_k_dim", "head_v_dim"):
        return None
    matrix = module.num_v_heads * module.head_k_dim * module.head_v_dim
    return Mixer(kind="linear", state_elements=matrix + _convolution_state(module.conv1d))


def _kimi_delta_attention(module: Any) -> Mixer | None:
    """Kimi delta attention: a key x value matrix per head, decayed by channel, and the convolution's last inputs."""
    if not _has(module, "conv1d", "forget_gate", "b_proj", "num_heads", "head_dim"):
        return None
    return Mixer(
        kind="linear", state_elements=module.num_heads * module.head_dim**2 + _convolution_state(module.conv1d)
    )


def _lightning_attention(module: Any) -> Mixer | None:
    """Lightning attention (MiniMax-01): a key x value matrix per head, decayed by a fixed rate."""
    if not _has(module, "slope_rate", "output_gate", "num_attention_heads", "head_dim"):
        return None
    return Mixer(kind="linear", state_elements=module.num_attention_heads * module.head_dim**2)


def _mamba(module: Any) -> Mixer | None:
    """Mamba (Jamba): a state vector per channel, and the convolution's last inputs."""
    if not _has(module, "conv1d", "A_log", "D", "x_proj", "dt_proj", "intermediate_size", "ssm_state_size"):
        return None
    state = module.intermediate_size * module.ssm_state_size
    return Mixer(kind="linear", state_elements=state + _convolution_state(module.conv1d))


def _mamba2(module: Any) -> Mixer | None:
    """Mamba-2: a head_dim x state matrix per head, and the convolution's last inputs."""
    if not _has(module, "conv1d", "A_log", "D", "num_heads", "head_dim", "ssm_state_size"):
        return None
    matrix = module.num_heads * module.head_dim * module.ssm_state_size
    return Mixer(kind="linear", state_elements=matrix + _convolution_state(module.conv1d))


def _short_convolution(module: Any) -> Mixer | None:
    """Gated short convolution (LFM2): its last inputs are all that it keeps."""
    if not (_has(module, "conv", "in_proj", "out_proj") and isinstance(module.conv, nn.Conv1d)):
        return None
    return Mixer(kind="linear", state_elements=_convolution_state(module.conv))


def _relative_position_attention(module: Any) -> Mixer | None:
    """T5's attention (Switch Transformers): full heads; the bias by distance is looked up, not multiplied."""
    if not _has(module, "q", "k", "v", "o", "n_heads", "key_value_proj_dim"):
        return None
    width = module.n_heads * module.key_value_proj_dim
    return Mixer(kind="full_attention", score_flops_per_pair=4 * width, kv_elements_per_token=2 * width)


def _softmax_attention(module: Any) -> Mixer | None:
    """Multi-head, grouped-query or multi-query attention; sinks, query norms and output gates change nothing here. An
    indexer may select blocks or pools of tokens (MiniMax-M3, Qwen4-Exp).

    Heads come from the weights: families override head counts and value widths per layer, and gates widen q_proj.
    """
    output = _first(module, OUTPUT)
    fused = _first(module, FUSED_QKV)
    if output is None or not (fused or hasattr(module, "k_proj")) or not _only_projections(module):
        return None
    if not hasattr(module, "head_dim"):
        return None
    key_dim, groups = module.head_dim, getattr(module, "num_key_value_groups", 1)
    if fused:
        kv_heads, value_dim = fused.out_features // (key_dim * (groups + 2)), key_dim
    else:
        values = getattr(module, "v_proj", None) or module.k_proj  # without v_proj the key's projection is the value
        kv_heads = module.k_proj.out_features // key_dim
        value_dim = values.out_features // kv_heads
    heads = kv_heads * groups
    if output.in_features != heads * value_dim:
        raise UnsupportedModelError(
            f"{type(module).__name__}: {heads} heads of {value_dim} values don't fill an output projection of "
            f"{output.in_features} inputs"
        )
    return Mixer(
        kind="full_attention",
        score_flops_per_pair=2 * heads * (key_dim + value_dim),
        kv_elements_per_token=kv_heads * (key_dim + value_dim),
        **_block_selection(module),
        **_pool_selection(module),
    )


def _block_selection(attention: Any) -> dict[str, int]:
    """MiniMax-M3: an indexer's heads score every token against one key per token; each key-value head attends to the
    blocks with the best tokens, and to the query's own."""
    indexer = getattr(attention, "indexer", None)
    if indexer is None or not _has(indexer, *INDEXER_OF_BLOCKS):
        return {}
    return {
        "selected_max": indexer.topk_blocks * indexer.block_size,
        "selected_block": indexer.block_size if indexer.local_blocks else 1,
        "index_elements_per_key": indexer.head_dim,
        "index_flops_per_pair": 2 * indexer.num_heads * indexer.head_dim,
    }


def _pool_selection(attention: Any) -> dict[str, int]:
    """QSA (Qwen4-Exp): an indexer's heads score the mean key of every whole pool of tokens, summed without weights; a
    query attends to the best pools and to what comes after the last. Counted as if of a pool its mean alone were kept.
    """
    indexer = getattr(attention, "indexer", None)
    if indexer is None or not _has(indexer, *INDEXER_OF_POOLS):
        return {}
    pool, width = indexer.compress_ratio, indexer.index_head_dim
    return {
        "selected_max": indexer.block_topk * pool + pool - 1,
        "selected_block": pool,
        "index_elements_per_key": width,
        "index_flops_per_pair": 2 * indexer.index_n_heads * width,
        "tokens_per_index_key": pool,
        "waiting_elements": (pool - 1) * width,
    }


def _convolved_attention(module: Any) -> Mixer | None:
    """Inkling's attention: keys and values pass short convolutions, scores get a bias that the query mixes from a bank
    of profiles by distance, one product per head. Taps may be projected from the token (Inkling 2)."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "k_sconv", "v_sconv", "rel_logits_proj", "num_heads", "head_dim")
    if not (_has(module, *names) and _only_projections(module, "k_sconv", "v_sconv", "rel_logits_proj", *CLIPS)):
        return None
    heads, kept = module.num_heads, module.k_proj.out_features + module.v_proj.out_features
    return Mixer(
        kind="full_attention",
        score_flops_per_pair=4 * heads * module.head_dim,
        kv_elements_per_token=kept,
        state_elements=_remembered(module.k_sconv.conv_kernel_size, kept),
        matmul_params_beyond_linears=heads * module.rel_logits_proj.proj.numel(),
    )


CLIPS = ("q_l2_clip", "rel_l2_clip")
"""Norms by another name."""


def _convolution_of_the_stream(module: Any) -> Mixer | None:
    """A short convolution by itself (Inkling's over a sublayer's output, Qwen4-Exp's over what n-grams bring in): its
    last inputs are all that it keeps."""
    if [name for name, _ in module.named_children()] != ["conv1d"] or not isinstance(module.conv1d, nn.Conv1d):
        return None
    return Mixer(kind="linear", state_elements=_convolution_state(module.conv1d))


def _compressed_convolutional_attention(module: Any) -> Mixer | None:
    """CCA (Zaya): queries and keys pass two convolutions, half of each value comes from the token before."""
    inner = getattr(module, "qkv_proj", None)
    if inner is None or not _has(inner, "conv_qk_depthwise", "conv_qk_grouped", "v_proj_current", "v_proj_delayed"):
        return None
    width, kept = inner.q_proj.out_features, 2 * inner.k_proj.out_features
    convolved = _convolution_state(inner.conv_qk_depthwise) + _convolution_state(inner.conv_qk_grouped)
    return Mixer(
        kind="full_attention",
        score_flops_per_pair=4 * width,
        kv_elements_per_token=kept,
        state_elements=convolved + inner.v_proj_delayed.out_features,
    )


def _mixture_of_attention_heads(module: Any) -> Mixer | None:
    """MoA (JetMoe): each expert has its own queries and output over keys and values that all of them share."""
    experts = getattr(module, "experts", None)
    if experts is None or not _has(module, "kv_proj", "top_k", "head_dim"):
        return None
    stacks = [parameter for parameter in experts.parameters() if parameter.dim() == 3]
    one, kept = sum(stack[0].numel() for stack in stacks), module.kv_proj.out_features
    return Mixer(
        kind="full_attention",
        score_flops_per_pair=module.top_k * 2 * kept,
        kv_elements_per_token=kept,
        matmul_params_beyond_linears=module.top_k * one,
        num_experts=stacks[0].shape[0],
        top_k=module.top_k,
        expert_params=one,
    )


def _only_projections(module: nn.Module, *known: str) -> bool:
    """Linears, norms, an indexer of blocks or pools and `known` children alone: a compressor, convolution or expert
    inside, or another indexer, makes it another kind of mixer."""
    holders = ((name, child) for name, child in module.named_children() if any(True for _ in child.parameters()))
    return all(
        isinstance(child, nn.Linear) or is_norm(child) or name in known or _is_known_indexer(child)
        for name, child in holders
    )


def _is_known_indexer(module: nn.Module) -> bool:
    return _has(module, *INDEXER_OF_BLOCKS) or _has(module, *INDEXER_OF_POOLS)


INDEXER_OF_BLOCKS = ("topk_blocks", "block_size", "local_blocks")
INDEXER_OF_POOLS = ("index_qk_proj", "block_topk", "compress_ratio", "index_n_heads", "index_head_dim")


def _has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


def _convolution_state(convolution: nn.Conv1d) -> int:
    """Inputs that a causal convolution must remember: all of its window but the current token."""
    return convolution.dilation[0] * _remembered(convolution.kernel_size[0], convolution.in_channels)


def _remembered(kernel_size: int, channels: int) -> int:
    return channels * (kernel_size - 1)


def _first(module: nn.Module, names: tuple[str, ...]) -> nn.Linear | None:
    found = (getattr(module, name, None) for name in names)
    return next((child for child in found if isinstance(child, nn.Linear)), None)


RECOGNISERS: tuple[Callable[[Any], Mixer | None], ...] = (
    _latent_attention,
    _compressed_attention,
    _gated_delta_net,
    _kimi_delta_attention,
    _lightning_attention,
    _mamba,
    _mamba2,
    _short_convolution,
    _relative_position_attention,
    _softmax_attention,
    _convolved_attention,
    _convolution_of_the_stream,
    _compressed_convolutional_attention,
    _mixture_of_attention_heads,
)

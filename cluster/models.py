"""A described model as text for people. It computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PARAMS = {
    "routed experts": "routed_expert_params", "shared experts": "shared_expert_params", "dense FFN": "dense_ffn_params",
    "mixers": "mixer_params", "routers": "router_params", "norms": "norm_params", "embedding": "embedding_params",
    "lm_head": "lm_head_params",
}  # fmt: skip
UNKNOWN = "unknown"


def model_text(found: Mapping[str, Any]) -> str:
    """The document of `moecap-cluster model --json` in a few lines."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    total, active = found["total_params"], found["active_params"]
    yield f"{found['model']} ({found['model_type']}; {found['origin']}, {found['source']})"
    yield f"  parameters    {_count(total)} in all, {_count(active)} active per token ({active / total:.1%})"
    published = found["published"]
    if published:
        figures = f"{published['total']} / {published['active'] or '-'}"
        note = f"; {published['note']}" if published["note"] else ""
        yield f"  published     {figures} ({published['source']}{note})"
    yield f"  layers        {found['num_layers']}, of them {found['num_moe_layers']} with experts"
    yield f"  experts       {found['num_experts']}, top-{found['top_k']}, {found['num_shared_experts']} shared; " + (
        f"one routed expert {_count(found['expert_params'])}"
    )
    yield "  by class      " + ", ".join(f"{name} {_count(found[key])}" for name, key in PARAMS.items() if found[key])
    for name, count in found["other_params"].items():
        yield f"  beside it     {name} {_count(count)}"
    if found["mtp_layers"] is None:
        yield f"  prediction    {UNKNOWN}: layers for speculative decoding that the configuration doesn't mention"
    if found["mtp_layers"]:
        size = UNKNOWN if found["mtp_params"] is None else _count(found["mtp_params"])
        yield f"  prediction    {found['mtp_layers']} layers for speculative decoding, {size}"
    stored_as = found["quantization"] or found["dtype"] or UNKNOWN
    yield f"  weights       {_bytes(found['weight_bytes_total'])} as {stored_as}"
    reads = ", ".join(f"{_bytes(value)} at {batch}" for batch, value in found["activated_weight_bytes"].items())
    yield f"  read a pass   {reads} tokens (expected, uniform routing)"
    yield f"  KV cache      {_cache(found, 'kv')}"
    if found["index_bytes_per_token"]:
        yield f"  indexer keys  {_cache(found, 'index')}"
    if found["state_bytes_per_sequence"] != 0:
        size = _bytes(found["state_bytes_per_sequence"])
        yield f"  state         {size} a sequence as {found['state_dtype'] or UNKNOWN}, at any length"
    scores = ", ".join(
        f"{value / 1e9:.3g} at {context}" for context, value in found["flops_per_token_attention_at_context"].items()
    )
    yield f"  GFLOPs/token  {found['flops_per_token_linear'] / 1e9:.3g} linear; attention {scores}"
    for note in found["notes"]:
        yield f"  note          {note}"


def _cache(found: Mapping[str, Any], kind: str) -> str:
    contexts = ", ".join(f"{_bytes(value)} at {one}" for one, value in found[f"{kind}_bytes_at_context"].items())
    return f"{_bytes(found[f'{kind}_bytes_per_token'])} a token as {found['kv_dtype'] or UNKNOWN}; {contexts}"


def _count(number: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def _bytes(number: float | None) -> str:
    if number is None:
        return UNKNOWN
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:g} B"

"""Published configurations against accounting worked out elsewhere, and a worked example's FLOPs."""

import json
from typing import Any

import published
import pytest
from published import DATA

from moecap.model import accounting
from moecap.records import ModelShape

GOLDEN: dict[str, dict[str, Any]] = {
    name.replace("--", "/"): values for name, values in json.loads((DATA / "golden_models.json").read_text()).items()
}
BF16_BYTES = 2


def account(shape: ModelShape) -> dict[str, Any]:
    """Everything that the golden file says, as derived here."""
    params = accounting.params_by_class(shape)
    moe_layers = [layer for layer in shape.layers if layer.num_experts]
    (moe,) = {(m.expert_params, m.num_experts, m.top_k, m.num_shared_experts) for m in moe_layers}
    return {
        "total_params": accounting.total_params(shape),
        "routed_expert_params": params["routed_expert"],
        "expert_params": moe[0],
        "shared_expert_params": params["shared_expert"],
        "dense_ffn_params": params["dense_ffn"],
        "mixer_params": params["mixer"],
        "router_params": params["router"],
        "norm_params": params["norm"],
        "embedding_params": params["embedding"],
        "lm_head_params": params["lm_head"],
        "active_params": accounting.active_params(shape),
        "num_layers": len(shape.layers),
        "num_moe_layers": len(moe_layers),
        "num_experts": moe[1],
        "top_k": moe[2],
        "num_shared_experts": moe[3],
        "kv_bytes_per_token": accounting.kv_bytes_per_token(shape, BF16_BYTES),
        "flops_per_token_linear": accounting.flops_per_token_linear(shape),
    }


@pytest.mark.parametrize("model", GOLDEN)
def test_accounting_is_exact(model: str) -> None:
    golden = GOLDEN[model]
    shape = published.shape(model)
    derived = account(shape)
    assert derived == {key: golden[key] for key in derived}
    for context, expected in golden["kv_bytes_at_context"].items():
        assert accounting.kv_bytes_at_context(shape, int(context), BF16_BYTES) == expected
    for tokens, expected in golden["activated_weight_bytes"].items():
        widths = dict.fromkeys(accounting.params_by_class(shape), BF16_BYTES)
        found = accounting.activated_weight_bytes(shape, widths, accounting.uniform(int(tokens)))
        assert found == pytest.approx(expected, rel=1e-12)  # the file is rounded to a thousandth of a byte


def test_every_golden_value_is_compared() -> None:
    compared = {*account(published.shape("Qwen/Qwen3-30B-A3B")), "kv_bytes_at_context", "notes"}
    assert set(GOLDEN["Qwen/Qwen3-30B-A3B"]) == {*compared, "activated_weight_bytes"}


def test_flops_of_the_worked_example() -> None:
    """Qwen3-30B-A3B: 3 prompts of 100, 50 and 7 tokens in one prefill pass, then one decode pass."""
    shape = published.shape("Qwen/Qwen3-30B-A3B")
    per_token = 2 * sum(layer.mixer_matmul_params + layer.ffn_matmul_params_per_token for layer in shape.layers)
    per_logits_row = 2 * shape.lm_head_matrix_params
    per_pair = sum(layer.score_flops_per_pair for layer in shape.layers)
    assert (per_token, per_logits_row, per_pair) == (5_460_983_808, 622_329_856, 786_432)
    causal_pairs = 100 * 101 // 2 + 50 * 51 // 2 + 7 * 8 // 2
    assert 157 * per_token + 3 * per_logits_row + causal_pairs * per_pair == 864_237_649_920
    assert 3 * per_token + 3 * per_logits_row + (101 + 51 + 8) * per_pair == 18_375_770_112


def experts_by_name(config: dict[str, Any]) -> tuple[int, int]:
    """Experts and top-k as the configuration file itself spells them; Switch Transformers are top-1 by construction."""
    text = config.get("text_config", config)
    ffn = text.get("ffn_config", {})
    experts = [text.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")]
    top_k = [
        text.get(k) for k in ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk", "num_experts_per_token")
    ]
    found = (
        next(n for n in [*experts, ffn.get("moe_num_experts")] if n),
        next(k for k in [*top_k, ffn.get("moe_top_k"), 1] if k),
    )
    return found[0], found[1][0] if isinstance(found[1], list) else found[1]


@pytest.mark.slow
@pytest.mark.parametrize("model", published.BUILT)
def test_every_configuration_builds_with_its_experts(model: str) -> None:
    shape = published.shape(model)
    found = {(layer.num_experts, layer.top_k) for layer in shape.layers if layer.num_experts}
    assert found == {experts_by_name(published.raw_config(model))}
    assert shape.vocab_size * shape.hidden_size == shape.lm_head_matrix_params


@pytest.mark.slow
@pytest.mark.parametrize("model", published.BUILT)
def test_a_layer_of_every_model_sums_up(model: str) -> None:
    """What one token uses is part of what there is, and all classes together are all parameters."""
    shape = published.shape(model)
    assert accounting.active_params(shape) < accounting.total_params(shape) + shape.lm_head_matrix_params
    for layer in shape.layers:
        held = layer.router_params + layer.shared_expert_params + layer.dense_ffn_params + layer.norm_params
        assert 0 <= layer.ffn_matmul_params_per_token <= held + layer.top_k * layer.expert_params
        assert layer.mixer_matmul_params <= layer.mixer_params

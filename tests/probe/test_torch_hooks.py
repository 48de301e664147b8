"""The probe on real modules: what it sees is what the router did, for every family that transformers has."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_families import OWN, tiny

from moecap.errors import UnsupportedModelError
from moecap.probe.counts import broken_invariant
from moecap.probe.torch_hooks import RouterProbe
from moecap.records import RoutingRecord

MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
REAL_TOKENS = 11

NOT_CAUSAL_LM = {
    "deepseek_ocr2", "diffusion_gemma", "ernie4_5_vl_moe", "glm4v_moe", "glm5_next", "mistral4", "mistral_large4",
    "muse_spark", "openai_privacy_filter", "qwen3_omni_moe", "qwen3_vl_moe", "step3p7", "unlimited_ocr",
}  # fmt: skip
"""Folders with the seam that AutoModelForCausalLM can't build alone."""
UNBUILT = {"dbrx", "dots3_note", "qwen4_exp"}
"""Their configurations can't be shrunk, or built from defaults, in this version of transformers."""


def ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(1))


def prefill_and_decode(net: Any, probe: RouterProbe) -> tuple[Sequence[RoutingRecord], Sequence[RoutingRecord]]:
    with probe, torch.inference_mode():
        probe.begin_pass(MASK.bool())
        out = net(input_ids=ids(), attention_mask=MASK, use_cache=True)
        prefill = probe.end_pass()
        probe.begin_pass(None)
        longer = torch.nn.functional.pad(MASK, (0, 1), value=1)
        net(input_ids=ids()[:, :1], attention_mask=longer, past_key_values=out.past_key_values, use_cache=True)
        decode = probe.end_pass()
    return prefill.layer_records(0, True), decode.layer_records(1, False)


@pytest.mark.parametrize("family", sorted(OWN))
def test_every_family_conserves_tokens_with_padding_and_in_cached_decode(family: str) -> None:
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    if family == "aria_text" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("seen to lack the seam in transformers 5.17, to have it in 5.23")
    net = tiny(family)
    probe = RouterProbe(net)
    prefill, decode = prefill_and_decode(net, probe)
    layers = {one.layer: one for one in probe.layers}
    assert [one.layer for one in prefill] == [one.layer for one in decode] == sorted(layers)
    for tokens, records in ((REAL_TOKENS, prefill), (2, decode)):
        for one in records:
            layer = layers[one.layer]
            assert broken_invariant(sum(one.counts), one.distinct, tokens, layer.top_k, layer.num_experts) is None
    assert all(one.token_experts is not None and len(one.token_experts) == REAL_TOKENS for one in prefill)
    assert all(one.token_experts is None for one in decode)
    assert probe.observer_ns > 0


def test_no_family_with_the_seam_is_missing_above() -> None:
    folder = Path(transformers.__file__).parent / "models"
    declared = re.compile(r"def forward\([^)]*\b(?:top_k_index|router_indices)\b", re.S)
    found = {
        path.parent.name for path in folder.glob("*/modeling_*.py") if declared.search(path.read_text(encoding="utf-8"))
    }
    covered = {family.removesuffix("_text").removesuffix("_vl") for family in OWN}
    missing = {one for one in found if one.removesuffix("_vl") not in covered}
    assert missing <= NOT_CAUSAL_LM | UNBUILT


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_ids_are_the_top_k_of_the_router_logits_that_the_model_returns(family: str) -> None:
    net = tiny(family)
    probe = RouterProbe(net)
    with probe, torch.inference_mode():
        probe.begin_pass(MASK.bool())
        logits = net(input_ids=ids(), attention_mask=MASK, output_router_logits=True).router_logits
        seen = probe.end_pass().layer_records(0, True)
    real = MASK.bool().reshape(-1)
    for one, of_layer in zip(seen, logits, strict=True):
        expected = of_layer.reshape(len(real), -1).topk(2, dim=-1).indices
        assert one.token_experts is not None
        assert [set(chosen) for chosen in one.token_experts] == [set(row) for row in expected[real].tolist()]
        assert one.distinct == len(set(expected[real].reshape(-1).tolist()))
        assert one.distinct_physical == len(set(expected.reshape(-1).tolist()))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_ids_do_not_depend_on_how_experts_are_computed(implementation: str) -> None:
    net, reference = tiny("qwen3_moe"), tiny("qwen3_moe")
    net.set_experts_implementation(implementation)
    reference.set_experts_implementation("eager")
    seen, expected = (prefill_and_decode(one, RouterProbe(one)) for one in (net, reference))
    assert seen == expected


def test_the_model_computes_the_same_with_and_without_the_probe() -> None:
    net = tiny("qwen3_moe")
    with torch.inference_mode():
        without = net(input_ids=ids(), attention_mask=MASK).logits
        with RouterProbe(net) as probe:
            probe.begin_pass(None)
            observed = net(input_ids=ids(), attention_mask=MASK).logits
    assert torch.equal(without, observed)


def test_nothing_is_heard_outside_a_pass_or_after_detaching() -> None:
    net = tiny("qwen3_moe")
    probe = RouterProbe(net)
    with torch.inference_mode():
        with probe:
            net(input_ids=ids())  # nobody asked about this pass
            probe.begin_pass(None)
            assert probe.end_pass().layer_records(0, False) == ()
        probe.begin_pass(None)
        net(input_ids=ids())
        assert probe.end_pass().layer_records(0, False) == ()
    assert probe.observer_ns == 0
    with pytest.raises(RuntimeError, match="begin_pass"):
        probe.end_pass()


def test_a_model_without_routed_experts_is_refused() -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UnsupportedModelError, match="llama"):
        RouterProbe(transformers.AutoModelForCausalLM.from_config(config))

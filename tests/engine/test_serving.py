"""The serving loop against `generate`: same tokens, whatever the batch; and its records add up."""

from typing import Any

import pytest
import torch
import transformers

from moecap.engine.serving import Serving
from moecap.probe.torch_hooks import RouterProbe
from moecap.records import Phase, Request, ServeRecord

SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
         "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
         "num_key_value_heads": 4},
    ),
}  # fmt: skip
LENGTHS = (5, 17, 3, 9, 30, 4, 11)


def tiny(family: str) -> Any:
    name, own = FAMILIES[family]
    torch.manual_seed(1)
    config = getattr(transformers, name)(**{**SMALL, **own})
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def serving(net: Any, **changes: Any) -> Serving:
    asked = {"max_context_tokens": 128, "eos_ids": frozenset({2}), "pad_id": 0, "disk": None, **changes}
    return Serving(net=net, probe=RouterProbe(net), **asked)


def requests(max_new_tokens: int = 12, **changes: Any) -> list[Request]:
    draw = torch.Generator().manual_seed(3)
    return [
        Request(request_id=f"r{i}", item_index=i, max_new_tokens=max_new_tokens, **changes,
                prompt_token_ids=tuple(torch.randint(3, 97, (length,), generator=draw).tolist()))
        for i, length in enumerate(LENGTHS)
    ]  # fmt: skip


def generated(net: Any, request: Request, **changes: Any) -> tuple[int, ...]:
    """What transformers' own generate makes of one prompt alone."""
    asked = {"do_sample": False, "max_new_tokens": request.max_new_tokens, "min_new_tokens": request.max_new_tokens}
    ids = torch.tensor([request.prompt_token_ids])
    out = net.generate(ids, attention_mask=torch.ones_like(ids), **{**asked, **changes})
    return tuple(out[0, ids.shape[1] :].tolist())


def check_records(served: ServeRecord, concurrency: int) -> None:
    assert all(one.valid for one in served.passes), [one.invalid_reason for one in served.passes]
    assert [one.pass_id for one in served.passes] == list(range(len(served.passes)))
    for before, after in zip(served.passes, served.passes[1:], strict=False):
        assert after.started_ns == before.started_ns + before.duration_ns  # no gap is lost
    prefills = [one for one in served.passes if one.phase is Phase.PREFILL]
    decodes = [one for one in served.passes if one.phase is Phase.DECODE]
    assert sum(one.scheduled_tokens for one in prefills) == sum(LENGTHS)
    assert sum(one.logits_tokens for one in served.passes) == sum(one.output_tokens for one in served.requests)
    assert max(one.num_requests for one in decodes) <= concurrency
    assert all(one.scheduled_tokens == one.num_requests and one.padded_tokens == 0 for one in decodes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("concurrency", "staggered"), [(1, True), (3, True), (7, False)])
def test_tokens_equal_generate_whatever_the_batch(family: str, concurrency: int, staggered: bool) -> None:
    net = tiny(family)
    engine = serving(net)
    assert engine.continuous == (family != "gpt_oss")  # a sliding window's cache can't be re-aligned
    served = engine.closed_loop(requests(), concurrency, staggered=staggered, keep_tokens=False)
    assert [one.request_id for one in served.requests] == [f"r{i}" for i in range(len(LENGTHS))]
    for request, record in zip(requests(), served.requests, strict=True):
        # eos is suppressed by min_new_tokens there and ignored here: compare up to the first place where it wins
        expected = generated(net, request)
        upto = record.output_token_ids.index(2) if 2 in record.output_token_ids else len(expected)
        assert record.output_token_ids[:upto] == expected[:upto]
        assert len(record.chunk_ns) == record.output_tokens == 12
        assert record.sent_ns < record.chunk_ns[0] < record.chunk_ns[-1] == record.end_ns
    check_records(served, concurrency)


def test_routing_of_a_padded_batch_counts_real_tokens_only() -> None:
    net = tiny("qwen3_moe")
    served = serving(net).closed_loop(requests(), 7, staggered=False, keep_tokens=True)
    first = served.passes[0]
    assert first.padded_tokens == 7 * max(LENGTHS) - sum(LENGTHS)
    layers = [one for one in served.routing if one.pass_id == 0]
    assert [one.layer for one in layers] == [0, 1]
    for one in layers:
        assert sum(one.counts) == sum(LENGTHS) * 2
        assert one.token_experts is not None and len(one.token_experts) == sum(LENGTHS)
    alone = serving(net).closed_loop(requests(), 1, staggered=False, keep_tokens=False)
    prefill_counts = [
        sum(counts)
        for counts in zip(
            *(r.counts for r in alone.routing if r.layer == 0 and alone.passes[r.pass_id].phase is Phase.PREFILL),
            strict=True,
        )
    ]
    assert prefill_counts == list(layers[0].counts)  # the same prompts one by one fire the same experts


def test_generation_ends_at_end_of_sequence() -> None:
    net = tiny("mixtral")
    free = serving(net).closed_loop(requests(), 3, staggered=False, keep_tokens=False).requests
    stop = free[1].output_token_ids[4]  # make an ordinary token the end of sequence
    ended = serving(net, eos_ids=frozenset({stop})).closed_loop(
        requests(ignore_eos=False), 3, staggered=False, keep_tokens=False
    )
    for before, after in zip(free, ended.requests, strict=True):
        expected = before.output_token_ids
        upto = expected.index(stop) + 1 if stop in expected else len(expected)
        assert after.output_token_ids == expected[:upto]


def test_sampling_is_reproducible_and_independent_of_the_batch() -> None:
    net = tiny("qwen3_moe")
    hot = requests(temperature=1.5, top_p=0.9, seed=5)
    alone, together = (serving(net).closed_loop(hot, c, staggered=False, keep_tokens=False).requests for c in (1, 7))
    assert [one.output_token_ids for one in alone] == [one.output_token_ids for one in together]
    other = serving(net).closed_loop(requests(temperature=1.5, seed=6), 7, staggered=False, keep_tokens=False).requests
    assert [one.output_token_ids for one in other] != [one.output_token_ids for one in alone]
    narrow = (
        serving(net).closed_loop(requests(temperature=1.5, top_p=1e-9), 7, staggered=False, keep_tokens=False).requests
    )
    greedy = serving(net).closed_loop(requests(), 7, staggered=False, keep_tokens=False).requests
    assert [one.output_token_ids for one in narrow] == [one.output_token_ids for one in greedy]


def test_a_request_beyond_the_context_fails_at_its_index_and_the_others_finish() -> None:
    served = serving(tiny("qwen3_moe"), max_context_tokens=40).closed_loop(
        requests(), 3, staggered=True, keep_tokens=False
    )
    assert [one.status for one in served.requests] == ["ok"] * 4 + ["failed"] + ["ok"] * 2
    failed = served.requests[4]
    assert failed.error is not None and "42 tokens" in failed.error and "40" in failed.error
    assert (failed.input_tokens, failed.output_tokens, failed.first_token_ns) == (30, 0, None)

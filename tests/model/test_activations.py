"""Activations that one token moves through a layer, against counts made by hand from the layer's drawing.

All tiny models have a hidden state of 64, 4 heads, 8 experts of width 48 and top-2; per token and operator: input +
output. The docstring of `moecap.model.activations` lists the operators.
"""

import pytest
from tiny_models import tiny

from moecap.model.cards import find_card
from moecap.model.shape import shape_of

NORMS = 2 * (64 + 64)  # before the mixer and before the feed-forward
RESIDUALS = 2 * (64 + 64 + 64)  # two additions: two operands and a sum
ROUTER = 64 + 8
ONE_EXPERT = (64 + 96) + (96 + 48) + (48 + 64)  # gate and up in one product, activation and gating, down
EXPERTS = 2 * ONE_EXPERT + (2 * 64 + 64)  # the two chosen ones, and their sum
GQA_PROJECTIONS = (64 + 128) + (64 + 64) + (64 + 64) + (128 + 64)  # q: 4 heads of 32; k, v: 2 heads of 32; o
GQA_ATTENTION = 128 + 64 + 64 + 128  # query, own key, own value, output
MLA_PROJECTIONS = (64 + 48) + (48 + 192) + (64 + 48) + (32 + 224) + (96 + 64)  # q_a, q_b, kv_a, kv_b, o
MLA_ATTENTION = 4 * (32 + 16) + (32 + 16) + 4 * 32  # absorbed: query over latent and rope, own latent and rope, output

# query of 2 heads of 24, key, weights; and what the scores take of them
INDEXER = (48 + 48) + (64 + 24) + (64 + 2) + (2 * 24 + 2 + 24)
V4_PROJECTIONS = (64 + 48) + (48 + 128) + (64 + 32) + (128 + 32) + (32 + 64)  # q_a, q_b, key-value, o in two groups, o
V4_ATTENTION = 4 * 32 + 32 + 4 * 32
# two streams, twice: weights of 128 -> 8 of them, brought together, and mixed with what comes back
STREAMS = 2 * ((128 + 8) + (2 * 64 + 64) + (2 * 64 + 64 + 2 * 64))


def compressor(width: int) -> int:
    """Values and gates of a token, from two products, and again as what it is given."""
    return 2 * (64 + width) + 2 * width


V4_INDEXER = compressor(2 * 16) + (48 + 2 * 16) + (64 + 2) + (2 * 16 + 2)


def feed_forward(width: int) -> int:
    """Gate, up and down as three products, activation and gating between them."""
    return (64 + width) + (64 + width) + (width + width + width) + (width + 64)


@pytest.mark.parametrize(
    ("family", "layer", "by_hand", "total"),
    [
        # 256 + 640 + 384 + 72 + (832 + 192) + 384
        ("qwen3_moe", 0, NORMS + GQA_PROJECTIONS + GQA_ATTENTION + ROUTER + EXPERTS + RESIDUALS, 2760),
        # a shared expert of width 80 and its gate, 64 -> 1: 432 + 240 + 65 more
        ("qwen2_moe", 0,
         NORMS + GQA_PROJECTIONS + GQA_ATTENTION + ROUTER + EXPERTS + feed_forward(80) + (64 + 1) + RESIDUALS, 3497),
        # two shared experts of width 48, held as one of 96: 256 + 880 + 368 + 72 + 1,024 + 768 + 384
        ("deepseek_v3", 1,
         NORMS + MLA_PROJECTIONS + MLA_ATTENTION + ROUTER + EXPERTS + feed_forward(96) + RESIDUALS, 3752),
        # its first layer is dense, of width 96: 256 + 880 + 368 + 768 + 384
        ("deepseek_v3", 0, NORMS + MLA_PROJECTIONS + MLA_ATTENTION + feed_forward(96) + RESIDUALS, 2656),
        # and 324 for an indexer
        ("deepseek_v32", 0, NORMS + MLA_PROJECTIONS + MLA_ATTENTION + INDEXER + feed_forward(96) + RESIDUALS, 2980),
        # 256 + 640 + 288 + 72 + 1,024 + 480 + 1,296; for entries of 8 tokens 256 more, of 4 and their indexer 384 + 436
        ("deepseek_v4", 0,
         NORMS + V4_PROJECTIONS + V4_ATTENTION + ROUTER + EXPERTS + feed_forward(48) + STREAMS, 4056),
        ("deepseek_v4", 2,
         NORMS + V4_PROJECTIONS + V4_ATTENTION + compressor(32) + ROUTER + EXPERTS + feed_forward(48) + STREAMS, 4312),
        ("deepseek_v4", 1,
         NORMS + V4_PROJECTIONS + V4_ATTENTION + compressor(2 * 32) + V4_INDEXER + ROUTER + EXPERTS + feed_forward(48)
         + STREAMS, 4876),
        # two shared experts of width 48 side by side; attention of 4 heads of 32 over 2, 4 x 6 relative states; a
        # router of 8 experts and 2 shared ones: 256 + 640 + 88 + 384 + 74 + 1,024 + 768 + 384
        ("inkling_text", 3,
         NORMS + GQA_PROJECTIONS + (64 + 24) + GQA_ATTENTION + (64 + 10) + EXPERTS + feed_forward(96) + RESIDUALS,
         3618),
        # experts of width 96, and in attention two of 2 heads of 16 with queries and output, over one kv_proj:
        # 256 + (128 + 2 * (96 + 96) + 192) + (64 + 64 + 64) + 72 * 2 + (2 * (256 + 288 + 160) + 192) + 384
        ("jetmoe", 0,
         NORMS + (64 + 64) + 2 * ((64 + 32) + (32 + 64)) + (2 * 64 + 64) + (64 + 64 + 64) + 2 * ROUTER
         + 2 * ((64 + 192) + (192 + 96) + (96 + 64)) + (2 * 64 + 64) + RESIDUALS, 3280),
        # two experts of one row in and one out, found by 2 x 4 keys, beside a dense network of width 96; a mask from
        # values, 64 -> 2: 256 + 640 + 66 + 384 + 72 + (264 + 192) + 768 + 384
        ("doge", 0,
         NORMS + GQA_PROJECTIONS + (64 + 2) + GQA_ATTENTION + (64 + 8) + 2 * ((64 + 1) + (1 + 1) + (1 + 64))
         + (2 * 64 + 64) + feed_forward(96) + RESIDUALS, 3026),
    ],
)  # fmt: skip
def test_a_layer_by_hand(family: str, layer: int, by_hand: int, total: int) -> None:
    assert shape_of(tiny(family), family).layers[layer].activation_elements_per_token == by_hand == total


@pytest.mark.parametrize(
    ("model", "by_hand"),
    [
        # 48 heads of 128 over 8, in one product; 16 experts of width 10752, one under the other, top-4
        ("databricks/dbrx-instruct",
         2 * 2 * 6144 + (6144 + 8192) + (6144 + 2 * 1024 + 6144) + 2 * 6144 + (6144 + 16)
         + 4 * (2 * (6144 + 10752) + 3 * 10752 + (10752 + 6144)) + 5 * 6144 + 6 * 6144),
        # 32 gated heads of 128 over 4, four norms; 128 experts of width 1024, top-8, and one shared; the router's bias
        # is a parameter beside them, which moves nothing
        ("arcee-ai/Trinity-Mini",
         4 * 2 * 2048 + 3 * (2048 + 4096) + 2 * (2048 + 512) + (4096 + 2 * 512 + 4096) + (2048 + 128)
         + 8 * ((2048 + 2048) + 3 * 1024 + (1024 + 2048)) + 9 * 2048
         + 2 * (2048 + 1024) + 3 * 1024 + (1024 + 2048) + 6 * 2048),
        # a layer of experts alone: one norm, 512 experts of width 2688, top-22, ungated, in a space of 1024, one shared
        # expert of width 5376
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
         2 * 4096 + (4096 + 512) + 2 * (4096 + 1024) + 22 * ((1024 + 2688) + 2 * 2688 + (2688 + 1024)) + 23 * 1024
         + 2 * (4096 + 5376) + 2 * 5376 + 3 * 4096),
    ],
)  # fmt: skip
def test_a_published_layer_by_hand(model: str, by_hand: int) -> None:
    card = find_card(model)
    assert card is not None
    assert max(layer.activation_elements_per_token for layer in card.shape.layers) == by_hand


def test_another_expert_per_token_moves_its_own_and_a_summand() -> None:
    """416 for its products and 64 that the sum reads."""
    two, three = (
        shape_of(tiny("qwen3_moe", num_experts_per_tok=k), "x").layers[0].activation_elements_per_token for k in (2, 3)
    )
    assert three - two == 416 + 64

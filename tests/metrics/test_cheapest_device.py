"""What a run needed, and the cheapest device that offers it: by hand, and as properties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hand_made import HELD, SHAPE, a_run, one_pass, routed, view
from hypothesis import given
from hypothesis import strategies as st

from moecap.hardware.catalogue import DeviceSpec, find_device
from moecap.metrics.cheapest_device import Chosen, cheapest_device
from moecap.metrics.needs import Needs, workspace_bytes
from moecap.prices.uncertain import exactly
from moecap.records import Phase

PREFILL = one_pass(0, Phase.PREFILL, 0, 1.0, (3,), (3,))
DECODE = one_pass(1, Phase.DECODE, 1, 2.0, (1, 1), (5, 7))
ROUTING = (routed(0, (3, 1, 1, 1)), routed(1, (2, 2, 0, 0)))


def test_needs_by_hand() -> None:
    """Held: weights 400 + 800 bytes in all tiers; decode keeps 12 tokens x 4 elements x 2 bytes; its workspace is 2
    rows x (30 + 5) elements and 2 x 20 logits of 4 bytes: 440, prefill's (3 x 35 + 20) x 4 = 500.

    Prefill, 1 s: mixers 400 + 4 experts 800 + KV read 24 + router 40 + norms 44 + lm_head 400 + 3 embedding rows 60 +
    KV written 24 + activations (3 x 35 + 35) x 4 = 560 bytes: 2352 bytes/s. Decode: 1996 bytes in 2 s. FLOPs of
    prefill: 3 x 2 x (90 + 110) + 2 x 100 + 8 x 6 pairs = 1448 a second; of decode: 1296 in 2 s. Over both passes less
    than in prefill alone.
    """
    needs = view(a_run(passes=(PREFILL, DECODE), routing=ROUTING)).needs
    assert needs is not None
    assert needs.memory_bytes == 1200 + 12 * 4 * 2 + 500
    assert needs.memory_bytes_per_s == pytest.approx(2352)
    assert needs.flops_per_s == pytest.approx({"float32": 1448})


def test_of_decode_alone_the_achieved_rates_are_its_own() -> None:
    needs = view(a_run(passes=(DECODE,), routing=ROUTING[1:])).needs
    assert needs is not None
    assert needs.memory_bytes_per_s == pytest.approx(1996 / 2)
    assert needs.flops_per_s == pytest.approx({"float32": 1296 / 2})
    assert needs.memory_bytes == 1200 + 96 + 440


def test_padding_rows_take_workspace_and_no_pass_needs_nothing() -> None:
    padded = replace(DECODE, padded_tokens=6)
    run = view(a_run(passes=(padded,), routing=ROUTING[1:]))
    assert workspace_bytes(SHAPE, HELD, run.passes) == (8 * 35 + 2 * 20) * 4
    assert view(a_run()).needs is None


CARD = replace(
    find_device("nvidia-l4-24gb"), key="card", memory_bytes=100, memory_bytes_per_s=100.0, link_bytes_per_s=None,
    dense_flops_per_s={"bfloat16": 100.0, "int8": 200.0},
)  # fmt: skip
NEEDS = Needs(memory_bytes=80, memory_bytes_per_s=50, flops_per_s={"bfloat16": 60})


def chosen(
    needs: Needs, *specs: DeviceSpec, num_devices: int = 1, link: float | None = None, **prices: float | None
) -> str | None:
    found = cheapest_device(
        needs, specs, lambda spec: None if (usd := prices.get(spec.key)) is None else exactly(usd),
        num_devices=num_devices, link_bytes_per_s=link,
    )  # fmt: skip
    return None if found is None else found.label


def test_the_cheapest_of_those_that_are_enough() -> None:
    twin = replace(CARD, key="twin")
    assert chosen(NEEDS, CARD, twin, card=5, twin=4) == "1 x twin"
    assert chosen(NEEDS, CARD, twin, card=5, twin=None) == "1 x card", "without a price it can't be chosen"
    assert chosen(NEEDS, CARD, twin, card=5, twin=5) == "1 x card", "of equal prices the first"


@pytest.mark.parametrize(
    "lacks",
    [
        {"memory_bytes": 79}, {"memory_bytes": None}, {"memory_bytes_per_s": 49.0}, {"memory_bytes_per_s": None},
        {"dense_flops_per_s": {"bfloat16": 59.0}}, {"dense_flops_per_s": {"int8": 1e9}}, {"kind": "system"},
        {"kind": "cpu"},
    ],
)  # fmt: skip
def test_what_is_too_little_or_unknown_is_not_enough(lacks: dict[str, object]) -> None:
    poor = replace(CARD, key="poor", **lacks)  # type: ignore[arg-type]
    assert chosen(NEEDS, poor, poor=1) is None
    assert chosen(NEEDS, poor, CARD, poor=1, card=9) == "1 x card"


def test_exactly_enough_is_enough() -> None:
    just = replace(CARD, memory_bytes=80, memory_bytes_per_s=50.0, dense_flops_per_s={"bfloat16": 60.0})
    assert chosen(NEEDS, just, card=1) == "1 x card"


def test_every_dtype_that_was_used_counts() -> None:
    mixed = replace(NEEDS, flops_per_s={"bfloat16": 60, "int8": 201})
    assert chosen(mixed, CARD, card=1) is None


def test_a_run_on_several_devices_may_need_one_or_as_many_with_a_link() -> None:
    """120 bytes don't fit one card; two with a link of 30 hold 60 each. One large device needs no link."""
    needs = Needs(memory_bytes=120, memory_bytes_per_s=150, flops_per_s={"bfloat16": 150})
    linked = replace(CARD, key="linked", link_bytes_per_s=30.0)
    large = replace(
        CARD, key="large", memory_bytes=200, memory_bytes_per_s=200.0, dense_flops_per_s={"bfloat16": 200.0}
    )
    assert chosen(needs, linked, linked=1) is None
    assert chosen(needs, linked, linked=1, num_devices=2, link=30.0) == "2 x linked"
    assert chosen(needs, linked, linked=1, num_devices=2, link=31.0) is None, "the link is too slow"
    assert chosen(needs, linked, linked=1, num_devices=2) is None, "how fast it must be is unknown"
    assert chosen(needs, CARD, card=1, num_devices=2, link=1.0) is None, "how fast its link is is unknown"
    assert chosen(needs, linked, large, linked=3, large=5, num_devices=2, link=30.0) == "1 x large"
    assert chosen(needs, linked, large, linked=2, large=5, num_devices=2, link=30.0) == "2 x linked"


def test_the_price_is_that_of_all_of_them() -> None:
    linked = replace(CARD, link_bytes_per_s=30.0)
    needs = replace(NEEDS, memory_bytes=120)
    found = cheapest_device(needs, [linked], lambda _: exactly(7), num_devices=2, link_bytes_per_s=1.0)
    assert found == Chosen(spec=linked, count=2, price=exactly(14))


AMOUNTS = st.floats(1, 1000)
SPECS = st.lists(
    st.tuples(st.integers(1, 1000), AMOUNTS, AMOUNTS, st.one_of(st.none(), st.floats(1, 1000))), min_size=1, max_size=8
)


@given(AMOUNTS, AMOUNTS, AMOUNTS, SPECS)
def test_it_holds_the_model_as_fast_and_nothing_cheaper_does(
    memory: float, bandwidth: float, flops: float, offers: Sequence[tuple[int, float, float, float | None]]
) -> None:
    specs = [
        replace(CARD, key=f"{i}", memory_bytes=a, memory_bytes_per_s=b, dense_flops_per_s={"bfloat16": c})
        for i, (a, b, c, _) in enumerate(offers)
    ]
    prices = {f"{i}": price for i, (*_, price) in enumerate(offers)}
    needs = Needs(memory_bytes=memory, memory_bytes_per_s=bandwidth, flops_per_s={"bfloat16": flops})
    found = cheapest_device(needs, specs, lambda one: None if (p := prices[one.key]) is None else exactly(p))
    enough = [p for a, b, c, p in offers if p is not None and a >= memory and b >= bandwidth and c >= flops]
    assert (found.price.value if found else None) == min(enough, default=None)


@given(SPECS, st.floats(1, 100))
def test_needing_more_never_costs_less(offers: Sequence[tuple[int, float, float, float | None]], more: float) -> None:
    specs = [replace(CARD, key=f"{i}", memory_bytes=one[0]) for i, one in enumerate(offers)]

    def usd(needs: Needs) -> float:
        found = cheapest_device(needs, specs, lambda one: exactly(offers[int(one.key)][3] or 1.0))
        return found.price.value if found else float("inf")

    assert usd(NEEDS) <= usd(replace(NEEDS, memory_bytes=NEEDS.memory_bytes * more))

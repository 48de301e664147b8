"""Both price kinds and cost bases side by side, bounds of prices, the footprint's device, and the paper's formula."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hand_made import a_run, host, one_pass, performance_point, request, routed, view
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.hardware.catalogue import catalogue
from moecap.metrics import cost
from moecap.metrics.declare import METRICS, Observed
from moecap.metrics.reduce import AXES, reduce_runs
from moecap.records import CapSpec, CostSpec, DeviceInfo, Metric, NodeInfo, Phase, Placement, RepeatsSpec, StudyPlan
from moecap.report import console_table
from moecap.store import RunData

assert AXES
YEAR_S = 365.25 * 24 * 3600
WHOLE = {
    "requests": (request(0, 1.0, (2.0, 3.0, 4.0, 5.0)),),
    "passes": (one_pass(0, Phase.DECODE, 0, 2.0, (1, 1), (5, 7)),), "routing": (routed(0, (2, 2, 0, 0)),),
}  # fmt: skip
"""Four tokens in 10 s; needs 1736 bytes, 998 bytes/s and 648 FLOP/s in float32, which any device has."""
PRICED: dict[str, Any] = {
    "hosts": {"h": {"price_usd": {"value": 3155.76, "low": 1577.88, "high": 6311.52}, "tdp_w": 100.0,
                    "rental_usd_per_hour": {"value": 3.6, "relative": 0.5}, "label": "bench"}},
    "ownership": {"lifetime_years": 2, "duty_cycle": 0.5, "label": "by hand"},
    "energy": {"usd_per_kwh": {"value": 0.36, "low": 0.18, "high": 0.72}, "pue": 1.5, "label": "mains"},
    "devices": {"nvidia-l4-24gb": {"price_usd": 31.5576, "tdp_w": 72, "rental_usd_per_hour": 0.036,
                                   "label": "bargain"}},
}  # fmt: skip
"""The host, of which the placement takes half, is 1e-4 USD/s (half to double) or 1e-3 rented; energy 1e-7 USD/J. The
bargain is the cheapest device of all: 1e-6 USD/s, or 1e-5 rented."""
COST = "usd_per_million_output_tokens"
WAYS = [("node", "purchase"), ("node", "rental"), ("footprint", "purchase"), ("footprint", "rental")]


def observed(name: str, asked: CostSpec | None = None, run: RunData | None = None, **prices: Any) -> list[Observed]:
    return list(METRICS[name].observe(view(run or a_run(**WHOLE), cost=asked, **(prices or PRICED))))


def by_way(name: str, **how: Any) -> dict[tuple[str, str], Observed]:
    found = {(one.qualifiers["cost_basis"], one.qualifiers["price_kind"]): one for one in observed(name, **how)}
    assert len(found) == 4
    return found


def test_every_way_by_hand() -> None:
    """10 s of half of the host, and 500 J x 1.5; of the bargain, and 720 J x 1.5. Rent has no energy in it."""
    found = {way: one.numerator for way, one in by_way(COST).items()}
    assert found == pytest.approx({WAYS[0]: 5e-4 + 7.5e-5, WAYS[1]: 5e-3, WAYS[2]: 1e-5 + 1.08e-4, WAYS[3]: 1e-4})
    energy = {way: one.numerator for way, one in by_way("energy_usd_per_million_output_tokens").items()}
    assert energy == pytest.approx({WAYS[0]: 7.5e-5, WAYS[1]: 7.5e-5, WAYS[2]: 1.08e-4, WAYS[3]: 1.08e-4})
    hardware = {way: one.numerator for way, one in by_way("hardware_usd_per_million_total_tokens").items()}
    assert hardware == pytest.approx({WAYS[0]: 5e-4, WAYS[1]: 5e-3, WAYS[2]: 1e-5, WAYS[3]: 1e-4})


def test_the_ends_of_the_prices_are_carried() -> None:
    """Half and double the host's price and the energy's; the rent half and 1.5 times; the bargain's is one number."""
    bounds = {way: one.price_bounds for way, one in by_way(COST).items()}
    assert bounds[WAYS[0]] == pytest.approx((2.5e-4 + 3.75e-5, 1e-3 + 1.5e-4))
    assert bounds[WAYS[1]] == pytest.approx((2.5e-3, 7.5e-3))
    assert bounds[WAYS[2]] == pytest.approx((1e-5 + 5.4e-5, 1e-5 + 2.16e-4))


@pytest.mark.parametrize("way", WAYS)
def test_the_asked_way_comes_first(way: tuple[str, str]) -> None:
    first = observed(COST, CostSpec(basis=way[0], kind=way[1]))[0]  # type: ignore[arg-type]
    assert (first.qualifiers["cost_basis"], first.qualifiers["price_kind"]) == way


def test_the_footprint_names_its_device_and_says_that_it_is_modelled() -> None:
    told = by_way(COST)["footprint", "purchase"].told
    assert told["device"] == "1 x nvidia-l4-24gb" and told["prices"] == "bargain; by hand" and "modelled" in told
    rented = {
        **PRICED,
        "devices": {**PRICED["devices"], "amd-mi300x-192gb": {"rental_usd_per_hour": 0.01, "label": "x"}},
    }
    both = by_way(COST, **rented)
    assert both["footprint", "rental"].told["device"] == "1 x amd-mi300x-192gb", "each kind has its own cheapest"
    assert both["footprint", "purchase"].told["device"] == "1 x nvidia-l4-24gb"


def test_what_is_unknown_in_one_way_leaves_the_others() -> None:
    bare = {**PRICED, "hosts": {"h": {"price_usd": 10, "label": "bench"}}}
    found = by_way(COST, **bare)
    assert found["node", "rental"].missing == "no rental price is known (bench)"
    assert found["node", "purchase"].missing == "no counter was readable, and no TDP is known"
    assert found["footprint", "purchase"].numerator and found["footprint", "rental"].numerator
    no_pass = by_way(COST, run=a_run(requests=WHOLE["requests"]))
    assert no_pass["footprint", "purchase"].missing == "no valid pass of the phase ended inside the window"
    assert no_pass["node", "purchase"].numerator


def test_no_device_is_enough_for_a_model_larger_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {key: replace(spec, memory_bytes=1735) for key, spec in catalogue().items()}
    monkeypatch.setattr(cost, "catalogue", lambda: MappingProxyType(small))
    assert by_way(COST)["footprint", "purchase"].missing == cost.NOT_ENOUGH


def on_cards(key: str | None, placed: int, total: int) -> dict[str, Any]:
    devices = tuple(DeviceInfo(uuid=f"GPU-{i}", index=i, name="x", key=key, memory_bytes=1) for i in range(total))
    node = NodeInfo(
        node_id="n", hostname="h", kinds=frozenset({"gpu"}), cpu_model="c", num_cpus=8, memory_bytes=1, devices=devices
    )
    uuids = tuple(f"GPU-{i}" for i in range(placed))
    return {"node": node, "placement": Placement(node_id="n", hostname="h", kind="gpu", device_uuids=uuids, num_cpus=8)}


def test_both_bases_agree_on_the_only_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the host, whose price is known apart."""
    key = "nvidia-h100-sxm5-80gb"
    monkeypatch.setattr(cost, "catalogue", lambda: MappingProxyType({key: catalogue()[key]}))
    run = a_run(**WHOLE, **on_cards(key, 1, 1))
    found = by_way("hardware_usd_per_million_output_tokens", run=run)
    node, footprint = found["node", "purchase"].numerator, found["footprint", "purchase"].numerator
    assert node is not None and footprint is not None
    assert node - 1e-4 * 10 == pytest.approx(footprint) == pytest.approx(30_000 / YEAR_S * 10)
    rented = {way[0]: one.numerator for way, one in found.items() if way[1] == "rental"}
    assert rented["node"] == rented["footprint"] == pytest.approx(3.29 / 360)


def test_several_cards_may_be_replaced_by_as_many_with_as_fast_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two A100s with 600 GB/s: of devices that hold 868 bytes, two with such a link hold the run's 1736."""
    small = {
        key: replace(spec, memory_bytes=868) for key, spec in catalogue().items()
        if key in ("nvidia-a100-sxm4-80gb", "nvidia-h100-sxm5-80gb", "nvidia-l4-24gb")
    }  # fmt: skip
    monkeypatch.setattr(cost, "catalogue", lambda: MappingProxyType(small))
    placed = a_run(**WHOLE, **on_cards("nvidia-a100-sxm4-80gb", 2, 2))
    found = by_way(COST, run=placed)["footprint", "purchase"]
    assert found.told["device"] == "2 x nvidia-a100-sxm4-80gb", "the bargain has no such link"
    assert found.numerator == pytest.approx(2 * 15_000 / YEAR_S * 10 + 2 * 400 * 10 * 1.5e-7)
    unknown = by_way(COST, run=a_run(**WHOLE, **on_cards("no-such-card", 2, 2)))["footprint", "purchase"]
    assert unknown.missing == cost.NOT_ENOUGH + cost.NO_LINK


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-3, 1e3))
def test_cost_is_linear_in_the_prices(by: float) -> None:
    """Hardware in the host's price, energy in that of electricity, ends and all."""
    scaled = {
        **PRICED,
        "hosts": {"h": {**PRICED["hosts"]["h"], "price_usd": {"value": 3155.76 * by, "low": 1577.88 * by,
                                                             "high": 6311.52 * by}}},
        "energy": {**PRICED["energy"], "usd_per_kwh": {"value": 0.36 * by, "low": 0.18 * by, "high": 0.72 * by}},
    }  # fmt: skip
    before, after = by_way(COST)["node", "purchase"], by_way(COST, **scaled)["node", "purchase"]
    assert after.numerator == pytest.approx((before.numerator or 0) * by)
    assert after.price_bounds == pytest.approx([by * end for end in before.price_bounds or ()])


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 20), st.floats(0.01, 1), st.floats(1.1, 10))
def test_longer_or_busier_use_is_cheaper_in_proportion(years: float, duty: float, more: float) -> None:
    def usd(years: float, duty: float) -> float:
        owned = {**PRICED, "ownership": {"lifetime_years": years, "duty_cycle": duty, "label": "x"}}
        return by_way("hardware_usd_per_million_output_tokens", **owned)["node", "purchase"].numerator or 0.0

    assert usd(years * more, duty) == pytest.approx(usd(years, duty) / more)
    assert usd(years, duty / more) == pytest.approx(usd(years, duty) * more)


def test_the_paper_s_formula_charges_the_whole_price_to_the_window() -> None:
    """(half of 3155.76 USD + 500 J = 1/7200 kWh at 0.36 USD) / 4 tokens: no lifetime, no site losses."""
    (one,) = observed("moe_cap_usd_per_token")
    assert one.numerator == pytest.approx(1577.88 + 0.36 / 7200) and one.denominator == 4
    assert "MoE-CAP" in one.told["formula"] and one.told["R"] == "seconds of the window"
    assert one.price_bounds == pytest.approx((788.94 + 0.18 / 7200, 3155.76 + 0.72 / 7200))


def test_the_whole_price_is_shown_by_basis() -> None:
    found = {(one.qualifiers["cost_basis"], one.qualifiers.get("component")): one.numerator
             for one in observed("hardware_price_usd")}  # fmt: skip
    assert found == pytest.approx({("node", None): 1577.88, ("footprint", None): 31.5576, ("node", "host"): 1577.88})


# ------------------------------------------------------------------------------------------- as rows, CAP and tables


def plan(asked: CostSpec, **changes: Any) -> StudyPlan:
    return StudyPlan(name="s", store="store", points=(performance_point(),), repeats=RepeatsSpec(), cost=asked,
                     prices=PRICED, **changes)  # fmt: skip


def cost_rows(metrics: tuple[Metric, ...], level: str = "point") -> dict[tuple[str, str], Metric]:
    rows = [(json.loads(row.qualifiers), row) for row in metrics if row.metric == COST and row.level == level]
    return {(stated["cost_basis"], stated["price_kind"]): row for stated, row in rows}


@pytest.mark.parametrize("way", WAYS)
def test_cap_and_console_show_the_asked_way_among_rows_of_all(way: tuple[str, str]) -> None:
    asked = plan(CostSpec(basis=way[0], kind=way[1]))  # type: ignore[arg-type]
    found = reduce_runs([a_run(**WHOLE)], asked)
    rows = cost_rows(found.metrics)
    assert set(rows) == set(WAYS) and all(row.value is not None for row in rows.values())
    (entry,) = found.cap["sets"][0]["entries"]
    assert entry["raw"]["cost"] == rows[way].value == pytest.approx((by_way(COST)[way].numerator or 0) / 4e-6)
    text = " ".join(console_table(found.metrics, found.cap, asked).split())
    assert f"cost basis: {way[0]}" in text and f"price kind: {way[1]}" in text
    others = {kind for kind in ("purchase", "rental") if kind != way[1]}
    assert not any(f"price kind: {kind}" in text for kind in others)


def test_the_cost_axis_may_be_the_hardware_s_price() -> None:
    asked = plan(CostSpec(), cap=CapSpec(cost="hardware_price_usd"))
    (entry,) = reduce_runs([a_run(**WHOLE)], asked).cap["sets"][0]["entries"]
    assert entry["raw"]["cost"] == pytest.approx(1577.88), "of all components"


def test_price_ends_are_columns_apart_from_the_interval_over_runs() -> None:
    """Two runs of 4 tokens in 10 s and in 20 s: 15 s of 1.15e-4 / 2 USD/s a token, the ends by the same sums."""
    longer = a_run(repeat=1, window_s=(0.0, 20.0), **WHOLE)
    row = cost_rows(reduce_runs([a_run(**WHOLE), longer], plan(CostSpec())).metrics)["node", "purchase"]
    per_s = 5e-5 + 50 * 1.5e-7
    assert row.value == pytest.approx(30 * per_s / 8e-6)
    assert row.price_low == pytest.approx(30 * per_s / 2 / 8e-6) and row.price_high == pytest.approx(60 * per_s / 8e-6)
    assert row.ci95_low is not None and row.ci95_low != row.price_low
    speed = [row for row in reduce_runs([longer], plan(CostSpec())).metrics if row.metric == "output_tokens_per_s"]
    assert all(row.price_low is None and row.price_high is None for row in speed)


def test_runs_whose_footprints_differ_are_one_point_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run decodes 1e4 times as fast: 9.98e6 bytes/s, more than the bargain's memory reads."""
    slow = {"nvidia-l4-24gb": 1e6, "nvidia-h100-sxm5-80gb": 1e9}
    monkeypatch.setattr(cost, "catalogue", lambda: MappingProxyType(
        {key: replace(catalogue()[key], memory_bytes_per_s=rate) for key, rate in slow.items()}))  # fmt: skip
    fast = a_run(repeat=1, requests=WHOLE["requests"], routing=WHOLE["routing"],
                 passes=(one_pass(0, Phase.DECODE, 0, 2e-4, (1, 1), (5, 7)),))  # fmt: skip
    row = cost_rows(reduce_runs([a_run(**WHOLE), fast], plan(CostSpec())).metrics)["footprint", "purchase"]
    assert json.loads(row.qualifiers)["device"] == "1 x nvidia-l4-24gb or 1 x nvidia-h100-sxm5-80gb"
    assert row.n > 0 and row.value is not None


def test_energy_of_the_node_is_measured_where_it_was() -> None:
    samples = tuple(host(t, package_energy_j=20.0 * t) for t in (-1, 1, 5, 9, 11))
    found = by_way("energy_usd_per_million_output_tokens", run=a_run(hosts=samples, **WHOLE))
    assert found["node", "purchase"].qualifiers["energy_source"] == "rapl"
    assert found["footprint", "purchase"].qualifiers["energy_source"] == "tdp_estimate"

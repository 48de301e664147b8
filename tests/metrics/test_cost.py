"""Energy and money by hand."""

from typing import Any

import pytest
from hand_made import NODE, a_run, host, request, view

from moecap.errors import ConfigError
from moecap.metrics.declare import METRICS, Observed
from moecap.metrics.reduce import AXES
from moecap.prices import load_prices
from moecap.prices.uncertain import exactly
from moecap.records import CostSpec, DeviceInfo, NodeInfo, Placement

assert AXES
REQUESTS = (request(0, 1.0, (2.0, 3.0, 4.0, 5.0)),)  # four tokens in a window of 10 s
OWNED = {"lifetime_years": 2, "duty_cycle": 0.5, "label": "by hand"}
PRICED: dict[str, Any] = {
    "hosts": {"h": {"price_usd": 3155.76, "tdp_w": 100.0, "rental_usd_per_hour": 3.6, "label": "bench"}},
    "ownership": OWNED, "energy": {"usd_per_kwh": 0.36, "pue": 1.5, "label": "mains"},
}  # fmt: skip
YEAR_S = 365.25 * 24 * 3600


def every(
    name: str, *, cost: CostSpec | None = None, prices: dict[str, Any] | None = None, **run: Any
) -> list[Observed]:
    found = a_run(requests=REQUESTS, **run)
    return list(METRICS[name].observe(view(found, cost=cost, **(PRICED if prices is None else prices))))


def seen(name: str, *, cost: CostSpec | None = None, **how: Any) -> Observed:
    """The observation of the asked way; where every way is observed, it is the first."""
    asked = cost or CostSpec()
    one, *others = (one for one in every(name, cost=cost, **how) if "component" not in one.qualifiers)
    assert others == [] or (one.qualifiers["cost_basis"], one.qualifiers["price_kind"]) == (asked.basis, asked.kind)
    return one


def value(name: str, **how: Any) -> float:
    one = seen(name, **how)
    assert one.numerator is not None and one.denominator is not None, one
    return one.numerator / one.denominator


def test_energy_by_counters_is_their_increase_over_the_window() -> None:
    """Samples at -1, 1, 5, 9, 11 s of a counter that grows by 20 J/s: 200 J in [0, 10]; DRAM 2 J/s."""
    hosts = tuple(host(t, package_energy_j=20.0 * t, dram_energy_j=2.0 * t) for t in (-1, 1, 5, 9, 11))
    assert value("energy_j_per_output_token", hosts=hosts) == pytest.approx(220 / 4)
    one = seen("energy_j_per_request", hosts=hosts)
    assert one.numerator == pytest.approx(220)
    assert one.qualifiers == {"energy_source": "rapl", "energy_scope": "CPU packages and DRAM"}
    no_dram = tuple(host(t, package_energy_j=20.0 * t) for t in (-1, 1, 5, 9, 11))
    assert "DRAM is not measured" in seen("energy_j_per_request", hosts=no_dram).qualifiers["energy_scope"]


def test_without_counters_energy_is_the_placed_share_of_the_tdp_and_says_so() -> None:
    """2 of 4 CPUs of a 100 W host for 10 s: 500 J."""
    assert value("energy_j_per_output_token") == pytest.approx(500 / 4)
    assert seen("energy_j_per_output_token").qualifiers["energy_source"] == "tdp_estimate"
    few = (host(5, package_energy_j=1.0),)
    assert seen("energy_j_per_output_token", hosts=few).qualifiers["energy_source"] == "tdp_estimate"


def test_without_counters_and_tdp_energy_and_total_cost_are_missing_and_hardware_is_not() -> None:
    prices = {**PRICED, "hosts": {"h": {"price_usd": 3155.76, "label": "bench"}}}
    for name in ("energy_j_per_output_token", "usd_per_million_output_tokens"):
        assert seen(name, prices=prices).missing == "no counter was readable, and no TDP is known"
    assert value("hardware_usd_per_million_output_tokens", prices=prices) > 0


def test_purchase_by_hand() -> None:
    """3155.76 USD over 2 years half busy are 1e-4 USD per second of a whole node; half a node for 10 s makes 4 tokens.
    500 J x 1.5 at 0.36 USD/kWh (1e-7 USD/J)."""
    assert pytest.approx(3155.76) == 2 * YEAR_S * 0.5 * 1e-4
    hardware, energy = 1e-4 * 0.5 * 10, 500 * 1.5 * 1e-7
    assert value("hardware_usd_per_million_output_tokens") == pytest.approx(hardware / 4e-6)
    assert value("energy_usd_per_million_output_tokens") == pytest.approx(energy / 4e-6)
    assert value("usd_per_million_output_tokens") == pytest.approx((hardware + energy) / 4e-6)
    assert value("usd_per_million_total_tokens") == pytest.approx((hardware + energy) / 14e-6)
    stated = seen("usd_per_million_output_tokens").qualifiers
    assert stated["cost_basis"] == "node" and stated["price_kind"] == "purchase"
    told = seen("usd_per_million_output_tokens").told
    assert told == {"prices": "bench; by hand", "energy_price": "mains"}


def test_rental_is_all_there_is_to_pay() -> None:
    """3.6 USD per hour are 1e-3 per second; half the node, 10 s."""
    rental = CostSpec(kind="rental")
    assert value("usd_per_million_output_tokens", cost=rental) == pytest.approx(1e-3 * 0.5 * 10 / 4e-6)
    assert value("energy_usd_per_million_output_tokens", cost=rental) > 0
    prices = {**PRICED, "hosts": {"h": {"price_usd": 1.0, "label": "bench"}}}
    assert (
        seen("usd_per_million_output_tokens", cost=rental, prices=prices).missing == "no rental price is known (bench)"
    )


def test_an_unknown_host_is_the_sum_of_components_of_a_labelled_server() -> None:
    """2 of the node's 4 CPUs, of a server of 384: 1/192 of 2 x 11,805 (CPUs) + 3,840 x 0.2 (SSD) + 2,500 (board) +
    1,000 (network) = 27,878 USD, and half of the node's own 16 GiB at 20 USD/GB: 305.198 USD, over 4 years at 60 %."""
    usd = 27_878 / 192 + 160
    per_s = usd / (4 * YEAR_S * 0.6)
    assert value("hardware_usd_per_million_output_tokens", prices={}) == pytest.approx(per_s * 10 / 4e-6)
    told = seen("usd_per_million_output_tokens", prices={}).told["prices"]
    assert told.startswith(
        "unknown-host-default, by share of a server's 384 CPUs: cpu 2 x 11,805 USD + dram of the node"
    )
    assert "network 1,000 USD, default: catalogue prices within a factor of 0.83 to 1.33" in told
    by_component = {
        one.qualifiers.get("component"): one.numerator for one in every("hardware_price_usd", prices={})
        if one.qualifiers["cost_basis"] == "node"
    }  # fmt: skip
    assert by_component == pytest.approx(
        {None: usd, "cpu": 23_610 / 192, "dram": 160, "ssd": 4.0, "board": 2500 / 192, "network": 1000 / 192}
    )


def accelerated(key: str | None, price: dict[str, Any] | None = None) -> dict[str, Any]:
    devices = tuple(DeviceInfo(uuid=f"GPU-{i}", index=i, name="x", key=key, memory_bytes=1) for i in range(4))
    node = NodeInfo(
        node_id="n", hostname="h", kinds=frozenset({"gpu"}), cpu_model="c", num_cpus=8, memory_bytes=1, devices=devices
    )
    placement = Placement(node_id="n", hostname="h", kind="gpu", device_uuids=("GPU-1",), num_cpus=8)
    prices = {**PRICED, "devices": {"dev": price} if price else {}}
    return {"node": node, "placement": placement, "prices": prices}


def test_a_placed_device_is_charged_with_its_share_of_the_host() -> None:
    """One of four devices of 31557.6 USD (1e-3 USD/s) and a quarter of the host (1e-4 USD/s); 40 W and a quarter of
    100 W, or of what the packages' counters say, 20 W: the device itself is an estimate in both."""
    how = accelerated("dev", {"price_usd": 31557.6, "tdp_w": 40.0, "label": "card"})
    hosts = tuple(host(t, package_energy_j=20.0 * t) for t in (-1, 1, 5, 9, 11))
    assert value("hardware_usd_per_million_output_tokens", **how) == pytest.approx((1e-3 + 0.25e-4) * 10 / 4e-6)
    assert value("energy_j_per_output_token", **how) == pytest.approx((40 + 25) * 10 / 4)
    assert value("energy_j_per_output_token", hosts=hosts, **how) == pytest.approx((40 + 5) * 10 / 4)
    stated = seen("energy_j_per_output_token", hosts=hosts, **how).qualifiers
    assert stated["energy_source"] == "tdp_estimate"
    assert stated["energy_scope"] == "CPU packages; by TDP: placed devices (DRAM is not measured)"


def test_a_node_with_devices_is_its_share_of_a_priced_server_too() -> None:
    """8 CPUs of a server of 16: half of it, of which one of four devices takes a quarter."""
    how = accelerated("dev", {"price_usd": 31557.6, "tdp_w": 40.0, "label": "card"})
    how["prices"] = {**how["prices"], "hosts": {"h": {**PRICED["hosts"]["h"], "num_cpus": 16}}}
    assert value("hardware_usd_per_million_output_tokens", **how) == pytest.approx((1e-3 + 0.125e-4) * 10 / 4e-6)


def test_a_device_without_a_price_leaves_cost_missing_with_the_remedy() -> None:
    one = seen("usd_per_million_output_tokens", **accelerated("no-such-device"))
    assert one.missing == "a placed device has no price in the catalogue; add it to prices.devices"


def test_no_token_no_cost() -> None:
    one = seen("usd_per_million_output_tokens", window_s=(6.0, 9.0))
    assert one.missing == "no output token in the window"


def test_overrides_merge_and_are_labelled() -> None:
    prices = load_prices({"energy": {"usd_per_kwh": 0.2}})
    assert prices.energy.usd_per_kwh == exactly(0.2) and prices.energy.pue == load_prices({}).energy.pue
    assert " by the study; else default" in prices.energy.label
    assert prices.ownership == load_prices({}).ownership
    assert load_prices({"hosts": {"h": PRICED["hosts"]["h"]}}).host("h", "c").label == "bench"
    assert load_prices({"hosts": {"some CPU": PRICED["hosts"]["h"]}}).host("other", NODE.cpu_model).label == "bench"


@pytest.mark.parametrize(
    ("changes", "key", "shown"),
    [
        ({"enrgy": {}}, "prices.enrgy", "{}"),
        ({"energy": {"pue": 0.5}}, "prices.energy.pue", "0.5"),
        ({"hosts": {"h": {"price_usd": -1, "label": "x"}}}, "prices.hosts.h.price_usd", "-1"),
        ({"hosts": {"h": {"price_usd": {"value": 2, "low": 3, "high": 4}, "label": "x"}}}, "price_usd", "'low': 3"),
        ({"hosts": {"h": {"price_usd": {"valu": 2}, "label": "x"}}}, "price_usd", "'valu': 2"),
        ({"hosts": {"h": {"components": {"cpu": {"catalogue": "amd-epyc"}}, "label": "x"}}}, "cpu.catalogue", "9654"),
        (
            {"hosts": {"h": {"components": {"disk": {"price_usd": 1}}, "label": "x"}}},
            "components.disk",
            "'cpu', 'dram'",
        ),
        ({"hosts": {"h": {"components": {"ssd": {"price_usd_per_gb": 1}}, "label": "x"}}}, "hosts.h", "write gb"),
        ({"hosts": {"h": {"label": "mine"}}}, "prices.hosts.h", "write price_usd, components or rental_usd_per_hour"),
        ({"hosts": {"h": {"tdp_w": 9, "label": "mine"}}}, "prices.hosts.h", "has no price"),
        (
            {"hosts": {"h": {"components": {"cpu": {"catalogue": "nvidia-l4-24gb"}}, "label": "x"}}},
            "prices.hosts.h",
            "cpu is priced by nvidia-l4-24gb, whose kind is gpu; accelerators are priced under prices.devices",
        ),
        (
            {"hosts": {"h": {"components": {"board": {"catalogue": "amd-epyc-9654"}}, "label": "x"}}},
            "prices.hosts.h",
            "CPUs are priced as cpu",
        ),
        (
            {"hosts": {"h": {"components": {"cpu": {"catalogue": "ddr5-4800-channel"}}, "label": "x"}}},
            "prices.hosts.h",
            "write the row of a CPU",
        ),
        ({"catalogue": {"price_range": [1.1, 2]}}, "prices.catalogue.price_range", "1.1"),
        ({"devices": {"nvidia-rtx-4090": {}}}, "prices.devices.nvidia-rtx-4090 = 'nvidia-rtx-4090'", "rtx-4090-24gb"),
        ({"devices": {"amd-epyc-9654": {}}}, "prices.devices.amd-epyc-9654", "priced under hosts"),
        ({"hosts": {"nvidia-l4-24gb": {"price_usd": 1, "label": "x"}}}, "prices.hosts.nvidia-l4-24gb", "is no CPU"),
        (
            {"hosts": {"unknown-host-defualt": {"price_usd": 1, "label": "x"}}},
            "prices.hosts.unknown-host-defualt",
            "did you mean 'unknown-host-default'",
        ),
        (
            {"devices": {"NVIDIA H100 80GB HBM3": {}, "nvidia-h100-sxm5-80gb": {}}},
            "prices.devices",
            "'NVIDIA H100 80GB HBM3' and 'nvidia-h100-sxm5-80gb'",
        ),
    ],
)
def test_wrong_prices_name_key_value_and_remedy(changes: dict[str, Any], key: str, shown: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_prices(changes)
    text = str(raised.value)
    assert key in text and shown in text and "configs/prices.yaml" in text


def test_every_default_says_that_it_is_one() -> None:
    prices = load_prices({})
    labels = [
        prices.energy.label,
        prices.ownership.label,
        prices.catalogue.label,
        *(one.label for one in prices.hosts.values()),
    ]
    assert all("default" in label for label in labels)


def test_a_host_s_one_price_replaces_its_components_and_the_other_way_round() -> None:
    one = load_prices({"hosts": {"unknown-host-default": {"price_usd": 5000, "tdp_w": 300}}}).hosts[
        "unknown-host-default"
    ]
    assert (one.price_usd, one.components, one.num_cpus) == (exactly(5000), {}, None)
    assert one.label.startswith("price_usd 5000, tdp_w 300 by the study; else unknown-host-default")


def test_a_device_priced_by_the_study_keeps_what_the_catalogue_knows_beside() -> None:
    """H100 SXM: 700 W, 3.29 USD per hour of a whole instance, 30,000 USD (0.83 to 1.33 of it) by the catalogue."""
    key = "nvidia-h100-sxm5-80gb"
    bought = load_prices({"devices": {key: {"price_usd": 25_000, "label": "offer"}}}).device(key)
    assert bought is not None and bought.price_usd == exactly(25_000) and bought.tdp_w == 700
    assert bought.rental_includes_host and "offer; rental_usd_per_hour and tdp_w: hardware catalogue" in bought.label
    rented = load_prices({"devices": {key: {"rental_usd_per_hour": 2, "label": "offer"}}}).device(key)
    assert rented is not None and rented.rental_usd_per_hour == exactly(2) and not rented.rental_includes_host
    assert rented.price_usd is not None and rented.price_usd.bounds == pytest.approx((24_900, 39_900))

"""Energy by component, worked out by hand: counters, estimates, and what is left out."""

from typing import Any

import pytest
from hand_made import a_run, host, request, view

from moecap.metrics.components import filled_energy, measured_energy
from moecap.metrics.declare import METRICS, Observed
from moecap.metrics.reduce import AXES
from moecap.records import NodeInfo, Placement

assert AXES
NODE = NodeInfo(node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="c", num_cpus=8, memory_bytes=32 * 2**30)
HALF = Placement(node_id="n", hostname="h", kind="cpu", num_cpus=4)
COMPONENTS: dict[str, Any] = {
    "cpu": {"price_usd": 1000, "count": 2, "tdp_w": 100},
    "dram": {"price_usd_per_gb": 20, "w_per_gb": 0.5},
    "ssd": {"price_usd_per_gb": 0.1, "gb": 1000},
    "board": {"price_usd": 400, "tdp_w": 50},
    "network": {"price_usd": 100},
}
BUILT = {"hosts": {"h": {"components": COMPONENTS, "num_cpus": 16, "rental_usd_per_hour": 4, "label": "built"}}}


"""Half of the node, a quarter of a server of 16 CPUs: CPUs 50 W, board 12.5 W, half of 32 GB of DRAM 8 W; what SSD and
network draw isn't known."""


def energies(**counters: float) -> dict[str, Any]:
    """Counters that grow by so many joules a second."""
    samples = tuple(host(t, **{name: rate * t for name, rate in counters.items()}) for t in (-1, 1, 5, 9, 11))
    run = view(a_run(node=NODE, placement=HALF, hosts=samples, requests=(request(0, 1.0, (2.0,)),)), **BUILT)
    return {"filled": filled_energy(run), "measured": measured_energy(run), "run": run}


def test_energy_without_counters_is_all_estimated() -> None:
    """70.5 W for 10 s."""
    found = energies()
    assert found["filled"].joules == found["measured"].joules == pytest.approx(705)
    assert found["filled"].qualifiers == {
        "energy_source": "tdp_estimate",
        "energy_scope": "by TDP: CPU packages, DRAM and board (SSD and network are not measured)",
    }


def test_cost_fills_what_no_counter_covers_and_says_that_it_did() -> None:
    """Packages 20 J/s for 10 s, of the whole host; DRAM 80 J and board 125 J by TDP: in the cost, not in the energy."""
    found = energies(package_energy_j=20.0)
    assert found["measured"].joules == pytest.approx(200)
    assert found["measured"].qualifiers["energy_source"] == "rapl"
    assert "DRAM" in found["measured"].qualifiers["energy_scope"].partition("(")[2]
    assert found["filled"].joules == pytest.approx(405)
    assert found["filled"].qualifiers["energy_source"] == "tdp_estimate", "the weakest of its sources"
    assert found["filled"].qualifiers["energy_scope"].startswith("CPU packages; by TDP: DRAM and board")
    (spent,) = (one for one in METRICS["energy_usd_per_million_output_tokens"].observe(found["run"]) if is_node(one))
    assert spent.numerator == pytest.approx(405 * 1.3 / 3.6e6 * 0.12)
    assert spent.price_bounds == pytest.approx((405 * 1.1 / 3.6e6 * 0.08, 405 * 1.58 / 3.6e6 * 0.249))


def is_node(one: Observed) -> bool:
    return (one.qualifiers["cost_basis"], one.qualifiers["price_kind"]) == ("node", "purchase")


def test_measured_dram_replaces_its_estimate() -> None:
    assert energies(package_energy_j=20.0, dram_energy_j=3.0)["filled"].joules == pytest.approx(200 + 30 + 125)
    assert energies(dram_energy_j=3.0)["filled"].joules == pytest.approx(500 + 30 + 125)


def test_a_host_of_one_tdp_has_its_dram_in_it() -> None:
    """100 W for the half of it; the DRAM's own 3 J/s are in these."""
    whole = {"hosts": {"h": {"price_usd": 1, "tdp_w": 200, "label": "x"}}}
    samples = tuple(host(t, dram_energy_j=3.0 * t) for t in (-1, 1, 5, 9, 11))
    assert filled_energy(view(a_run(node=NODE, placement=HALF, hosts=samples), **whole)).joules == pytest.approx(1000)


def test_what_computes_must_be_known() -> None:
    unknown = {"hosts": {"h": {"components": {"cpu": {"price_usd": 1}, "board": {"price_usd": 1, "tdp_w": 5}},
                               "label": "x"}}}  # fmt: skip
    found = filled_energy(view(a_run(node=NODE, placement=HALF), **unknown))
    assert found.joules is None and found.missing == "no counter was readable, and no TDP is known"

"""A placement's share of its node in money and watts, worked out by hand."""

from typing import Any

import pytest

from moecap.prices import load_prices
from moecap.prices.node import placed_on, purchase_usd, rental_usd_per_hour
from moecap.prices.uncertain import Uncertain
from moecap.records import DeviceInfo, NodeInfo, Placement

NODE = NodeInfo(node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="c", num_cpus=8, memory_bytes=32 * 2**30)
HALF = Placement(node_id="n", hostname="h", kind="cpu", num_cpus=4)
COMPONENTS: dict[str, Any] = {
    "cpu": {"price_usd": 1000, "count": 2, "tdp_w": 100},
    "dram": {"catalogue": "ddr5-4800-channel", "price_range": [0.5, 2], "w_per_gb": 0.5},
    "ssd": {"price_usd_per_gb": 0.1, "gb": 1000},
    "board": {"price_usd": {"value": 400, "low": 300, "high": 600}, "tdp_w": 50},
    "network": {"price_usd": 100},
}
BUILT = {"hosts": {"h": {"components": COMPONENTS, "num_cpus": 16, "rental_usd_per_hour": 4, "label": "built"}}}


def test_a_host_is_the_sum_of_its_components() -> None:
    """4 of the node's 8 CPUs, the node half of a server of 16: a quarter of 2 x 1000 + 1000 x 0.1 + 400 + 100, and half
    of the node's own 32 GB at the catalogue's 20 USD/GB: 500 + 25 + 100 + 25 + 320. Low: DRAM at 10, board 300; high:
    DRAM at 40, board 600. The rent is a quarter of the server's."""
    placed = placed_on(NODE, HALF, load_prices(BUILT))
    prices = {part.component: part.price_usd for part in placed.parts}
    assert {name: price and price.value for name, price in prices.items()} == {
        "cpu": 500, "dram": 320, "ssd": 25, "board": 100, "network": 25,
    }  # fmt: skip
    assert purchase_usd(placed) == (Uncertain(970, 500 + 160 + 25 + 75 + 25, 500 + 640 + 25 + 150 + 25), "")
    assert rental_usd_per_hour(placed) == (Uncertain(1, 1, 1), "")
    assert placed.labels == (
        "built: cpu 2 x 1,000 USD + dram of the node at 20 USD/GB + ssd 1,000 GB at 0.1 USD/GB + board 400 USD + "
        "network 100 USD"
    )


def test_dram_of_a_given_size_is_the_server_s() -> None:
    """64 GB at 20 USD/GB, a quarter of them."""
    changed = {"hosts": {"h": {**BUILT["hosts"]["h"], "components": {"dram": {**COMPONENTS["dram"], "gb": 64}}}}}
    assert purchase_usd(placed_on(NODE, HALF, load_prices(changed)))[0] == Uncertain(320, 160, 640)


def test_a_component_without_a_price_leaves_the_sum_unknown() -> None:
    changed = {"hosts": {"h": {**BUILT["hosts"]["h"], "components": {"dram": {"catalogue": "ddr5-5600-channel"}}}}}
    price, missing = purchase_usd(placed_on(NODE, HALF, load_prices(changed)))
    assert price is None and missing == "no price is known (built: dram of unknown price)"


def test_watts_are_those_of_the_parts_that_have_them() -> None:
    """A quarter of 2 x 100 and of 50 W; half of 32 GB at 0.5 W; what SSD and network draw isn't known."""
    watts = {part.component: part.watts for part in placed_on(NODE, HALF, load_prices(BUILT)).parts}
    assert watts == {"cpu": 50, "dram": 8, "ssd": None, "board": 12.5, "network": None}


def gpu_node(key: str) -> tuple[NodeInfo, Placement]:
    devices = tuple(DeviceInfo(uuid=f"GPU-{i}", index=i, name="x", key=key, memory_bytes=1) for i in range(4))
    node = NodeInfo(
        node_id="n", hostname="h", kinds=frozenset({"gpu"}), cpu_model="c", num_cpus=8, memory_bytes=2**30,
        devices=devices,
    )  # fmt: skip
    return node, Placement(node_id="n", hostname="h", kind="gpu", device_uuids=("GPU-0", "GPU-1"), num_cpus=8)


def test_a_cloud_s_hourly_price_has_the_host_in_it() -> None:
    """Two H100s at the catalogue's 3.29 USD an hour, an instance's; at a price of the study's own, 2, the
    share of the host comes on top: 2 of 4 devices, 8 of 16 CPUs, of 4 USD."""
    node, placement = gpu_node("nvidia-h100-sxm5-80gb")
    rent, _ = rental_usd_per_hour(placed_on(node, placement, load_prices(BUILT)))
    assert rent is not None and rent.value == pytest.approx(6.58)
    assert rent.bounds == pytest.approx((6.58 * 0.82, 6.58 * 1.87))
    own = {**BUILT, "devices": {"nvidia-h100-sxm5-80gb": {"rental_usd_per_hour": 2, "label": "own"}}}
    assert rental_usd_per_hour(placed_on(node, placement, load_prices(own)))[0] == Uncertain(5, 5, 5)

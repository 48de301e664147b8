"""Names that prices go by: what they belong to, and what no node has."""

from typing import Any

import pytest

from moecap.prices import load_prices
from moecap.prices.names import unmatched
from moecap.prices.uncertain import exactly
from moecap.records import DeviceInfo, NodeInfo

EPYC, H100 = "AMD EPYC 9654 96-Core Processor", "nvidia-h100-sxm5-80gb"


def node(hostname: str, cpu_model: str, *devices: tuple[str, str | None]) -> NodeInfo:
    held = tuple(
        DeviceInfo(uuid=f"GPU-{i}", index=i, name=name, key=key, memory_bytes=1)
        for i, (name, key) in enumerate(devices)
    )
    return NodeInfo(
        node_id=hostname, hostname=hostname, kinds=frozenset({"gpu"}), cpu_model=cpu_model, num_cpus=8,
        memory_bytes=2**30, devices=held,
    )  # fmt: skip


@pytest.mark.parametrize("name", [H100, "NVIDIA H100 80GB HBM3", "nvidia h100 80gb hbm3"])
def test_every_name_of_a_catalogued_device_prices_it(name: str) -> None:
    prices = load_prices({"devices": {name: {"price_usd": 7}}})
    found, other = prices.device(H100), prices.device("nvidia-l4-24gb")
    assert found is not None and found.price_usd == exactly(7)
    assert other is not None and other.price_usd != exactly(7)


def test_a_device_without_a_row_is_priced_by_its_driver_s_name() -> None:
    prices = load_prices({"devices": {"NVIDIA Z100": {"price_usd": 7}}})
    found = prices.device("NVIDIA Z100")
    assert found is not None and found.price_usd == exactly(7)
    assert prices.device("NVIDIA Z200") is None


@pytest.mark.parametrize("name", ["amd-epyc-9654", EPYC])
def test_a_cpu_s_catalogue_key_prices_its_hosts(name: str) -> None:
    prices = load_prices({"hosts": {name: {"price_usd": 7, "label": "bench"}}})
    assert prices.host("h", EPYC).label == "bench"
    assert prices.host("h", "some other CPU").label != "bench"


NODES = [node("node-a", EPYC, ("NVIDIA H100 80GB HBM3", H100)), node("node-b", "x", ("NVIDIA Z100", None))]


@pytest.mark.parametrize(
    ("prices", "told"),
    [
        ({"hosts": {"node-a": {}, "x": {}, "amd-epyc-9654": {}, "unknown-host-default": {}}}, []),
        ({"devices": {"NVIDIA Z100": {}, H100: {}, "nvidia-l4-24gb": {}}}, []),  # an L4 may be a footprint's
        (
            {"hosts": {"nodea": {}}},
            ["prices.hosts.nodea is used by no run on these nodes; these have 'node-a', 'node-b'"],
        ),
        (
            {"devices": {"NVIDIA Z-100": {}}},
            ["prices.devices.NVIDIA Z-100 is used by no run on these nodes; these have 'NVIDIA Z100'"],
        ),
    ],
)
def test_what_no_node_has_is_told_with_what_they_have(prices: dict[str, Any], told: list[str]) -> None:
    assert list(unmatched(prices, NODES)) == told

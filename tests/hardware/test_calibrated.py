"""What is calibrated for a node or a placement, and what its calibrations amount to: by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moecap.hardware.calibrated import failed, parts_of_node, parts_of_placement, placed_peaks, sum_of
from moecap.records import Calibration, DeviceInfo, HardwarePart, NodeInfo, NodeKind, Peaks, Placement, Rates

CONDITIONS = {"": {"torch": "2.13"}, "GPU-0": {"driver": "580", "power_cap_w": "700"}, "GPU-1": {"driver": "580"}}


def device(index: int, name: str = "NVIDIA L4") -> DeviceInfo:
    return DeviceInfo(uuid=f"GPU-{index}", index=index, name=name, key=None, memory_bytes=1)


def node(*devices: DeviceInfo) -> NodeInfo:
    return NodeInfo(
        node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="a cpu", num_cpus=8, memory_bytes=1,
        devices=devices,
    )  # fmt: skip


def placement(*uuids: str, kind: NodeKind = "gpu", num_cpus: int = 8) -> Placement:
    return Placement(node_id="n", hostname="h", kind=kind, device_uuids=uuids, num_cpus=num_cpus)


def peaks(memory: float | None, **other: Any) -> Peaks:
    fields: dict[str, Any] = {"flops_per_s": {}, "method": f"at {memory}"} | other
    return Peaks(source="calibrated", memory_bytes_per_s=memory, **fields)


def of_device(uuid: str, rates: Rates) -> Calibration:
    part = HardwarePart(kind="device", name="NVIDIA L4", device_uuids=(uuid,))
    return Calibration(part=part, rates=rates, measured_unix_s=0.0, took_s=1.0)


def of_cpu(found: Peaks) -> Calibration:
    part = HardwarePart(kind="cpu", name="a cpu", num_threads=8)
    return Calibration(part=part, rates=Rates(peaks=found), measured_unix_s=0.0, took_s=1.0)


def test_a_node_is_its_cpus_its_devices_and_what_like_ones_exchange() -> None:
    parts = parts_of_node(node(device(0), device(1), device(2, "NVIDIA A10")), CONDITIONS)
    assert [(one.kind, one.name, one.device_uuids) for one in parts] == [
        ("cpu", "a cpu", ()),
        ("device", "NVIDIA L4", ("GPU-0",)),
        ("device", "NVIDIA L4", ("GPU-1",)),
        ("device", "NVIDIA A10", ("GPU-2",)),
        ("collectives", "NVIDIA L4", ("GPU-0", "GPU-1")),
    ]
    assert (parts[0].num_threads, parts[0].conditions) == (8, {"torch": "2.13"})
    assert parts[1].conditions == {"torch": "2.13", "driver": "580", "power_cap_w": "700", "host": "a cpu"}
    assert parts[3].conditions == {"torch": "2.13", "host": "a cpu"}


def test_one_device_alone_exchanges_nothing() -> None:
    assert [one.kind for one in parts_of_node(node(device(0), device(1, "NVIDIA A10")), CONDITIONS)] == [
        "cpu", "device", "device",
    ]  # fmt: skip


def test_a_placement_needs_its_devices_or_its_cpus_and_offloading_both() -> None:
    machine = node(device(0), device(1))
    assert [one.device_uuids for one in parts_of_placement(machine, placement("GPU-1"), {})] == [("GPU-1",)]
    (cpu,) = parts_of_placement(machine, placement(kind="cpu", num_cpus=3), {})
    assert (cpu.kind, cpu.num_threads) == ("cpu", 3)
    both = parts_of_placement(machine, placement("GPU-0", kind="cpu-offload"), {})
    assert [one.kind for one in both] == ["device", "cpu"]


def test_rates_of_several_devices_add_up_and_their_spreads_do_not() -> None:
    one = peaks(
        100.0, flops_per_s={"float32": 5.0, "int8": 9.0}, tier_bytes_per_s={"host": 20.0},
        spread={"memory": 0.1, "host": 0.3},
    )  # fmt: skip
    other = peaks(
        80.0, flops_per_s={"float32": 4.0}, tier_bytes_per_s={"host": 22.0}, spread={"memory": 0.2, "host": 0.1}
    )
    total = sum_of([one, other])
    assert total.memory_bytes_per_s == 180.0
    assert total.flops_per_s == {"float32": 9.0}  # int8 of the second device is unknown
    assert total.tier_bytes_per_s == {"host": 42.0}
    assert total.spread == {"memory": 0.2, "host": 0.3}
    assert total.method == "sum of 2 devices, each measured alone; the first: at 100.0"
    assert sum_of([one]) is one


def test_only_placed_devices_count() -> None:
    known = [of_device(f"GPU-{i}", Rates(peaks=peaks(10.0 * (i + 1)))) for i in range(3)]
    found = placed_peaks(placement("GPU-1", "GPU-2"), known)
    assert found is not None and found.memory_bytes_per_s == 50.0
    assert placed_peaks(placement("GPU-1", "GPU-9"), known) is None
    assert placed_peaks(placement("GPU-1"), ()) is None


def test_a_device_that_failed_makes_the_sum_unknown_and_says_why() -> None:
    known = [of_device("GPU-0", Rates(peaks=peaks(10.0))), of_device("GPU-1", failed("it is not idle"))]
    found = placed_peaks(placement("GPU-0", "GPU-1"), known)
    assert found is not None
    assert (found.memory_bytes_per_s, found.method) == (None, "failed: it is not idle")


def test_offloading_reads_the_hosts_disk_and_a_cpu_placement_has_the_hosts_peaks() -> None:
    host = peaks(30.0, tier_bytes_per_s={"ssd": 3.0}, spread={"memory": 0.5, "ssd": 0.4})
    own = peaks(300.0, tier_bytes_per_s={"host": 20.0}, spread={"memory": 0.1})
    known = [of_device("GPU-0", Rates(peaks=own)), of_cpu(host)]
    found = placed_peaks(placement("GPU-0", kind="cpu-offload"), known)
    assert found == replace(own, tier_bytes_per_s={"host": 20.0, "ssd": 3.0}, spread={"memory": 0.1, "ssd": 0.4})
    assert placed_peaks(placement(kind="cpu"), known) is host

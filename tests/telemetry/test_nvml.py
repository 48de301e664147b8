"""The NVML sampler on scripted answers: units, rates, what isn't supported, what fails, and MIG."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from moecap.telemetry.fake_nvml import H100, H100_FIELDS, NOT_SUPPORTED, FakeNvml
from moecap.telemetry.nvml import GPM_COUNTS, NvmlSampler
from moecap.telemetry.nvml_facts import OF_WHOLE_GPUS, facts_of
from moecap.telemetry.nvml_sources import reasons

SECOND = 10**9
INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
LINKS = pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX
A100 = H100 | {"nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=0)}


def opened(nvml: FakeNvml, *uuids: str) -> NvmlSampler:
    sampler = NvmlSampler(nvml)
    assert sampler.open(uuids or tuple(nvml.devices)) == {}
    return sampler


def error(code: int) -> Exception:
    return pynvml.NVMLError(code)


def test_quantities_are_in_our_units() -> None:
    sampler = opened(FakeNvml({"GPU-a": H100}))
    reading = sampler.sample("GPU-a", 0, edge=True)
    assert reading.values == {
        "energy_j": pytest.approx(7_654_321.0), "power_w": pytest.approx(490.25),
        "power_average_w": pytest.approx(488.5), "memory_power_w": pytest.approx(97.125), "memory_temperature_c": 58,
        "gpu_utilisation": 0.99,
        "memory_utilisation": 0.71, "memory_used_bytes": 70_866_960_384, "sm_clock_hz": 1_755_000_000,
        "memory_clock_hz": 2_619_000_000, "temperature_c": 61, "throttle_reasons": ("power cap",),
    }  # fmt: skip
    assert reading.unknown == {
        "module_power_w": "Not Supported", "nvlink_sent_bytes": "Not Supported",
        "nvlink_received_bytes": "Not Supported", "pcie_sent_bytes_per_s": GPM_COUNTS,
        "pcie_received_bytes_per_s": GPM_COUNTS,
    }  # fmt: skip
    assert {*reading.values, *reading.unknown} == set(sampler.quantities)


def test_links_count_kib_and_the_module_has_a_scope_of_its_own() -> None:
    fields = {**H100_FIELDS, (INSTANT, 1): 812_000, (LINKS[0], 0xFFFFFFFF): 3, (LINKS[1], 0xFFFFFFFF): 2**40}
    values = opened(FakeNvml({"GPU-a": H100}, fields=fields)).sample("GPU-a", 0, edge=True).values
    assert (values["power_w"], values["module_power_w"]) == pytest.approx((490.25, 812.0))
    assert (values["nvlink_sent_bytes"], values["nvlink_received_bytes"]) == (3072, 2**50)


def test_fast_quantities_are_one_call_a_sample_and_slow_ones_come_once_a_second() -> None:
    nvml = FakeNvml({"GPU-a": H100})
    sampler = opened(nvml)
    sampler.sample("GPU-a", 0, edge=True)
    nvml.calls.clear()
    slow = [k for k in range(1, 31) if "temperature_c" in sampler.sample("GPU-a", k * SECOND // 10, edge=False).values]
    assert slow == [10, 20, 30]
    assert nvml.calls["nvmlDeviceGetFieldValues"] == 30 + 3
    assert nvml.calls["nvmlDeviceGetTemperature"] == 3
    assert nvml.calls["nvmlDeviceGetPcieThroughput"] == 0
    assert "temperature_c" in sampler.sample("GPU-a", 3 * SECOND + 1, edge=True).values  # the last has everything


def test_what_costs_the_driver_much_is_asked_seldom() -> None:
    """Energy every two seconds, links every ten, each device at a time of its own; both at the ends."""
    fields = {**H100_FIELDS, (LINKS[0], 0xFFFFFFFF): 3, (LINKS[1], 0xFFFFFFFF): 4}
    nvml = FakeNvml({"GPU-a": H100, "GPU-b": H100}, fields=fields)
    sampler = opened(nvml)
    seen: dict[str, list[float]] = {"energy_j a": [], "energy_j b": [], "nvlink_sent_bytes a": []}
    for k in range(201):
        for uuid in ("GPU-a", "GPU-b"):
            values = sampler.sample(uuid, k * SECOND // 10, edge=k in (0, 200)).values
            for name in values.keys() & {"energy_j", "nvlink_sent_bytes"}:
                seen.setdefault(f"{name} {uuid[-1]}", []).append(k / 10)
    assert seen["energy_j a"] == [0.0, *(float(s) for s in range(1, 20, 2)), 20.0]
    assert seen["energy_j b"] == [0.0, *(float(s) for s in range(2, 20, 2)), 20.0]
    assert seen["nvlink_sent_bytes a"] == [0.0, 5.0, 15.0, 20.0]
    assert nvml.calls["nvmlDeviceGetTotalEnergyConsumption"] == 12 + 11


def test_what_is_not_supported_is_asked_once_per_recording() -> None:
    nvml = FakeNvml({"GPU-a": {**H100, "nvmlDeviceGetTemperature": error(NOT_SUPPORTED)}})
    sampler = opened(nvml)
    for _ in range(2):
        told = [sampler.sample("GPU-a", k * SECOND, edge=k == 0).unknown for k in range(4)]
        assert told[0]["module_power_w"] == told[0]["temperature_c"] == "Not Supported"
        assert told[1:] == [{}, {}, {}]
        assert nvml.calls["nvmlDeviceGetTemperature"] == nvml.asked[INSTANT, 1] == 1
        assert nvml.asked[INSTANT, 0] == 4
        sampler.close()
        nvml.calls.clear()
        nvml.asked.clear()
        sampler.open(["GPU-a"])


def test_errors_that_pass_are_told_and_asked_again() -> None:
    fields = dict(H100_FIELDS)
    nvml = FakeNvml({"GPU-a": dict(H100)}, fields=fields)
    sampler = opened(nvml)
    fields[INSTANT, 0] = -pynvml.NVML_ERROR_UNKNOWN
    nvml.devices["GPU-a"]["nvmlDeviceGetMemoryInfo"] = error(pynvml.NVML_ERROR_TIMEOUT)
    unknown = sampler.sample("GPU-a", 0, edge=True).unknown
    assert (unknown["power_w"], unknown["memory_used_bytes"]) == ("Unknown Error", "Timeout")
    fields[INSTANT, 0] = 100_000
    nvml.devices["GPU-a"]["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(used=7)
    later = sampler.sample("GPU-a", SECOND, edge=False)
    assert (later.values["power_w"], later.values["memory_used_bytes"]) == (pytest.approx(100.0), 7)
    fields[INSTANT, 0] = -NOT_SUPPORTED  # it was read before: this passes, too
    assert sampler.sample("GPU-a", 2 * SECOND, edge=False).unknown == {"power_w": "Not Supported"}
    fields[INSTANT, 0] = 200_000
    assert sampler.sample("GPU-a", 3 * SECOND, edge=False).values["power_w"] == pytest.approx(200.0)


def test_a_lost_device_makes_all_unknown_and_ends_nothing() -> None:
    nvml = FakeNvml({"GPU-a": dict(H100)})
    sampler = opened(nvml)
    sampler.sample("GPU-a", 0, edge=True)
    lost = error(pynvml.NVML_ERROR_GPU_IS_LOST)
    nvml.devices["GPU-a"] = dict.fromkeys(H100, lost)
    nvml._fields = lambda device: (_ for _ in ()).throw(lost)
    reading = sampler.sample("GPU-a", SECOND, edge=True)
    assert reading.values == {}
    assert {"energy_j", "power_w", "temperature_c", "throttle_reasons"} <= set(reading.unknown)
    assert set(reading.unknown.values()) == {"GPU is lost"}


def test_older_devices_tell_power_by_a_function() -> None:
    fields = dict.fromkeys(H100_FIELDS, -NOT_SUPPORTED)
    nvml = FakeNvml({"GPU-v": {**A100, "nvmlDeviceGetPowerUsage": 120_500}}, fields=fields)
    sampler = opened(nvml)
    for k in range(3):
        values = sampler.sample("GPU-v", k * SECOND // 10, edge=False).values
        assert values["power_w"] == pytest.approx(120.5)
    assert nvml.asked[INSTANT, 0] == 1 and nvml.calls["nvmlDeviceGetPowerUsage"] == 3


def test_a_device_that_tells_neither_way_has_the_last_reason() -> None:
    sampler = opened(FakeNvml({"GPU-v": A100}, fields=dict.fromkeys(H100_FIELDS, -NOT_SUPPORTED)))
    assert sampler.sample("GPU-v", 0, edge=False).unknown["power_w"] == "Not Supported"
    assert sampler.sample("GPU-v", SECOND // 10, edge=False).unknown == {}


def test_pcie_rates_are_asked_every_ten_seconds_of_one_device_at_a_time() -> None:
    nvml = FakeNvml({"GPU-a": A100, "GPU-b": A100})
    sampler = opened(nvml)
    asked: dict[str, list[float]] = {"GPU-a": [], "GPU-b": []}
    for k in range(201):
        for uuid, seen in asked.items():
            values = sampler.sample(uuid, k * SECOND // 10, edge=k == 0).values
            if "pcie_sent_bytes_per_s" in values:
                assert (values["pcie_sent_bytes_per_s"], values["pcie_received_bytes_per_s"]) == (1_500_000, 2_500_000)
                seen.append(k / 10)
    assert asked == {"GPU-a": [0.1, 10.1], "GPU-b": [5.0, 15.0]}


def test_a_mig_instance_tells_its_memory_and_says_why_nothing_else() -> None:
    nvml = FakeNvml({"MIG-1": {**H100, "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=123)}})
    reading = opened(nvml).sample("MIG-1", 0, edge=True)
    assert reading.values == {"memory_used_bytes": 123}
    assert set(reading.unknown.values()) == {OF_WHOLE_GPUS}
    assert nvml.calls["nvmlDeviceGetFieldValues"] == 0


def test_devices_go_by_uuid_and_strange_ones_are_refused() -> None:
    nvml = FakeNvml({"GPU-a": H100})
    sampler = NvmlSampler(nvml)
    assert sampler.open(["GPU-a", "GPU-z"]) == {"GPU-z": "NVML knows no such device: Not Found"}
    assert sampler.sample("GPU-a", 0, edge=True).values["temperature_c"] == 61
    sampler.close()
    assert nvml.open == 0


def test_without_a_driver_every_device_is_refused_and_closing_is_harmless() -> None:
    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:
            raise error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    sampler = NvmlSampler(NoDriver({}))
    assert sampler.open(["GPU-a"]) == {"GPU-a": "NVML: NVML Shared Library Not Found"}
    sampler.close()


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0, ()),
        (0x1, ("idle",)),
        (0x44, ("power cap", "heat (hardware)")),
        (0x1008, ("hardware slowdown", "reason 0x1000")),
    ],
)
def test_reasons_have_names(bits: int, names: tuple[str, ...]) -> None:
    assert reasons(bits) == names


def facts(changes: dict[str, Any], uuid: str = "GPU-a", pci: Path = Path("/nowhere")) -> Any:
    return facts_of(FakeNvml({uuid: H100 | changes}), uuid, uuid, pci)


def test_facts_are_the_drivers(tmp_path: Path) -> None:
    (tmp_path / "0000:1b:00.0").mkdir()
    (tmp_path / "0000:1b:00.0" / "numa_node").write_text("1\n")
    found = facts({"nvmlDeviceGetEnforcedPowerLimit": 350_000}, pci=tmp_path)
    assert (found.name, found.driver_version) == ("NVIDIA H100 80GB HBM3", "580.95.05")
    assert (found.power_cap_w, found.power_cap_default_w) == (350.0, 700.0)
    assert (found.sm_clock_max_hz, found.memory_clock_max_hz) == (1_980_000_000, 2_619_000_000)
    assert found.dram_bytes_per_s == 5120 / 8 * 2_619_000_000 * 2
    assert (found.mig, found.numa_node, found.unknown) == (False, 1, {})
    assert found.clock_policy == "free: application clocks at their highest"


def test_clocks_that_somebody_lowered_are_told() -> None:
    clocks = {pynvml.NVML_CLOCK_SM: 1_200, pynvml.NVML_CLOCK_MEM: 2_619}
    found = facts({"nvmlDeviceGetApplicationsClock": clocks.__getitem__})
    assert found.clock_policy == "application clocks: SM 1200 of 1980 MHz"


def test_facts_that_are_not_told_have_reasons(tmp_path: Path) -> None:
    (tmp_path / "0000:1b:00.0").mkdir()
    (tmp_path / "0000:1b:00.0" / "numa_node").write_text("-1\n")
    refused = error(NOT_SUPPORTED)
    found = facts({"nvmlDeviceGetApplicationsClock": refused, "nvmlDeviceGetMigMode": refused}, pci=tmp_path)
    assert (found.clock_policy, found.numa_node) == (None, None)
    assert found.mig is False  # a device that can't be cut
    assert found.unknown == {"clock_policy": "Not Supported", "numa_node": "the kernel names no NUMA node for it"}
    assert "0000:1b:00.0" in facts({}, pci=tmp_path / "none").unknown["numa_node"]


def test_facts_of_a_whole_gpu_are_not_those_of_its_instance() -> None:
    found = facts({}, uuid="MIG-1")
    assert (found.mig, found.power_cap_w, found.memory_bus_bits) == (True, None, None)
    assert found.unknown["power_cap_w"] == OF_WHOLE_GPUS


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"nvmlDeviceGetComputeRunningProcesses": [object()]}, "1 process held it"),
        ({"nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=7, memory=0)}, "it was 7 % utilised"),
        ({"nvmlDeviceGetUtilizationRates": error(NOT_SUPPORTED)}, "whether it is used can't be told: Not Supported"),
    ],
)
def test_a_device_in_use_is_told(changes: dict[str, Any], why: str | None) -> None:
    idle = H100 | {"nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0, memory=0)}
    assert opened(FakeNvml({"GPU-a": idle | changes})).busy("GPU-a") == why

"""The AMD sampler on answers as amdsmi 7.0 gives them (an MI300X's shape; no device was there)."""

from enum import IntEnum
from typing import Any

import pytest

from moecap.telemetry.amd import ABSENT, AmdSampler

SECOND = 10**9
UUID = "aaff74a1-0000-1000-8000-0123456789ab"


class AmdSmiError(Exception):
    """Stands for AmdSmiLibraryException."""

    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported"


class FakeSmi:
    """The module amdsmi with recorded answers; an exception is raised."""

    AmdSmiException = AmdSmiError
    AmdSmiClkType = IntEnum("AmdSmiClkType", {"GFX": 0, "MEM": 4})
    AmdSmiMemoryType = IntEnum("AmdSmiMemoryType", {"VRAM": 0})
    AmdSmiTemperatureType = IntEnum("AmdSmiTemperatureType", {"JUNCTION": 1, "VRAM": 2})
    AmdSmiTemperatureMetric = IntEnum("AmdSmiTemperatureMetric", {"CURRENT": 0})

    def __init__(self, **changes: Any) -> None:
        self.calls: list[str] = []
        self.open = 0
        self.answers: dict[str, Any] = {
            "amdsmi_get_processor_handles": ["h0"],
            "amdsmi_get_gpu_device_uuid": UUID,
            "amdsmi_get_energy_count": {"energy_accumulator": 2_000_000, "counter_resolution": 15.25, "timestamp": 1},
            "amdsmi_get_power_info": {"current_socket_power": 512, "average_socket_power": "N/A", "power_limit": 750},
            "amdsmi_get_gpu_activity": {"gfx_activity": 97, "umc_activity": 41, "mm_activity": "N/A"},
            "amdsmi_get_gpu_memory_usage": 191_000_000_000,
            "amdsmi_get_clock_info": lambda clock: {
                0: {"clk": 2_100, "max_clk": 2_100, "clk_locked": False}, 4: {"clk": 1_300, "max_clk": 1_300},
            }[int(clock)],
            "amdsmi_get_temp_metric": lambda sensor, metric: {1: 64, 2: 51}[int(sensor)],
            "amdsmi_get_power_cap_info": {"power_cap": 600_000_000, "default_power_cap": 750_000_000},
            "amdsmi_get_gpu_asic_info": {"market_name": "AMD Instinct MI300X"},
            "amdsmi_get_gpu_driver_info": {"driver_version": "6.12.12"},
            "amdsmi_get_gpu_vram_info": {"vram_bit_width": 8192},
            "amdsmi_get_gpu_topo_numa_affinity": -1,
        } | changes  # fmt: skip

    def amdsmi_init(self) -> None:
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("amdsmi_"):
            raise AttributeError(function)

        def call(*arguments: Any) -> Any:
            self.calls.append(function)
            answer = self.answers[function]
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments[1:]) if callable(answer) else answer

        return call


def opened(smi: FakeSmi) -> AmdSampler:
    sampler = AmdSampler(smi)
    assert sampler.open([UUID]) == {}
    return sampler


def test_quantities_are_in_our_units() -> None:
    reading = opened(FakeSmi()).sample(UUID, 0, edge=True)
    assert reading.values == {
        "energy_j": pytest.approx(30.5), "power_w": 512, "gpu_utilisation": 0.97, "memory_utilisation": 0.41,
        "memory_used_bytes": 191_000_000_000, "sm_clock_hz": 2_100_000_000, "memory_clock_hz": 1_300_000_000,
        "temperature_c": 64, "memory_temperature_c": 51,
    }  # fmt: skip
    assert reading.unknown == {"power_average_w": "amdsmi: answered 'N/A'"}
    assert {*reading.values, *reading.unknown} == set(AmdSampler.quantities)


def test_what_is_not_supported_is_asked_once_and_what_fails_again() -> None:
    smi = FakeSmi(amdsmi_get_energy_count=AmdSmiError(2), amdsmi_get_gpu_activity=AmdSmiError(16))
    sampler = opened(smi)
    told = [sampler.sample(UUID, k * SECOND, edge=k == 0).unknown for k in range(3)]
    assert told[0]["energy_j"].startswith("amdsmi: Error code: 2 | AMDSMI_STATUS_NOT_SUPPORTED")
    assert ["energy_j" in one for one in told] == [True, False, False]
    assert ["gpu_utilisation" in one for one in told] == [True, True, True]
    assert smi.calls.count("amdsmi_get_energy_count") == 1


def test_slow_quantities_come_once_a_second() -> None:
    sampler = opened(FakeSmi())
    slow = [k for k in range(21) if "temperature_c" in sampler.sample(UUID, k * SECOND // 10, edge=False).values]
    assert slow == [0, 10, 20]


def test_older_answers_for_no_value_are_none() -> None:
    power = {"current_socket_power": 0xFFFF, "average_socket_power": 131}
    reading = opened(FakeSmi(amdsmi_get_power_info=power)).sample(UUID, 0, edge=True)
    assert (reading.values["power_average_w"], reading.unknown["power_w"]) == (131, "amdsmi: answered 65535")


def test_facts_are_the_drivers() -> None:
    facts = opened(FakeSmi(amdsmi_get_gpu_vram_info=AmdSmiError(2))).facts(UUID)
    assert facts is not None
    assert (facts.name, facts.driver_version, facts.clock_policy) == ("AMD Instinct MI300X", "6.12.12", "free")
    assert (facts.power_cap_w, facts.power_cap_default_w) == (600.0, 750.0)
    assert (facts.sm_clock_max_hz, facts.memory_clock_max_hz) == (2_100_000_000, 1_300_000_000)
    assert set(facts.unknown) == {"memory_bus_bits", "numa_node", "mig"}


def test_devices_go_by_uuid_and_it_is_shut_down_once() -> None:
    smi = FakeSmi()
    sampler = AmdSampler(smi)
    assert sampler.open(["GPU-z", UUID]) == {"GPU-z": "amdsmi knows no such device"}
    sampler.close()
    sampler.close()
    assert smi.open == 0


def test_a_library_that_does_not_start_refuses_all() -> None:
    smi = FakeSmi(amdsmi_get_processor_handles=AmdSmiError(2))
    assert "AMDSMI_STATUS_NOT_SUPPORTED" in AmdSampler(smi).open([UUID])[UUID]


def test_without_the_package_every_device_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", absent)
    sampler = AmdSampler()
    assert sampler.open([UUID]) == {UUID: ABSENT}
    sampler.close()

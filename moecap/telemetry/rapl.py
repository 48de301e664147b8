"""Energy of CPU packages and of DRAM by the kernel's powercap tree (RAPL). It estimates nothing.

Energies count from the start of a recording, summed over all sockets; wrap-arounds of the counters are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moecap.telemetry.base import Reading, Sampler, read_each

POWERCAP = Path("/sys/class/powercap")
NO_TREE = (
    "{root} shows no RAPL domain: load the kernel module with `sudo modprobe intel_rapl_msr` (it serves AMD too); "
    "virtual machines usually have none, containers need {root} mounted"
)
NO_PERMISSION = "{file} may not be read: `sudo chmod a+r {root}/intel-rapl:*/energy_uj {root}/intel-rapl:*/*/energy_uj`"
NO_DOMAIN = "this CPU has no RAPL domain for {quantity}"


class NoEnergyError(Exception):
    """An energy that can't be read, and what would make it readable."""


@dataclass(slots=True)
class _Domain:
    """One counter, unwrapped: microjoules since the first reading."""

    file: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def advance(self) -> int:
        now_uj = int(self.file.read_text())
        # The counter restarts from 0 after `max_energy_range_uj`; samples come far more often than that.
        self.total_uj += now_uj - self.last_uj + (self.range_uj if now_uj < self.last_uj else 0)
        self.last_uj = now_uj
        return self.total_uj


class RaplSampler(Sampler):
    """Reads every `package-*` and `dram` domain below `root`."""

    quantities = ("package_energy_j", "dram_energy_j")

    def __init__(self, root: Path = POWERCAP) -> None:
        self._root = root

    def open(self, engine_pid: int | None) -> None:
        """Counting starts here. What can't be opened stays unknown for the whole recording."""
        names = self._domain_names()
        self._package = self._opened([folder for folder, name in names.items() if name.startswith("package")])
        self._dram = self._opened([folder for folder, name in names.items() if name == "dram"])
        self._any = bool(names)

    def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
        """A sum is known when all its domains are."""
        readers: dict[str, Callable[[], float]] = {
            "package_energy_j": lambda: self._energy_j("package", self._package),
            "dram_energy_j": lambda: self._energy_j("dram", self._dram),
        }
        return read_each(readers, (NoEnergyError, OSError, ValueError))

    def _domain_names(self) -> dict[Path, str]:
        """Domain folder -> its name. `intel-rapl-mmio:*` repeats the same packages and is left out."""
        folders = sorted({folder.resolve() for folder in self._root.glob("intel-rapl:*")})
        inner = [inside for folder in folders for inside in sorted(folder.glob("intel-rapl:*"))]
        found = {}
        for folder in dict.fromkeys([*folders, *(inside.resolve() for inside in inner)]):
            if (folder / "name").exists():
                found[folder] = (folder / "name").read_text().strip()
        return found

    def _opened(self, folders: list[Path]) -> list[_Domain] | NoEnergyError:
        domains = []
        for folder in folders:
            file = folder / "energy_uj"
            try:
                range_uj = int((folder / "max_energy_range_uj").read_text())
                domains.append(_Domain(file=file, range_uj=range_uj, last_uj=int(file.read_text())))
            except PermissionError:
                return NoEnergyError(NO_PERMISSION.format(file=file, root=self._root))
            except (OSError, ValueError) as error:
                return NoEnergyError(f"{file} can't be read: {error}")
        return domains

    def _energy_j(self, quantity: str, domains: list[_Domain] | NoEnergyError) -> float:
        if isinstance(domains, NoEnergyError):
            raise domains
        if not domains:
            reason = NO_DOMAIN if self._any else NO_TREE
            raise NoEnergyError(reason.format(root=self._root, quantity=quantity))
        return sum(domain.advance() for domain in domains) / 1e6

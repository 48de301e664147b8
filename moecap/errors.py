"""The errors that moecap raises on purpose. They cross process borders, so every one survives pickling.

    MoECapError
    ├── ConfigError               what the user wrote is wrong: key, value and remedy
    │   ├── StudyError            every problem of one study file at once
    │   └── UnknownDeviceError    a device that the catalogue doesn't hold
    ├── MissingDependencyError    an optional package is absent: the install line
    ├── UnsupportedModelError     a model (or part of one) that can't be accounted for or observed
    ├── EngineError               an engine did not start, hung, crashed or broke its contract
    ├── DetectionError            this machine's devices can't be listed
    ├── CalibrationError          a peak could not be measured
    ├── StoreError                the store can't be read or written, or holds something unexpected
    │   ├── StudyExistsError      the store holds this study already: --resume
    │   └── LeaseHeldError        another driver runs this study
    └── ClusterError              Ray could not be reached, or its nodes don't fit together

Foreign exceptions are translated where they enter (`raise Ours(...) from theirs`), nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass


class MoECapError(Exception):
    """Root of the tree. All arguments are positional and kept in `args`, which is what makes pickling work."""


class ConfigError(MoECapError):
    """Something the user wrote is wrong. `exit code 2` on the command line."""

    def __init__(self, message: str, key: str = "", value: object = None, remedy: str = "") -> None:
        super().__init__(message, key, value, remedy)
        self.message, self.key, self.value, self.remedy = message, key, value, remedy

    def __str__(self) -> str:
        where = f"{self.key} = {self.value!r}: " if self.key else ""
        return f"{where}{self.message}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong in a study."""

    key: str
    """Dotted path of the key, as `--set` would take it."""
    value: object
    """What was written there."""
    message: str
    """What is wrong with it."""
    remedy: str
    """What would be right."""

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.message}; {self.remedy}"


class StudyError(ConfigError):
    """All problems of one study file."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        MoECapError.__init__(self, source, problems)
        self.source, self.problems = source, problems

    def __str__(self) -> str:
        head = f"{self.source}: {len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class UnknownDeviceError(ConfigError):
    """A device name that is neither a catalogue key nor an alias."""


class MissingDependencyError(MoECapError):
    """An optional package is not installed."""

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        super().__init__(package, needed_for, install)
        self.package, self.needed_for, self.install = package, needed_for, install

    def __str__(self) -> str:
        return f"{self.needed_for} needs the package {self.package!r}, which is not installed: {self.install}"


class UnsupportedModelError(MoECapError):
    """A model, or a module of it, that can't be accounted for or observed."""


class EngineError(MoECapError):
    """An engine did not start, hung, crashed or broke its contract."""


class DetectionError(MoECapError):
    """This machine's devices can't be listed."""


class CalibrationError(MoECapError):
    """A peak could not be measured."""


class StoreError(MoECapError):
    """The store can't be read or written, or holds something unexpected."""


class StudyExistsError(StoreError):
    """The store holds this study already."""


class LeaseHeldError(StoreError):
    """Another driver runs this study."""


class ClusterError(MoECapError):
    """Ray could not be reached, or its nodes don't fit together."""

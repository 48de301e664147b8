"""Resolve a name in a registry (`name -> "module:Class"`) when it is used; third parties register by entry point."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from moecap.errors import ConfigError, MissingDependencyError


def known_names(registry: Mapping[str, str], group: str) -> list[str]:
    """Names of a registry and of the entry-point group that extends it."""
    return sorted({*registry, *(point.name for point in entry_points(group=group))})


def resolve(registry: Mapping[str, str], group: str, name: str) -> Any:
    """The object behind `name`. ConfigError for an unknown name, MissingDependencyError for an absent package."""
    targets = {point.name: point.value for point in entry_points(group=group)} | dict(registry)
    if name not in targets:
        raise ConfigError(f"is not in {group}", group, name, f"use one of {', '.join(known_names(registry, group))}")
    module, _, attribute = targets[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        if package == module.partition(".")[0]:
            raise
        raise MissingDependencyError(package, f"{group} {name!r}", f"pip install {package}") from error

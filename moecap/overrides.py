"""`--set a.b.0.c=YAML` on a study that was read but not checked yet. It knows no key of a study."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from moecap.errors import ConfigError

FORM = re.compile(r"(?P<path>[\w-]+(\.[\w-]+)*)(?P<append>\+?)=(?P<text>.*)", re.DOTALL)


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A changed copy. Numbers in a path index lists; `path+=YAML` appends to a list; missing mappings are made.

    Raises ConfigError for an override that isn't of the form, isn't YAML, or leads nowhere.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(raw))
    for override in overrides:
        form = FORM.fullmatch(override)
        if form is None:
            raise ConfigError(
                "is not of the form a.b.0.c=YAML", "--set", override, "for example sweep.concurrency=[1,8]"
            )
        try:
            value = yaml.safe_load(form["text"])
        except yaml.YAMLError as error:
            raise ConfigError("has no valid YAML after '='", "--set", override, "quote it for the shell") from error
        *parents, last = form["path"].split(".")
        target: Any = changed
        for part in parents:
            target = _step(target, part, override)
        if form["append"]:
            target = _step(target, last, override, default=[])
            if not isinstance(target, list):
                raise ConfigError("appends to something that is no list", "--set", override, "use = instead of +=")
            target.append(value)
        else:
            _step(target, last, override, default=value)
            target[int(last) if isinstance(target, list) else last] = value
    return changed


def _step(target: Any, part: str, override: str, default: Any = None) -> Any:
    """What lies at `part`; a mapping's missing key is made (as `default`, else as a mapping)."""
    if isinstance(target, dict):
        return target.setdefault(part, {} if default is None else default)
    if isinstance(target, list) and part.isdigit() and int(part) < len(target):
        return target[int(part)]
    size = f"a list of {len(target)}" if isinstance(target, list) else f"{target!r}"
    raise ConfigError(f"{part!r} leads nowhere in {size}", "--set", override, "give a path that the study has")

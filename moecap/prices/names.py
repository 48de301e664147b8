"""Names under `prices.hosts` and `prices.devices`: which can't belong to anything, and which no node of a fleet has.

Host names, CPU models and drivers' names of devices without a row are anyone's; what is written like a catalogue key is
the catalogue's. It prices nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from moecap.errors import UnknownDeviceError
from moecap.hardware.catalogue import catalogue, find_device, keys_named
from moecap.records import NodeInfo

UNKNOWN_HOST = "unknown-host-default"
KEY_LIKE = re.compile(r"[a-z0-9]+(-[a-z0-9.]+)+")
"""No driver reports a name without a capital, a space or a bracket."""
ACCELERATORS = ("gpu", "apu", "edge")
ALMOST = 0.8
"""Share of common characters from which a name is taken for a misspelt one."""


def host_name(name: str) -> str:
    """`name`, of a host or CPU model. ValueError for an accelerator's, and for a misspelt `unknown-host-default`."""
    row = row_named(name)
    if row is not None and catalogue()[row].kind != "cpu":
        raise ValueError(f"is no CPU but {row}; accelerators are priced under prices.devices")
    if name != UNKNOWN_HOST and difflib.get_close_matches(name, [UNKNOWN_HOST], cutoff=ALMOST):
        raise ValueError(f"is no host's name; did you mean {UNKNOWN_HOST!r}?")
    return name


def device_name(name: str) -> str:
    """`name`, of an accelerator: a catalogue key or what a driver reports. ValueError for a key that isn't in the
    catalogue, and for what is no accelerator."""
    row = row_named(name)
    if row is not None and catalogue()[row].kind not in ACCELERATORS:
        raise ValueError(f"is no accelerator ({row}: {catalogue()[row].kind}); CPUs and servers are priced under hosts")
    if row is None and KEY_LIKE.fullmatch(name) and not any(keys_named(name)):
        try:
            find_device(name)
        except UnknownDeviceError as error:
            raise ValueError(f"{error.message}; {error.remedy}") from error
    return name


def row_named(name: str) -> str | None:
    """The catalogue key of the one device that has this key, product name or alias to itself."""
    own, _ = keys_named(name)
    return own[0] if len(own) == 1 else None


def entry_for(name: str, entries: Collection[str]) -> str | None:
    """Which of `entries` is this host, CPU or device: the name itself, else another name of the same catalogue row."""
    if name in entries:
        return name
    row = row_named(name)
    return None if row is None else next((one for one in entries if row_named(one) == row), None)


def unmatched(prices: Mapping[str, Any], nodes: Sequence[NodeInfo]) -> Iterator[str]:
    """What a study prices and no node has, one sentence each; a catalogued device may still be a footprint's."""
    hosts = {node.hostname for node in nodes} | {node.cpu_model for node in nodes}
    devices = {device.name for node in nodes for device in node.devices if device.key is None}
    for section, held in (("hosts", hosts), ("devices", devices)):
        entries = list(prices.get(section) or ())
        used = {entry_for(name, entries) for name in held} | {UNKNOWN_HOST}
        for name in entries:
            if name not in used and not (section == "devices" and row_named(name)):
                nearest = difflib.get_close_matches(name, held, n=3, cutoff=0.4) or sorted(held)
                known = f"; these have {', '.join(map(repr, nearest))}" if nearest else ""
                yield f"prices.{section}.{name} is used by no run on these nodes{known}"

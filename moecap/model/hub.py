"""Which commit of a Hugging Face repository a bare id stands for. It downloads a configuration, never weights.

What this machine's cache holds comes first, so that a study repeats on the weights that are there; else the hub is
asked. Nothing here knows local folders.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

CONNECT_TIMEOUT_S = 5.0


@cache
def hub_commit(name: str) -> str | None:
    """The commit of `name` in the local cache, else that of its default branch; None where neither tells."""
    for only_cached in (True, False) if is_hub_reachable() else (True,):
        try:
            config = Path(hf_hub_download(name, "config.json", local_files_only=only_cached))
        except (
            LocalEntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
        ):  # whoever loads the weights says what is wrong with the name
            continue
        return config.parent.name  # .../snapshots/<commit>/config.json
    return None


@cache
def is_hub_reachable() -> bool:
    """Whether anything answers at the hub's address; its client would try again and again for half a minute.

    Behind a proxy it is taken for reachable, and never when `HF_HUB_OFFLINE` is set.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    endpoint = urlparse(constants.ENDPOINT)
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True

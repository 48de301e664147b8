"""Which commit of a Hugging Face repository a bare id stands for. It downloads a configuration, never weights.

What this machine's cache holds comes first, so that a study repeats on the weights that are there; else the hub is
asked. Nothing here knows local folders.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError


@cache
def hub_commit(name: str) -> str | None:
    """The commit of `name` in the local cache, else that of its default branch; None where neither tells."""
    for only_cached in (True, False):
        try:
            config = Path(hf_hub_download(name, "config.json", local_files_only=only_cached))
        except (LocalEntryNotFoundError, HfHubHTTPError):  # whoever loads the weights says what is wrong with the name
            continue
        return config.parent.name  # .../snapshots/<commit>/config.json
    return None

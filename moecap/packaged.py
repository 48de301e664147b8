"""Where the files of `configs/` lie: inside the package in a wheel, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from moecap.errors import MoECapError


def config_path(relative: str) -> Path:
    """`studies/laptop.yaml` or `prices.yaml` -> its path. MoECapError when the installation lacks it."""
    package = Path(__file__).resolve().parent
    for root in (package / "configs", package.parent / "configs"):
        if (root / relative).is_file():
            return root / relative
    raise MoECapError(f"this installation of moecap lacks configs/{relative}; install it again")

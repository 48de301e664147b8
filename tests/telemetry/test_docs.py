"""docs/telemetry.md has every quantity and every fact."""

from dataclasses import fields
from pathlib import Path

import pytest

from moecap.records import DeviceFacts
from moecap.telemetry.base import DEVICE_QUANTITIES, QUANTITIES

DOC = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*QUANTITIES, *DEVICE_QUANTITIES, *(f.name for f in fields(DeviceFacts))])
def test_it_is_there(name: str) -> None:
    assert f"`{name}`" in DOC

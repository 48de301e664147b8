"""Telemetry: what the silicon did, one source a file. `SAMPLERS` maps a source to `module:Class`."""

from __future__ import annotations

SAMPLERS: dict[str, str] = {
    "host": "moecap.telemetry.host:HostSampler",
    "rapl": "moecap.telemetry.rapl:RaplSampler",
    "fake": "moecap.telemetry.fake:FakeSampler",
}

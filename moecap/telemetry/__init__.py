"""Telemetry: what the silicon did, one source a file. `SAMPLERS` (of hosts) and `DEVICE_SAMPLERS` map a source to
`module:Class`."""

from __future__ import annotations

SAMPLERS: dict[str, str] = {
    "host": "moecap.telemetry.host:HostSampler",
    "rapl": "moecap.telemetry.rapl:RaplSampler",
    "fake": "moecap.telemetry.fake:FakeSampler",
}
DEVICE_SAMPLERS: dict[str, str] = {
    "nvml": "moecap.telemetry.nvml:NvmlSampler",
    "gpm": "moecap.telemetry.gpm:GpmSampler",
    "amd": "moecap.telemetry.amd:AmdSampler",
    "fake": "moecap.telemetry.fake:FakeDeviceSampler",
}

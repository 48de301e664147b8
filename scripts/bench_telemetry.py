"""What sampling costs, as a share of one core. Target: at most 1 % at 10 Hz with 8 devices.

    python scripts/bench_telemetry.py [--devices 8] [--seconds 20] [--hz 10] [--out FILE.json]

Simulated devices answer at once, so that what is left is this project's own cost; where there is an NVIDIA driver the
devices of this machine follow, with the driver's cost in it, and how long each question takes. Exit code 1: the
simulated devices missed the target.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pynvml

from moecap.hardware.detect import nvidia_devices
from moecap.telemetry.base import make_samplers
from moecap.telemetry.fake_nvml import H100, FakeNvml
from moecap.telemetry.gpm import GpmSampler
from moecap.telemetry.nvml import NvmlSampler
from moecap.telemetry.nvml_sources import (
    ENERGY_CALLS,
    FAST_FIELDS,
    LINK_FIELDS,
    PCIE_CALLS,
    SLOW_CALLS,
    SLOW_FIELDS,
    Field,
)
from moecap.telemetry.recorder import Recorder

TARGET = 0.01
ROUNDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8, help="simulated ones")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    simulated = [f"GPU-{index}" for index in range(args.devices)]
    fake = FakeNvml(dict.fromkeys(simulated, H100))
    result: dict[str, Any] = {"target": TARGET, "simulated": recorded(fake, simulated, args.seconds, args.hz)}
    show(f"{args.devices} simulated devices", result["simulated"])
    real = [device.uuid for device in nvidia_devices()]
    if real:
        result["real"] = recorded(pynvml, real, args.seconds, args.hz)
        show(f"{len(real)} devices of this machine", result["real"])
        result["questions"] = questions(real[0])
        show_questions(result["questions"])
    else:
        print("no NVIDIA driver here: the devices' own answers were not timed")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))
    sys.exit(result["simulated"]["cpu_share"] > TARGET)


def recorded(nvml: Any, uuids: Sequence[str], seconds: float, hz: float) -> Mapping[str, Any]:
    """The recorder's own account of one recording with every sampler of NVIDIA devices and of the host."""
    recorder = Recorder(make_samplers(), device_samplers=[NvmlSampler(nvml), GpmSampler(nvml)], hz=hz)
    recorder.start(None, uuids)
    time.sleep(seconds)
    return recorder.stop().stats


def questions(uuid: str) -> list[dict[str, Any]]:
    """Each call, alone: median wall time, mean CPU time, and what it answers."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    found = [timed(f"{name} in one call", fields(handle, group)) for name, group in GROUPS.items()]
    found += [timed(field.quantity, fields(handle, [field])) for field in (*FAST_FIELDS, *SLOW_FIELDS, *LINK_FIELDS)]
    found += [
        timed(", ".join(call.quantities), partial(call.read, pynvml, handle))
        for call in (*ENERGY_CALLS, *SLOW_CALLS, *PCIE_CALLS)
    ]
    sample = pynvml.nvmlGpmSampleAlloc()
    found.append(timed("GPM sample", lambda: pynvml.nvmlGpmSampleGet(handle, sample)))
    pynvml.nvmlGpmSampleFree(sample)
    pynvml.nvmlShutdown()
    return found


GROUPS: Mapping[str, Sequence[Field]] = {"fast fields": FAST_FIELDS, "links": LINK_FIELDS}


def fields(handle: Any, group: Sequence[Field]) -> Callable[[], Any]:
    ids = [(field.field_id, field.scope) for field in group]
    return lambda: [value.nvmlReturn for value in pynvml.nvmlDeviceGetFieldValues(handle, ids)]


def timed(name: str, ask: Callable[[], Any]) -> dict[str, Any]:
    walls, answer = [], ""
    cpu_s = time.thread_time()
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        try:
            answer = str(ask())
        except pynvml.NVMLError as error:
            answer = f"error: {error}"
        walls.append(time.perf_counter() - began_s)
    cpu_s = (time.thread_time() - cpu_s) / ROUNDS
    return {"question": name, "wall_s": sorted(walls)[ROUNDS // 2], "cpu_s": cpu_s, "answer": answer}


def show(name: str, stats: Mapping[str, Any]) -> None:
    verdict = "within" if stats["cpu_share"] <= TARGET else "above"
    print(f"{name} at {1 / stats['asked_period_s']:g} Hz: {stats['cpu_share']:.2%} of one core, {verdict} {TARGET:.0%}")
    for sampler, cpu_s in stats["cpu_s_by_sampler"].items():
        print(f"  {sampler:<14} {cpu_s / stats['wall_s']:.2%}")
    print(f"  {stats['samples']} samples, {stats['late_samples']} late, {stats['skipped_samples']} skipped")


def show_questions(found: Sequence[Mapping[str, Any]]) -> None:
    print(f"{'one device, each call alone':<44} {'wall ms':>8} {'CPU ms':>8}  answer")
    for one in found:
        print(f"{one['question']:<44} {one['wall_s'] * 1e3:8.3f} {one['cpu_s'] * 1e3:8.3f}  {one['answer'][:60]}")


if __name__ == "__main__":
    main()

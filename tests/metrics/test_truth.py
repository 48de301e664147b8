"""Counted bytes and FLOPs against hardware counters, worked out by hand on one decode pass that repeats."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand_made import HELD, PEAKS, a_run, device, one_pass, placed, routed, view
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.metrics.declare import METRICS, Observed
from moecap.metrics.one_phase import one_phase_stretches, passes_in
from moecap.metrics.reduce import AXES
from moecap.records import DeviceFacts, DeviceSample, PassRecord, Phase, TierRecord
from moecap.schema import PASSES, table_of
from moecap.store import RunData

assert AXES
S = 10**9
RESIDENT = replace(HELD, resident_weight_bytes=1200)
FACTS = DeviceFacts(name="card", memory_bus_bits=16, memory_clock_max_hz=1000)
"""16 / 8 x 1000 x 2 = 4000 bytes a second."""
PASS_BYTES = 2016
"""One request of context 8, a row of padding, two experts fired and a third for padding. Weights: mixer 100, 3 x 50,
router 10, norms 11, lm_head 100: 371 x 4; KV read 8 x 4 x 2, written 8; two embedding rows of 20; activations (2 rows x
35 + 1 x 35) x 4: 1484 + 64 + 8 + 40 + 420."""
ALL_EXPERTS, MIN_BK = PASS_BYTES + 200, PASS_BYTES - 200
"""4 experts; 1 token x top-2."""


def decodes(count: int, start_s: float = 0.25, seconds: float = 1.0) -> tuple[PassRecord, ...]:
    return tuple(
        one_pass(index, Phase.DECODE, start_s + index * seconds, seconds, (1,), (8,), padded_tokens=1)
        for index in range(count)
    )


def counters(rate: float = 0.5, uuid: str = "GPU-a", **rates: float) -> tuple[DeviceSample, ...]:
    """Every half second, and nothing of it in the readings between."""
    return tuple(
        device(t, uuid, dram_active_s=rate * (t + 1), **{name: one * (t + 1) for name, one in rates.items()})
        if index % 2 == 0
        else device(t, uuid, power_w=1.0)
        for index, t in enumerate(np.arange(-1, 13, 0.25).tolist())
    )


def run_of(passes: tuple[PassRecord, ...], *devices: DeviceSample, uuids: Any = ("GPU-a",), **changes: Any) -> RunData:
    routing = tuple(routed(one.pass_id, (1, 1, 0, 0), physical=3) for one in passes)
    plain = {"held": RESIDENT, "device_facts": dict.fromkeys(uuids, FACTS), **placed(*uuids)}
    return a_run(passes=passes, routing=routing, devices=devices, **{**plain, **changes})


def of(name: str, run: RunData, phase: str | None = "decode") -> Observed:
    """Against the first peaks, where they matter."""
    return next(one for one in METRICS[name].observe(view(run)) if one.phase == phase)


def value(name: str, run: RunData, phase: str | None = "decode") -> float:
    one = of(name, run, phase)
    assert one.numerator is not None and one.denominator is not None, one.missing
    return one.numerator / one.denominator


def test_one_pass_by_hand() -> None:
    work = view(run_of(decodes(1))).work
    found = (work.physical_bytes, work.physical_bytes_all_experts, work.physical_bytes_min_bk)
    assert [one.tolist() for one in found] == [[PASS_BYTES], [ALL_EXPERTS], [MIN_BK]]


def test_errors_over_the_longest_window_between_two_readings() -> None:
    """Decode from 0.25 to 8.25 s, read at 0.5 and 8 s: three quarters of the first pass and of the last, six whole.
    Half of 4000 bytes/s were active."""
    run = run_of(decodes(8), *counters())
    assert value("dram_bytes", run) == pytest.approx(7.5 * 2000)
    assert value("dram_utilisation", run) == pytest.approx(0.5)
    assert value("counted_dram_utilisation", run) == pytest.approx(PASS_BYTES / 4000)
    assert value("s_mbu_error", run) == pytest.approx(PASS_BYTES / 2000 - 1)
    assert value("mbu_error", run) == pytest.approx(ALL_EXPERTS / 2000 - 1)
    assert value("mbu_min_bk_error", run) == pytest.approx(MIN_BK / 2000 - 1)
    assert of("s_mbu_error", run).told == {"window": "7.5 s, 8 passes"}
    assert value("dram_bytes", run, None) == pytest.approx(10 * 2000), "of the measurement window"
    prefill = of("s_mbu_error", run, "prefill").missing
    assert prefill is not None and prefill.startswith("0.0 s are the longest time of prefill passes alone")


def test_a_reading_right_after_the_phase_began_may_hold_what_was_before() -> None:
    """Decode from 0.45 to 8.45 s: 0.5 s is too soon after, so from 1 to 8 s; at 8.45 s nothing follows that could be
    held."""
    run = run_of(decodes(8, start_s=0.45), *counters())
    assert of("s_mbu_error", run).told == {"window": "7.0 s, 8 passes"}


def test_the_window_may_lie_outside_of_the_measurement() -> None:
    """A batch that is decoded after the last request was sent."""
    run = run_of(decodes(8), *counters(), window_s=(0.0, 1.0))
    assert value("s_mbu_error", run) == pytest.approx(PASS_BYTES / 2000 - 1)


def test_the_longest_of_several_stretches_counts() -> None:
    """Decode from 0.25 to 6.25 s, a mixed pass, decode from 7.25 to 9.25 s; then the same the other way round."""
    for first, last, window in ((6, 2, "5.5 s, 6 passes"), (2, 6, "5.5 s, 6 passes")):
        mixed = one_pass(50, Phase.MIXED, 0.25 + first, 1.0, (3,), (8,))
        later = (replace(one, pass_id=60 + one.pass_id) for one in decodes(last, 1.25 + first))
        run = run_of((*decodes(first), mixed, *later), *counters())
        assert of("s_mbu_error", run).told == {"window": window}


def test_shares_are_of_valid_passes() -> None:
    """Half of the first, all of the second; the third is invalid, the fourth comes later."""
    passes = tuple(replace(one, valid=one.pass_id != 2) for one in decodes(4, start_s=0.0))
    found, shares = passes_in(table_of(PASSES, passes), (S // 2, 3 * S))
    assert found.pass_id.tolist() == [0, 1] and shares.tolist() == [0.5, 1.0]


def test_other_passes_part_stretches() -> None:
    """A mixed pass at 6 s, an invalid one at 13 s, nothing scheduled from 15 to 16 s."""
    decode, mixed = Phase.DECODE, Phase.MIXED
    kinds = [(0, decode, True), (5, decode, True), (6, mixed, True), (7, decode, True), (13, decode, False),
             (14, decode, True), (16, decode, True)]  # fmt: skip
    lengths = (5, 1, 1, 6, 1, 1, 1)
    passes = tuple(
        one_pass(index, phase, start, seconds, (1,), (8,), valid=valid)
        for index, ((start, phase, valid), seconds) in enumerate(zip(kinds, lengths, strict=True))
    )
    found = [one.stretch for one in one_phase_stretches(table_of(PASSES, passes[::-1]))]
    assert found == [(0, 6 * S), (7 * S, 13 * S), (14 * S, 15 * S), (16 * S, 17 * S)]


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"passes": decodes(5)}, "4.5 s are the longest time of decode passes alone between two readings"),
        ({"devices": [device(t, power_w=1.0) for t in (0, 5, 9)], "unknown": {"devices.dram_active_s": "needs Hopper"}},
         "no hardware counter of DRAM traffic was read: needs Hopper"),
        ({"held": HELD}, "weights are streamed"),
        ({"tiers": (TierRecord(pass_id=0, tier="ssd", bytes_read=1, expert_hits=0, expert_misses=1, stall_ns=0),)},
         "weights are streamed"),
        ({"uuids": ("GPU-a", "GPU-b"), "devices": (*counters(), *counters(uuid="GPU-b"))}, "2 devices"),
        ({"device_facts": {"GPU-a": replace(FACTS, mig=True)}}, "MIG"),
        ({"device_facts": {}}, "dram_bytes_per_s of GPU-a: the device's settings were not read"),
        ({"device_facts": {"GPU-a": DeviceFacts(name="card", unknown={"memory_bus_bits": "not supported"})}},
         "dram_bytes_per_s of GPU-a: not supported"),
        ({"passes": (*decodes(8), replace(decodes(1)[0], pass_id=9, replica=1))}, "several replicas overlap"),
        ({"devices": ()}, "the run recorded no devices"),
    ],
)  # fmt: skip
def test_why_there_is_no_error(made: dict[str, Any], why: str) -> None:
    changes = {"passes": decodes(8), "devices": counters(), **made}
    run = run_of(changes.pop("passes"), *changes.pop("devices"), **changes)
    missing = view(run).why_absent("devices") or of("s_mbu_error", run).missing
    assert missing is not None and why in missing


def test_traffic_of_several_devices_adds_up() -> None:
    """0.5 of 4000 and 0.25 of 8000 bytes/s, for the 10 s of the window."""
    facts = {"GPU-a": FACTS, "GPU-b": replace(FACTS, memory_bus_bits=32)}
    both = (*counters(), *counters(0.25, "GPU-b"))
    run = run_of(decodes(8), *both, uuids=("GPU-a", "GPU-b"), device_facts=facts)
    assert value("dram_bytes", run, None) == pytest.approx(10 * (2000 + 2000))
    assert value("dram_utilisation", run, None) == pytest.approx(4000 / 12000)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.floats(0.3, 3.0), min_size=5, max_size=12),
    contexts=st.lists(st.integers(1, 60), min_size=12, max_size=12),
    readings=st.lists(st.floats(0.01, 0.99), min_size=10, max_size=30),
)
def test_no_error_where_the_counter_saw_what_was_counted(
    lengths: list[float], contexts: list[int], readings: list[float]
) -> None:
    """Whatever the passes are and whenever it is read: a counter that rises in each pass by what that pass read."""
    lengths = [length * 8 / sum(lengths) for length in lengths]  # 8 s in all
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    passes = tuple(
        one_pass(index, Phase.DECODE, starts[index], lengths[index], (1,), (contexts[index],))
        for index in range(len(lengths))
    )
    per_pass = view(run_of(passes, window_s=(-1.0, 20.0))).work.physical_bytes
    risen = np.concatenate([[0.0], np.cumsum(per_pass)]) / FACTS.dram_bytes_per_s
    times = sorted({0.5, 4.0, 7.5, *(8 * one for one in readings)})
    run = run_of(passes, *(device(t, dram_active_s=float(np.interp(t, starts, risen))) for t in (-1, *times, 9)))
    assert value("s_mbu_error", run) == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------ tensor activity

FLOPS = 2 * 200 + 8 * 8 + 200
"""A token's 200 matrix parameters, 8 keys of 8 FLOPs, a row of logits over 100 parameters: 664."""


def test_tile_efficiency_by_hand() -> None:
    """664 FLOPs a second of 1e6: 6.64e-4 of the time; tensor cores were active for 1e-3 of it. In the window of 10 s
    passes ran for 8."""
    run = run_of(decodes(8), *counters(tensor_active_s=1e-3))
    assert value("tile_efficiency", run) == pytest.approx(FLOPS / 1e6 / 1e-3)
    assert value("tile_efficiency", run, None) == pytest.approx(0.8 * FLOPS / 1e6 / 1e-3)


def test_what_is_invalid_outside_of_the_window_takes_nothing_from_it() -> None:
    late = replace(decodes(1, 11.0)[0], pass_id=9, valid=False)
    run = run_of((*decodes(8), late), *counters(tensor_active_s=1e-3))
    assert value("tile_efficiency", run, None) == pytest.approx(0.8 * FLOPS / 1e6 / 1e-3)


def test_tile_efficiency_of_two_devices() -> None:
    """The peak is that of both; each was active for 1e-3 of the time."""
    both = (*counters(tensor_active_s=1e-3), *counters(uuid="GPU-b", tensor_active_s=1e-3))
    run = run_of(decodes(8), *both, uuids=("GPU-a", "GPU-b"))
    assert value("tile_efficiency", run) == pytest.approx(FLOPS * 2 / 1e6 / 2e-3)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"peaks": (replace(PEAKS, flops_per_s={"bfloat16": 1e6}),)}, "no dense float32 peak"),
        ({"unknown": {"devices.tensor_active_s": "not supported"}, "devices": counters()},
         "tensor_active_s of GPU-a: not supported"),
        ({"devices": counters(tensor_active_s=0.0)}, "the tensor cores were never active"),
        ({"passes": (*decodes(8), replace(decodes(1, 9.0)[0], pass_id=9, valid=False))},
         "1 passes of the window are invalid"),
    ],
)  # fmt: skip
def test_why_there_is_no_tile_efficiency(made: dict[str, Any], why: str) -> None:
    changes = {"passes": decodes(8), "devices": counters(tensor_active_s=1e-3), **made}
    missing = of("tile_efficiency", run_of(changes.pop("passes"), *changes.pop("devices"), **changes), None).missing
    assert missing is not None and why in missing

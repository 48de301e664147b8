"""The fit on times that follow a known law, what is shipped, and what is marked as link speed only."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moecap.hardware.catalogue import find_device
from moecap.predict.collectives import LINK_SPEED, Links, buffer_bytes, collective_time, links_of
from moecap.predict.fit import Measured, error_of, fit, held_out, time_of, used
from moecap.predict.placement import topology

ROOT = Path(__file__).parent.parent.parent
H100 = links_of(find_device("nvidia-h100-sxm5-80gb"), 50e9)
SIZES = [2**power for power in range(9, 30)]


def test_one_line_is_found_again() -> None:
    pieces = fit([Measured(size_bytes=size, time_s=5e-6 + size / 2e11) for size in SIZES])
    (piece,) = pieces
    assert piece.latency_s == pytest.approx(5e-6) and piece.s_per_byte == pytest.approx(1 / 2e11)


def test_a_change_of_protocol_makes_a_piece() -> None:
    """Below 1 MiB 5 µs and 20 GB/s, from there 30 µs and 200 GB/s."""
    points = [
        Measured(size_bytes=size, time_s=5e-6 + size / 2e10 if size < 2**20 else 3e-5 + size / 2e11) for size in SIZES
    ]
    small, large = fit(used(points))
    assert small.latency_s == pytest.approx(5e-6) and large.s_per_byte == pytest.approx(1 / 2e11)
    assert 2**19 < large.from_bytes <= 2**21
    assert max(abs(error_of([small, large], one)) for one in held_out(points) if one.size_bytes != 2**20) < 1e-6


def test_neither_latency_nor_slope_is_below_zero() -> None:
    falling = fit([Measured(size_bytes=size, time_s=1e-5 - size * 1e-12) for size in (10, 10**6, 5 * 10**6)])
    assert all(piece.s_per_byte == 0 and piece.latency_s > 0 for piece in falling)


def test_used_and_held_out_sizes_take_turns() -> None:
    points = [Measured(size_bytes=size, time_s=1.0) for size in (1, 1, 2, 2, 3)]
    assert [one.size_bytes for one in used(points)] == [1, 1, 3]
    assert [one.size_bytes for one in held_out(points)] == [2, 2]


def test_sizes_are_those_of_whole_buffers() -> None:
    """No link is faster than it is rated: read as a buffer's own part alone, the largest all-gather on two GPUs would
    move 517 GB/s over a link of 450."""
    with (ROOT / "docs/results/collectives/nccl.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["device"] == "nvidia-h100-sxm5-80gb"]
    rates = [
        float(buffer_bytes_moved(row)) / (float(row["latency_us"]) * 1e-6) for row in rows if row["dtype"] == "half"
    ]
    assert max(rates) < H100.in_node_bytes_per_s == 450e9


def buffer_bytes_moved(row: dict[str, str]) -> float:
    """What a rank moves of a buffer of that size."""
    ranks = int(row["num_gpus"])
    return int(row["size_bytes"]) * (ranks - 1) / ranks * (2 if row["operation"] == "all_reduce" else 1)


def test_moved_bytes_and_buffers_by_hand() -> None:
    assert buffer_bytes("all_to_all", 4, np.array(300.0)) == pytest.approx(400)
    assert buffer_bytes("all_reduce", 4, np.array(300.0)) == pytest.approx(200)


def test_the_shipped_fit_gives_times_near_a_measured_one() -> None:
    """All-to-all of 1 MiB on 8 H100s took 15.61 µs; this size was not fitted to."""
    moved = np.array([2**20 * 7 / 8])
    timed = collective_time("all_to_all", topology(8, 1), H100, moved, np.zeros(1))
    assert timed.seconds.value[0] == pytest.approx(15.61e-6, rel=0.12)
    assert timed.seconds.low[0] <= 15.61e-6 <= timed.seconds.high[0]
    assert timed.provenance == "fit of NCCL 2.29.2 on 8 nvidia-h100-sxm5-80gb of one host"


def test_bounds_are_the_errors_of_what_was_held_out() -> None:
    fits = json.loads((ROOT / "moecap/predict/collectives.json").read_text())["fits"]
    (one,) = (f for f in fits if (f["device"], f["operation"], f["num_gpus"]) == (H100.device, "all_gather", 4))
    error = one["errors"]["above 4 MiB"]
    timed = collective_time("all_gather", topology(4, 1), H100, np.array([3e7]), np.zeros(1))
    assert timed.seconds.low[0] == pytest.approx(timed.seconds.value[0] / (1 + max(0, error["high"])))
    assert timed.seconds.high[0] == pytest.approx(timed.seconds.value[0] / (1 + min(0, error["low"])))


def test_three_gpus_are_taken_for_four() -> None:
    timed = collective_time("all_gather", topology(3, 1), H100, np.array([1e6]), np.zeros(1))
    assert timed.provenance.endswith("of one host, taken for 3")


@pytest.mark.parametrize("where", [topology(16, 2), topology(16, 1), topology(8, 2)])
def test_several_hosts_and_more_ranks_are_link_speed_only(where) -> None:  # type: ignore[no-untyped-def]
    timed = collective_time("all_to_all", where, H100, np.array([450e6, 0.0]), np.array([100e6, 0.0]))
    assert timed.provenance == LINK_SPEED
    # 450 MB at 450 GB/s take 1 ms, 100 MB at 50 GB/s 2 ms: side by side, at least 2 ms; nothing takes no time.
    assert timed.seconds.value.tolist() == pytest.approx([2e-3, 0])
    assert timed.seconds.high.tolist() == [np.inf, 0]


def test_a_device_without_measurements_is_link_speed_only() -> None:
    other: Links = replace(H100, device="nvidia-l4-24gb")
    assert collective_time("all_reduce", topology(2, 1), other, np.ones(1), np.zeros(1)).provenance == LINK_SPEED


def test_one_rank_takes_no_time() -> None:
    assert (
        collective_time("all_reduce", topology(1, 1), H100, np.zeros(3), np.zeros(3)).seconds.high.tolist() == [0] * 3
    )


def test_link_speed_is_that_of_one_direction() -> None:
    assert H100.in_node_bytes_per_s == 450e9
    assert links_of(find_device("nvidia-l4-24gb"), 1e9).in_node_bytes_per_s == 32e9


def test_time_follows_the_piece_that_holds_the_size() -> None:
    pieces = fit([Measured(size_bytes=size, time_s=1e-6 + size / 1e9) for size in SIZES])
    assert time_of(pieces, 2e9) == pytest.approx(2.000001)

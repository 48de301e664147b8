"""Collectives between two CPU processes over gloo: the path that GPUs take over NCCL, and what their messages weigh."""

from __future__ import annotations

import pytest

from moecap.hardware.collectives import calibrate_collectives

QUANTITIES = {
    "all_reduce_bytes_per_s", "all_gather_bytes_per_s", "reduce_scatter_bytes_per_s", "all_to_all_bytes_per_s",
}  # fmt: skip


@pytest.mark.slow
def test_two_processes_measure_every_collective_at_every_size() -> None:
    rates = calibrate_collectives((), sizes=(4100, 2**16))
    assert rates.peaks is None and rates.unknown == {}
    found = {(one.quantity, one.at["message_bytes"]): one for one in rates.measured}
    # 4100 bytes are 512 float32 elements for each of two: 4096 bytes in all
    assert set(found) == {(quantity, size) for quantity in QUANTITIES for size in (4096, 2**16)}
    assert all(one.at["devices"] == 2 and one.value > 0 and one.spread >= 0 for one in rates.measured)
    # A message of 64 KiB moves faster than one of 4 KiB, whose time is latency.
    for quantity in QUANTITIES:
        assert found[quantity, 2**16].value > found[quantity, 4096].value

"""Several calibrations of one hardware become one, by hand."""

from dataclasses import replace

from hand_made import NODE, PEAKS, a_run

from moecap.metrics.peaks import highest_calibrations, with_peaks
from moecap.records import DeviceInfo, Manifest, Peaks


def manifest(memory: float, flops: dict[str, float], *, fingerprint: str = "here") -> Manifest:
    peaks = replace(PEAKS, memory_bytes_per_s=memory, flops_per_s=flops, tier_bytes_per_s={}, method=f"at {memory:g}")
    return replace(a_run(node=NODE, peaks=(peaks,)).manifest, fingerprint=fingerprint)


def test_the_highest_of_each_quantity_counts_for_every_run() -> None:
    quiet, busy = manifest(50.0, {"float32": 7.0}), manifest(30.0, {"float32": 8.0, "bfloat16": 2.0})
    elsewhere = manifest(90.0, {"float32": 99.0}, fingerprint="there")
    found = highest_calibrations([busy, quiet, elsewhere])
    for one in (quiet, busy):
        (peaks,) = with_peaks(one, found).peaks
        assert (peaks.memory_bytes_per_s, peaks.flops_per_s) == (50.0, {"float32": 8.0, "bfloat16": 2.0})
        assert peaks.method == "at 50"
    assert with_peaks(elsewhere, found) == elsewhere


def test_one_device_of_a_node_is_no_measure_of_two() -> None:
    """Both runs used all CPUs of the same hardware."""
    devices = tuple(DeviceInfo(uuid=f"GPU-{i}", index=i, name="d", key=None, memory_bytes=1) for i in range(3))

    def on(memory: float, *uuids: str) -> Manifest:
        run = manifest(memory, {})
        return replace(
            run, node=replace(run.node, devices=devices), placement=replace(run.placement, device_uuids=uuids)
        )

    one, two, other = on(50.0, "GPU-0"), on(99.0, "GPU-0", "GPU-1"), on(40.0, "GPU-2")
    found = highest_calibrations([one, two, other])
    assert [with_peaks(run, found).peaks[0].memory_bytes_per_s for run in (one, two, other)] == [50.0, 99.0, 50.0]


def test_rated_peaks_stay_as_they_are() -> None:
    rated = Peaks(source="catalogue", memory_bytes_per_s=1.0, flops_per_s={})
    run = replace(manifest(50.0, {}), peaks=(rated,))
    assert with_peaks(run, highest_calibrations([manifest(60.0, {})])) == run

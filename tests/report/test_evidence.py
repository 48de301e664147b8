"""What is kept of the runs: routing sums of valid passes inside windows, remarks, machines."""

import numpy as np
import pytest
from study_in_hand import accuracy_point, forward_pass, performance_point, routed, run_of

from moecap.records import Phase, Window
from moecap.report.evidence import Evidence, RoutingSums, Traffic, collect

POINT = performance_point("resident", 1)
STEADY = Window(start_ns=100, end_ns=200, phase=Phase.STEADY)


def test_only_valid_passes_that_end_inside_the_window_count() -> None:
    passes = [
        forward_pass(0, 99), forward_pass(1, 100), forward_pass(2, 150, valid=False), forward_pass(3, 200),
        forward_pass(4, 201),
    ]  # fmt: skip
    routing = [routed(pass_id, layer, [10**pass_id, layer, 0]) for pass_id in range(5) for layer in (1, 3)]
    evidence = collect([run_of(POINT, [STEADY], passes, routing)])
    sums = evidence.routing[Traffic(model="reference", system="resident", task=None)]
    assert {layer: counts.tolist() for layer, counts in sums.counts.items()} == {1: [1000, 1, 0], 3: [1000, 3, 0]}
    assert (sums.distinct, sums.pass_layers) == (4, 2)  # what ends as the window opens was made before it


def test_tasks_are_kept_apart_and_runs_of_a_system_are_summed() -> None:
    point = accuracy_point("resident", ("add", "sort"))
    windows = [
        Window(start_ns=0, end_ns=100, phase=Phase.ACCURACY, label="add"),
        Window(start_ns=101, end_ns=200, phase=Phase.ACCURACY, label="sort"),
    ]
    passes = [forward_pass(0, 50), forward_pass(1, 150)]
    run = run_of(point, windows, passes, [routed(0, 0, [2, 0]), routed(1, 0, [1, 1])])
    evidence = collect([run, run])
    found = {traffic.task: sums.counts[0].tolist() for traffic, sums in evidence.routing.items()}
    assert found == {"add": [4, 0], "sort": [2, 2]}


def test_warm_up_is_not_shown() -> None:
    warm_up = Window(start_ns=0, end_ns=100, phase=Phase.WARMUP)
    assert not collect([run_of(POINT, [warm_up], [forward_pass(0, 50)], [routed(0, 0, [1])])]).routing


def test_runs_are_read_once_and_may_be_without_passes() -> None:
    runs = iter([run_of(POINT, [STEADY]), run_of(POINT, [STEADY])])
    assert not collect(runs).routing
    assert next(runs, None) is None


def test_dropped_points_are_left_out() -> None:
    run = run_of(POINT, [STEADY], [forward_pass(0, 150)], [routed(0, 0, [1])], flags={"dummy_weights": "random"})
    assert collect([run]).routing
    assert collect([run], [POINT.point_id]) == Evidence()


def test_flags_failed_checks_and_unknowns_are_told_once_a_system() -> None:
    stated = {
        "flags": {"dummy_weights": "random weights"}, "checks_failed": {"all_requests_completed": "1 of 8 failed"},
        "unknown": {"package_energy_j": "no RAPL"},
    }  # fmt: skip
    runs = [run_of(performance_point(system, load), [], **stated) for system in ("a", "b") for load in (1, 8)]
    evidence = collect(runs)
    assert {remark: list(systems) for remark, systems in evidence.remarks.items()} == {
        "dummy weights: random weights": ["a", "b"],
        "failed check all_requests_completed: 1 of 8 failed": ["a", "b"],
        "unknown package_energy_j: no RAPL": ["a", "b"],
    }
    assert evidence.dummy_models == {"reference"}
    assert len(evidence.machines) == 1


def test_layers_of_another_width_are_not_mixed_in() -> None:
    sums = RoutingSums()
    sums.add(0, np.array([1, 2]), 2, 1)
    with pytest.raises(ValueError, match="broadcast"):
        sums.add(0, np.array([1, 2, 3]), 3, 1)

from __future__ import annotations

from fleet import GIB, accuracy_point, node, point

from cluster.place import Placer, groups, place_points
from cluster.weights import weights_key
from moecap.records import Placement, Refusal


def placed(answer: Placement | Refusal) -> Placement:
    assert isinstance(answer, Placement), answer
    return answer


def refused(answer: Placement | Refusal) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


H100 = node("gpu1", kinds=("gpu", "cpu-offload"), device="h100-sxm-80gb", devices=2)
CPU = node("cpu1")


def test_a_point_goes_to_the_node_of_its_kind_with_all_its_cpus() -> None:
    placement = placed(Placer(nodes=[CPU, H100]).place(point(kind="gpu")))
    assert placement == Placement(
        node_id="id-gpu1", hostname="gpu1", kind="gpu", device_uuids=("GPU-gpu1-0",), num_cpus=8
    )


def test_a_kind_that_no_node_has_is_refused_with_the_kinds_that_exist() -> None:
    refusal = refused(Placer(nodes=[CPU]).place(point(kind="gpu")))
    assert refusal.reason == "no node of kind 'gpu'"
    assert "kinds here: cpu, cpu-offload" in refusal.remedy
    assert "moecap.io/kind=gpu" in refusal.remedy


def test_an_empty_fleet_refuses() -> None:
    assert "kinds here: none" in refused(Placer(nodes=[]).place(point())).remedy


def test_a_node_that_offers_no_cpu_hosts_nothing() -> None:
    assert refused(Placer(nodes=[node("head", num_cpus=0)]).place(point())).reason == "no node of kind 'cpu'"


def test_a_device_that_is_absent_is_refused_with_those_present() -> None:
    refusal = refused(Placer(nodes=[CPU, H100]).place(point(kind="gpu", device="a100-sxm-80gb")))
    assert refusal.reason == "no gpu node has device 'a100-sxm-80gb'"
    assert "h100-sxm-80gb" in refusal.remedy


def test_a_device_may_go_by_the_name_that_its_driver_reports() -> None:
    from moecap.hardware.catalogue import catalogue

    spec = next(one for one in catalogue().values() if one.aliases)
    aliased = node("n", kinds=("gpu",), device=spec.key, devices=1)
    assert placed(Placer(nodes=[aliased]).place(point(kind="gpu", device=spec.aliases[0]))).hostname == "n"


def test_device_cpu_leaves_accelerators_alone() -> None:
    assert placed(Placer(nodes=[H100, CPU]).place(point(kind="cpu-offload", device="cpu"))).hostname == "cpu1"
    both = node("gpu2", kinds=("gpu", "cpu", "cpu-offload"), device="h100-sxm-80gb", devices=2)
    for kind in ("cpu", "cpu-offload"):
        assert placed(Placer(nodes=[both]).place(point(kind=kind, device="cpu"))).device_uuids == ()
    assert placed(Placer(nodes=[both]).place(point(kind="cpu-offload"))).device_uuids == ("GPU-gpu2-0",)
    assert "no gpu node has device 'cpu'" in refused(Placer(nodes=[both]).place(point(kind="gpu", device="cpu"))).reason


def test_an_engine_that_spans_more_devices_than_any_node_has_is_refused() -> None:
    refusal = refused(Placer(nodes=[H100]).place(point(kind="gpu", tensor_parallel_size=2, data_parallel_size=2)))
    assert refusal.reason == "needs 4 devices on one node; the largest gpu node has 2"
    both = placed(Placer(nodes=[H100]).place(point(kind="gpu", tensor_parallel_size=2)))
    assert both.device_uuids == ("GPU-gpu1-0", "GPU-gpu1-1")


def test_weights_that_fit_nowhere_are_refused_and_known_bytes_choose_the_larger_node() -> None:
    small, large = node("a", memory_bytes=8 * GIB), node("b", memory_bytes=64 * GIB)
    held = {weights_key(point().model, point().system): 60 * GIB}
    fits = Placer(nodes=[small, large], weight_bytes=held).place(point())
    assert placed(fits).hostname == "b"
    refusal = refused(Placer(nodes=[small], weight_bytes=held).place(point()))
    assert refusal.reason == "m takes 64.4 GB; the largest cpu node has 8.6 GB for it"


def test_systems_spread_over_equal_nodes_and_keep_their_points_together() -> None:
    points = {
        one.point_id: one
        for one in (
            point("a"),
            point("a", concurrency=8),
            accuracy_point("a"),
            point("b"),
            point("c"),
            point("c", concurrency=8),
        )
    }
    answers = place_points(points.items(), Placer(nodes=[node("n2"), node("n1")]), {})
    hosts = [placed(answer).hostname for answer in answers.values()]
    # a's accuracy point has the same (model, system): the same engine. b goes to the idle node, c to the less loaded.
    assert hosts == ["n1", "n1", "n1", "n2", "n2", "n2"]
    assert [(group.system.name, len(group.point_ids)) for group in groups(points.items(), answers)] == [
        ("a", 3), ("b", 1), ("c", 2),
    ]  # fmt: skip


def test_a_cpu_system_leaves_accelerators_alone_when_it_can() -> None:
    both = node("a", kinds=("cpu", "gpu"), device="h100-sxm-80gb", devices=1)
    assert placed(Placer(nodes=[both, node("b")]).place(point())).hostname == "b"


def test_a_point_with_stored_repeats_stays_on_their_hardware() -> None:
    old, new = node("old", cpu_model="old cpu"), node("new", cpu_model="new cpu")
    assert placed(Placer(nodes=[new, old]).place(point(), old.fingerprint)).hostname == "old"
    refusal = refused(Placer(nodes=[new]).place(point(), old.fingerprint))
    assert old.fingerprint in refusal.reason


def test_a_free_point_joins_the_engine_of_a_tied_one() -> None:
    first, second = point("a"), point("a", concurrency=8)
    points = {one.point_id: one for one in (first, second)}
    n1, n2 = node("n1"), node("n2", cpu_model="other")
    answers = place_points(points.items(), Placer(nodes=[n1, n2]), {second.point_id: n2.fingerprint})
    assert [placed(answer).hostname for answer in answers.values()] == ["n2", "n2"]


def test_the_order_of_nodes_changes_nothing() -> None:
    nodes = [node(name) for name in ("c", "a", "b")]
    points = {one.point_id: one for one in (point(name) for name in "uvwxyz")}
    forwards = place_points(points.items(), Placer(nodes=nodes), {})
    assert forwards == place_points(points.items(), Placer(nodes=nodes[::-1]), {})

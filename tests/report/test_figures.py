"""What the figures draw, read back from their artists and compared with values worked out by hand."""

import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study_in_hand import accuracy_point, cap_of, entry, performance_point, plan_of

from moecap.records import CapSpec, StudyPlan
from moecap.report.canvas import DPI
from moecap.report.evidence import Evidence, RoutingSums, Traffic
from moecap.report.heatmap import activation_figure
from moecap.report.radar import INNER, radar_figure

PLAN = plan_of(performance_point("fast", 1), performance_point("slow", 1))


def polygons(axes: Axes) -> list[list[tuple[float, float]]]:
    """Corners of the filled polygons, without the closing one."""
    return [[tuple(corner) for corner in patch.get_xy()[:-1]] for patch in axes.patches]


def normalised(corner: tuple[float, float]) -> float:
    """The inverse of how a value becomes a distance from the centre."""
    return (math.hypot(*corner) - INNER) / (1 - INNER)


def texts(figure: Figure) -> str:
    legends = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    return "\n".join([text.get_text() for text in figure.texts] + [axes.get_title() for axes in figure.axes] + legends)


def test_polygon_corners_lie_at_the_normalised_values() -> None:
    figure = radar_figure(cap_of(entry("fast", (1, 0.5, 0.25)), entry("slow", (0, 0, 0))), PLAN, {})
    fast, slow = polygons(figure.axes[0])
    assert [normalised(corner) for corner in fast[:3]] == pytest.approx([1, 0.5, 0.25])
    assert [normalised(corner) for corner in slow[:3]] == pytest.approx([0, 0, 0], abs=1e-12)
    assert fast[0] == pytest.approx((0, 1)), "cost points up"
    assert fast[1][0] < 0 < fast[2][0], "accuracy is left, performance right"


def test_a_missing_axis_leaves_the_shape_open_and_is_named() -> None:
    figure = radar_figure(cap_of(entry("fast", (1, None, 0.5))), PLAN, {})
    (axes,) = figure.axes
    assert not axes.patches
    line = next(line for line in axes.lines if line.get_label().startswith("fast"))
    assert np.hypot(*line.get_data()) == pytest.approx([1, INNER + (1 - INNER) / 2])
    assert "no accuracy" in texts(figure) and "no area" in texts(figure)


def test_legends_hold_raw_values_area_class_and_the_pareto_star() -> None:
    raw = {"cost": 0.5, "accuracy": 0.625, "performance": 123.4}
    best = entry("fast", (1, 1, 1), raw=raw, cap_area=1.0, **{"class": "PA"})
    worst = entry("slow", (0, 0, 0), pareto=False, cap_area=0.0)
    shown = texts(radar_figure(cap_of(best, worst), PLAN, {"output_tokens_per_s": "tokens/s", "accuracy": "share"}))
    assert "fast ★\n\\$0.500/1M · 62.5 % · 123 tok/s\narea 1.00, PA" in shown
    assert "slow\n" in shown and "slow ★" not in shown


def test_one_panel_per_set_in_rows_of_three() -> None:
    sets = [cap_of(entry("fast", (1, 1, 1)), load=f"concurrency={load}")["sets"][0] for load in (1, 2, 4, 8)]
    figure = radar_figure({"sets": sets}, PLAN, {})
    assert [axes.get_title() for axes in figure.axes] == [f"concurrency={load}" for load in (1, 2, 4, 8)]
    heights = [axes.get_position().y0 for axes in figure.axes]
    assert heights[0] == heights[1] == heights[2] > heights[3] > 0


def test_a_named_reference_is_told() -> None:
    plan = StudyPlan(name="n", store="s", points=PLAN.points, repeats=PLAN.repeats, cap=CapSpec(reference="fast"))
    assert "1 = system fast" in texts(radar_figure(cap_of(entry("fast", (1, 1, 1))), plan, {}))


def test_a_set_without_a_feasible_system_says_so() -> None:
    figure = radar_figure(cap_of(), PLAN, {})
    assert "no system meets the SLO" in [text.get_text() for text in figure.axes[0].texts]


def test_nine_systems_are_told_apart() -> None:
    figure = radar_figure(cap_of(*[entry(f"s{at}", (1, 1, 1)) for at in range(9)]), PLAN, {})
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines if line.get_label()[0] == "s"}
    assert len(looks) == 9


def test_no_sets_no_panel() -> None:
    figure = radar_figure({"sets": []}, PLAN, {})
    assert not figure.axes and "nothing to compare" in texts(figure)


# -- expert activation


def sums(*layers: list[int], distinct: int = 6, pass_layers: int = 4, first: int = 0) -> RoutingSums:
    counts = {first + at: np.array(layer, dtype=np.int64) for at, layer in enumerate(layers)}
    return RoutingSums(counts=counts, distinct=distinct, pass_layers=pass_layers)


def panels(figure: Figure) -> dict[str, np.ndarray]:
    """Title -> the array that the heat map shows; the colour bar has no image."""
    return {axes.get_title(): axes.images[0].get_array().data for axes in figure.axes if axes.images}


def test_shares_are_of_each_layer_for_the_plans_first_system() -> None:
    plan = plan_of(
        performance_point("a", 1), accuracy_point("a", ("sort", "add")), accuracy_point("b", ("sort", "add"))
    )
    routing = {
        Traffic(model="reference", system="b", task="add"): sums([9, 0]),
        Traffic(model="reference", system="a", task="add"): sums([3, 1], [0, 5]),
        Traffic(model="reference", system="a", task="sort"): sums([1, 1], [0, 0], distinct=2, pass_layers=2),
        Traffic(model="reference", system="a", task=None): sums([7, 7]),
    }
    figure = activation_figure(Evidence(routing=routing), plan)
    shown = panels(figure)
    assert list(shown) == ["sort\n1.0 of 2 experts a pass", "add\n1.5 of 2 experts a pass"]
    assert shown["sort\n1.0 of 2 experts a pass"].tolist() == [[0.5, 0.5], [0, 0]]
    assert shown["add\n1.5 of 2 experts a pass"].tolist() == [[0.75, 0.25], [0, 1]]
    assert "measured on a)" in "".join(text.get_text() for text in figure.subfigs[0].texts)


def test_without_accuracy_all_performance_runs_are_summed() -> None:
    routing = {
        Traffic(model="reference", system=system, task=None): sums([3, 1], first=2) for system in ("a", "b")
    }  # fmt: skip
    plan = plan_of(performance_point("a", 1), performance_point("b", 1))
    figure = activation_figure(Evidence(routing=routing), plan)
    assert panels(figure)["performance runs\n1.5 of 2 experts a pass"].tolist() == [[0.75, 0.25]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["2"]


def test_uniform_routing_is_marked_on_the_scale() -> None:
    routing = {Traffic(model="reference", system="a", task=None): sums([3, 1, 0, 0])}
    figure = activation_figure(Evidence(routing=routing), plan_of(performance_point("a", 1)))
    labels = [label.get_text() for label in figure.axes[-1].get_yticklabels()]
    assert labels == ["0 %", "25.0 % = uniform", "75.0 %"]


def test_random_weights_are_flagged_in_the_title() -> None:
    routing = {Traffic(model="reference", system="a", task=None): sums([1, 1])}
    evidence = Evidence(routing=routing, dummy_models={"reference"})
    figure = activation_figure(evidence, plan_of(performance_point("a", 1)))
    assert figure.subfigs[0].texts[0].get_text().startswith("RANDOM WEIGHTS")


def test_models_of_other_shapes_have_bands_of_their_own() -> None:
    small, large = performance_point("a", 1, "small"), performance_point("a", 1, "large")
    routing = {
        Traffic(model="large", system="a", task=None): sums(*[[1] * 256] * 60),
        Traffic(model="small", system="a", task=None): sums([1, 1]),
    }
    figure = activation_figure(Evidence(routing=routing), plan_of(small, large))
    assert [array.shape for array in panels_of(figure)] == [(1, 2), (60, 256)]
    assert max(figure.get_size_inches() * DPI) < 3000


def panels_of(figure: Figure) -> list[np.ndarray]:
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def test_a_study_without_routing_says_so() -> None:
    figure = activation_figure(Evidence(), PLAN)
    assert figure.texts[0].get_text() == "no routing was recorded inside a window"

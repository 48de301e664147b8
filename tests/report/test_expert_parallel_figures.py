"""What the figures of replayed layouts draw, read back from their artists."""

import numpy as np
import pytest

from moecap.predict.collectives import Links
from moecap.predict.expert_parallel import Device, Replay, lay_out, replay
from moecap.predict.placement import topology
from moecap.predict.routing import counted
from moecap.predict.traffic import row_bytes
from moecap.report.expert_parallel import degree_figure, imbalance_figure, load_figure

DEVICE = Device(
    expert_bytes=[1e6], expert_flops=[0.0], memory_bytes_per_s=1e6, flops_per_s=1.0,
    links=Links(in_node_bytes_per_s=1.0, between_nodes_bytes_per_s=1.0, device="made up"), row=row_bytes(500_000),
)  # fmt: skip
# Two passes of four tokens, top-1 of four experts: counts 2 1 1 0, then 4 0 0 0.
ROUTING = counted((3,), np.array([4, 4]), np.array([[[e]] for e in (0, 0, 1, 2, 0, 0, 0, 0)]), 4)


def of(ranks: int) -> Replay:
    return replay(ROUTING, lay_out(ROUTING.load(), topology(ranks, 1), "linear"), "all_to_all", DEVICE)


def test_loads_are_over_the_mean_of_the_layer() -> None:
    """Experts 6 1 1 0 of 8, mean 2; ranks 7 and 1, mean 4."""
    experts, ranks, _ = load_figure(ROUTING, of(2)).axes
    assert experts.images[0].get_array().data.tolist() == [[3, 0.5, 0.5, 0]]
    assert ranks.images[0].get_array().data.tolist() == [[1.75, 0.25]]
    assert [label.get_text() for label in experts.get_yticklabels()] == ["3"]


def test_imbalance_is_drawn_pass_by_pass() -> None:
    """On two ranks 3 of mean 2, then 4 of mean 2."""
    (axes,) = imbalance_figure({"linear": of(2)}).axes
    assert axes.lines[0].get_ydata().tolist() == [1.5, 2.0]


def test_degree_curves_and_their_knee() -> None:
    """Of the busiest rank: experts read 3 and 1; 2 and 1; 1 and 1. Assignments 4 4, 3 4, 2 4 of 4, 2, 1 on average."""
    weights, rows, shares = degree_figure({"linear": [of(1), of(2), of(4)]}).axes
    assert weights.lines[0].get_ydata().tolist() == pytest.approx([2.0, 1.5, 1.0])
    assert len(weights.lines) == 1, "a straight line has no knee"
    waited = shares.lines[0].get_ydata().tolist()
    assert waited == pytest.approx([0, 100 * (1 - 4 / 7), 100 * (1 - 2 / 6)])
    assert shares.lines[1].get_xdata().tolist() == [2], "the ring"
    # Two ranks: tokens 2 and 3 live on rank 1. In the first pass one of them wants rank 0, in the second both: 1.5
    # copies on average, of 1 MB each way.
    assert rows.lines[0].get_ydata()[:2].tolist() == pytest.approx([0, 2 * 1.5])

"""A layout of two ranks worked out by hand, recorded runs read back, and the document that the command prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parent.parent / "metrics"))
from hand_made import a_run, one_pass, performance_point

from cluster.cli import main
from moecap.errors import ConfigError, StoreError
from moecap.predict.collectives import Links
from moecap.predict.document import Asked, document, knee, nodes_of, replays, split
from moecap.predict.expert_parallel import ROWS_AT_ONCE, Device, lay_out, replay
from moecap.predict.placement import topology
from moecap.predict.recorded import recorded_routing
from moecap.predict.routing import Routing, counted
from moecap.predict.traffic import row_bytes
from moecap.records import Phase, RepeatsSpec, RoutingRecord, StudyPlan
from moecap.store import Store

DEVICE = Device(
    expert_bytes=[100.0], expert_flops=[10.0], memory_bytes_per_s=1000.0, flops_per_s=50.0,
    links=Links(in_node_bytes_per_s=10.0, between_nodes_bytes_per_s=1.0, device="made up"), row=row_bytes(5, 1.0, 2.0),
)  # fmt: skip
# Four experts, top-2. Tokens 0 and 1 live on rank 0, 2 and 3 on rank 1, which holds experts 2 and 3.
ONE_PASS = counted((0,), np.array([4]), np.array([[[0, 1]], [[0, 1]], [[0, 2]], [[0, 1]]]), 4)


def test_two_ranks_by_hand() -> None:
    found = replay(ONE_PASS, lay_out(ONE_PASS.load(), topology(2, 1), "linear"), "all_to_all", DEVICE)
    assert ONE_PASS.counts.tolist() == [[[4, 3, 1, 0]]]
    assert found.rank_assignments.tolist() == [[7, 1]] and found.rank_expert_bytes.tolist() == [[200, 100]]
    assert found.imbalance.tolist() == [[7 / 4]] and found.straggler_tokens == 3
    # Rank 0: max(200 / 1000, 7 x 10 / 50) = 1.4 s; rank 1: max(0.1, 0.2) = 0.2 s
    assert found.compute_s[0, 0] == pytest.approx(1.4) and found.straggler_share == pytest.approx(1 - 0.8 / 1.4)
    # Tokens 2 and 3 are sent to rank 0 once each; nothing is sent to rank 1. Rows of 5 bytes out, 10 back; 10 bytes/s.
    assert found.bytes["dispatch_bytes_in_node"].value.tolist() == [[10]]
    assert found.bytes["combine_bytes_in_node"].value.tolist() == [[20]]
    assert found.busiest_bytes.value.tolist() == [[30]]
    assert found.dispatch_s.value.tolist() == [[1]] and found.combine_s.value.tolist() == [[2]]
    told = document(found, DEVICE)
    assert [told["layer_s"][key] for key in ("value", "low", "high")] == [pytest.approx(4.4), pytest.approx(4.4), None]
    assert "link speed only" in told["layer_s"]["provenance"]
    # 200 and 100 bytes in 4.4 s of a memory that could give 1000 a second
    assert told["experts_s_mbu_by_rank"]["value"] == pytest.approx([0.2 / 4.4, 0.1 / 4.4])
    assert told["bytes_per_layer"]["dispatch_bytes_in_node"]["provenance"] == "exact, from the routing"


def test_counts_alone_give_the_same_loads_and_bounded_bytes() -> None:
    layout = lay_out(ONE_PASS.load(), topology(2, 1), "linear")
    exact, known = (replay(one, layout, "all_to_all", DEVICE) for one in (ONE_PASS, ONE_PASS.without_ids()))
    assert known.rank_assignments.tolist() == exact.rank_assignments.tolist()
    low, value, high = (float(part.sum()) for part in known.bytes["dispatch_bytes_in_node"])
    assert low <= 10 <= high and low < value < high
    told = document(known, DEVICE)["bytes_per_layer"]["dispatch_bytes_in_node"]
    assert told["low"] == low and told["provenance"].startswith("bounds")


def test_cutting_passes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 6, 40)
    ids = np.array([[rng.permutation(4)[:2]] for _ in range(tokens.sum())])
    routing = counted((0,), tokens, ids, 4)
    layout = lay_out(routing.load(), topology(2, 2), "balanced", 2)
    assert ROWS_AT_ONCE > 40
    whole = replay(routing, layout, "all_to_all", DEVICE)
    monkeypatch.setattr("moecap.predict.expert_parallel.ROWS_AT_ONCE", 7)
    cut = replay(routing, layout, "all_to_all", DEVICE)
    assert json.dumps(document(whole, DEVICE)) == json.dumps(document(cut, DEVICE))


def test_balanced_is_placed_by_the_first_half_and_replays_the_second() -> None:
    """First half: experts 0 and 1 carry all. Second: 2 and 3 do, which the placement could not know."""
    first, second = [[0, 1]] * 4, [[2, 3]] * 4
    routing = counted((0,), np.array([4, 4]), np.array([[one] for one in first + second]), 4)
    measured, replayed = split(routing, "balanced")
    assert measured.counts.tolist() == [[[4, 4, 0, 0]]] and replayed.counts.tolist() == [[[0, 0, 4, 4]]]
    assert split(routing, "linear") == (routing, routing)
    (found,) = replays(routing, Asked(degrees=[2], nodes=[1], placement="balanced"), DEVICE)
    assert found.most_assignments.shape == (1, 1)
    with pytest.raises(ConfigError, match="two passes"):
        split(ONE_PASS, "balanced")


def test_redundant_experts_are_capped_where_a_degree_is_small() -> None:
    routing = Routing(layers=(0,), top_k=1, tokens=np.array([2, 2]), counts=np.array([[[1, 1]], [[1, 1]]]))
    asked = Asked(degrees=[1, 2], nodes=[1, 1], placement="balanced", redundant=5)
    slots = [len(one.layout.placements[0].rank_of_slot) for one in replays(routing, asked, DEVICE)]
    assert slots == [2, 4]


def test_nodes() -> None:
    assert nodes_of([1, 4, 8, 16, 64], ()) == [1, 1, 1, 2, 8]
    assert nodes_of([4, 8], [2]) == [2, 2] and nodes_of([4, 8], [1, 4]) == [1, 4]
    with pytest.raises(ConfigError, match="--ep-nodes"):
        nodes_of([12], ())
    with pytest.raises(ConfigError, match="give 2, or 1"):
        nodes_of([4, 8], [1, 2, 4])


def test_knee_by_hand() -> None:
    """Chord from (0, 0) to (3, 3): the points lie 0, 0.9, 0.6 of 3 above it."""
    assert knee([0, 1, 2, 3], [0, 1.9, 2.6, 3]) == 1
    assert knee([0, 1, 2], [0, 1, 2]) is None and knee([0, 1], [0, 5]) is None


# -- recorded runs


def routed(pass_id: int, *ids: tuple[int, int], keep: bool = True) -> RoutingRecord:
    counts = [sum(expert in one for one in ids) for expert in range(4)]
    distinct = sum(count > 0 for count in counts)
    return RoutingRecord(
        pass_id=pass_id, layer=0, counts=tuple(counts), distinct=distinct, distinct_physical=distinct,
        token_experts=ids if keep else None,
    )  # fmt: skip


PASSES = (
    one_pass(0, Phase.PREFILL, 0.0, 1.0, (3,), (3,)),
    one_pass(1, Phase.DECODE, 1.0, 1.0, (1, 1), (4, 4)),
    one_pass(2, Phase.DECODE, 2.0, 1.0, (1,), (5,), valid=False),
    one_pass(3, Phase.DECODE, 9.5, 1.0, (1,), (6,)),  # ends after the window
)
ROUTES = (routed(1, (0, 3), (2, 1)), routed(0, (0, 1), (1, 2), (0, 3)), routed(2, (0, 1)), routed(3, (0, 1)))


def test_valid_passes_inside_the_window_in_order() -> None:
    run = a_run(passes=PASSES, routing=ROUTES)
    found = recorded_routing([run])
    assert found.tokens.tolist() == [3, 2]
    assert found.counts.tolist() == [[[2, 2, 1, 1]], [[1, 1, 1, 1]]]
    assert found.token_experts is not None
    assert found.token_experts[:, 0].tolist() == [[0, 1], [1, 2], [0, 3], [0, 3], [2, 1]]
    assert recorded_routing([run], "decode").tokens.tolist() == [2]
    assert recorded_routing([run, run]).tokens.tolist() == [3, 2, 3, 2]


def test_one_run_without_ids_leaves_counts() -> None:
    bare = a_run(passes=PASSES[:1], routing=(routed(0, (0, 1), (1, 2), (0, 3), keep=False),))
    found = recorded_routing([a_run(passes=PASSES, routing=ROUTES), bare])
    assert found.token_experts is None and found.tokens.tolist() == [3, 2, 3]


def test_a_store_without_such_passes_says_so() -> None:
    with pytest.raises(StoreError, match="no routing of valid mixed passes"):
        recorded_routing([a_run(passes=PASSES, routing=ROUTES)], "mixed")


# -- the command


def predict(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["predict", "--device", "nvidia-h100-sxm5-80gb", *arguments])


def test_the_command_on_drawn_routing(tmp_path: Path) -> None:
    result = predict(
        "--model", "Qwen/Qwen3-30B-A3B", "--ep", "1,8,16", "--skew", "zipf:0.8", "--batch-size", "8", "--placement",
        "balanced", "--redundant-experts", "16", "--figures", str(tmp_path), "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    assert [one["ep_nodes"] for one in told["layouts"]] == [1, 1, 2]
    assert [one["redundant_experts"] for one in told["layouts"]] == [0, 16, 16]
    # 32 passes x 8 tokens x top-8 x 48 layers, however they are spread
    assert [sum(one["rank_assignments"]) for one in told["layouts"]] == [32 * 8 * 8 * 48] * 3
    assert told["layouts"][0]["imbalance"]["max"] == 1
    assert told["layouts"][1]["dispatch_s_per_layer"]["provenance"].startswith("fit of NCCL")
    assert told["layouts"][2]["dispatch_s_per_layer"]["provenance"] == "link speed only"
    assert [Path(one).name for one in told["figures"]] == ["ep_load.png", "ep_imbalance.png", "ep_degree.png"]
    assert all(Path(one).stat().st_size > 5000 for one in told["figures"])


def test_quantised_dispatch_narrows_dispatch_alone() -> None:
    both = [
        json.loads(predict("--model", "Qwen/Qwen3-30B-A3B", "--ep", "4", "--skew", "uniform", "--batch-size", "4",
                           "--dispatch-bytes-per-element", width, "--json").stdout)["layouts"][0]["bytes_per_layer"]
        for width in ("2", "1.03125")
    ]  # fmt: skip
    wide, narrow = ({name: way["value"] for name, way in one.items()} for one in both)
    assert narrow["dispatch_bytes_in_node"] == pytest.approx(wide["dispatch_bytes_in_node"] * 1.03125 / 2)
    assert narrow["combine_bytes_in_node"] == wide["combine_bytes_in_node"] > 0


def test_the_command_on_a_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "s")
    point = performance_point()
    store.write_plan(StudyPlan(name="s", store=str(tmp_path), points=(point,), repeats=RepeatsSpec()), {})
    store.write_run(a_run(point=point, passes=PASSES, routing=ROUTES))
    result = predict("--model", "reference", "--ep", "2", "--skew", str(tmp_path))
    assert result.exit_code == 2
    assert "its routing is of 1 layers of 4 experts, top-2; name the model that was measured" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--ep", "a", "--skew", "uniform"), "write 1,2,4,8"),
        (("--ep", "2", "--skew", "zipf:x"), "use uniform, zipf:1.2 or a store"),
        (("--ep", "256", "--skew", "uniform"), "128 experts leave ranks without one"),
        (("--ep", "2", "--skew", "uniform", "--redundant-experts", "4"), "--placement balanced"),
        (("--ep", "2", "--skew", "nowhere"), "holds no study"),
    ],
)
def test_wrong_use_says_what_would_be_right(arguments: tuple[str, ...], told: str) -> None:
    result = predict("--model", "Qwen/Qwen3-30B-A3B", "--batch-size", "2", *arguments)
    assert result.exit_code == 2 and told in result.output

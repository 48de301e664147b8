"""Counting of what routers chose: by hand, and on a CUDA device inside graphs against the same counts by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moecap.probe.vllm_counters import BLOCK_STEPS, Counter, DeviceCounter, HostCounter, own_rows

LAYERS, EXPERTS, TOP_K = 3, 16, 4


def show(counter: Counter, *layers: list[list[int]]) -> None:
    for position, ids in enumerate(layers):
        counter.see(position, torch.tensor(ids, dtype=torch.int32))


def test_counts_by_hand() -> None:
    """Two steps of two layers, top-2 of 4 experts; the second step has a row of padding."""
    counter = HostCounter(num_layers=2, num_experts=4, top_k=2)
    show(counter, [[0, 1]], [[0, 1]])  # before the start: not counted
    counter.start(keep_tokens=True)
    counter.begin_step(2)
    show(counter, [[0, 1], [1, 3]], [[2, 3], [3, 2]])
    counter.begin_step(1)
    show(counter, [[3, 2], [0, 3]], [[1, 0], [1, 2]])
    counter.skip_step()
    show(counter, [[0, 1]], [[0, 1]])
    found = counter.stop()
    assert found.rows.tolist() == [2, 2]
    assert found.counts.tolist() == [[[1, 2, 0, 1], [0, 0, 2, 2]], [[0, 0, 1, 1], [1, 1, 0, 0]]]
    assert found.padding.astype(int).tolist() == [[[0, 0, 0, 0]] * 2, [[1, 0, 0, 1], [0, 1, 1, 0]]]
    assert found.token_ids is not None
    assert found.token_ids.tolist() == [[[0, 1], [2, 3]], [[1, 3], [3, 2]], [[3, 2], [1, 0]]]


def test_a_step_whose_layers_are_not_all_seen_has_no_rows() -> None:
    counter = HostCounter(num_layers=2, num_experts=4, top_k=2)
    counter.start(keep_tokens=False)
    counter.begin_step(1)
    counter.see(1, torch.tensor([[0, 1]]))
    counter.begin_step(1)
    show(counter, [[0, 1]], [[0, 1]])
    found = counter.stop()
    assert found.rows.tolist() == [0, 1]
    assert found.counts.sum(axis=(1, 2)).tolist() == [0, 4]
    assert found.token_ids is None


@pytest.mark.parametrize(
    ("rows", "tokens", "replica", "own"),
    [(9, [4, 3, 2], 0, (0, 4)), (9, [4, 3, 2], 2, (7, 9)), (3, [4, 3, 2], 1, (0, 3)), (8, [4, 4], 1, (4, 8))],
)
def test_rows_of_a_replica(rows: int, tokens: list[int], replica: int, own: tuple[int, int]) -> None:
    """Gathered from all replicas, or its own alone."""
    assert own_rows(rows, tokens, replica) == slice(*own)


def test_rows_that_are_split_can_not_be_told_apart() -> None:
    with pytest.raises(ValueError, match=r"saw 2 rows, of replicas of \[4, 4\]"):
        own_rows(2, [4, 4], 0)


def test_another_number_of_choices_is_refused() -> None:
    counter = HostCounter(num_layers=2, num_experts=4, top_k=2)
    with pytest.raises(ValueError, match="chose 3 experts per token, not 2"):
        counter.see(0, torch.tensor([[0, 1, 2]]))


class Routers:
    """Stand-ins for a model's routers: top-k of scores that lie in a fixed buffer, as a captured graph has it."""

    def __init__(self, counter: Counter, rows: int, dtype: torch.dtype) -> None:
        self.counter, self.rows, self.dtype = counter, rows, dtype
        self.scores = torch.randn(LAYERS, rows, EXPERTS, device="cuda")

    def run(self) -> None:
        for layer in range(LAYERS):
            ids = self.scores[layer].topk(TOP_K).indices.to(self.dtype)
            self.counter.see(layer, ids)
            del ids  # only the counter may keep it
            torch.randn(self.rows, EXPERTS, device="cuda").softmax(-1)  # would take its memory if it were free

    def fresh(self) -> np.ndarray:
        """New scores, and the ids that they lead to: [rows, layers, top_k]."""
        self.scores.copy_(torch.randn_like(self.scores))
        return self.scores.topk(TOP_K).indices.permute(1, 0, 2).cpu().numpy()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("keep_tokens", [False, True])
def test_graphs_count_by_themselves(dtype: torch.dtype, keep_tokens: bool) -> None:
    """Two graphs and an eager size, more steps than a block holds; every step against numpy."""
    counter = DeviceCounter(
        num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, max_rows=4 * BLOCK_STEPS, device=torch.device("cuda")
    )
    sizes = {rows: Routers(counter, rows, dtype) for rows in (1, 8, 300)}
    graphs = {}
    for rows in (1, 8):
        sizes[rows].run()
        torch.cuda.synchronize()
        graphs[rows] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[rows]):
            sizes[rows].run()
        graphs[rows].replay()  # before anyone counts: must do nothing
    counter.start(keep_tokens=keep_tokens)
    expected, reals = [], []
    for step in range(2 * BLOCK_STEPS + 50):
        rows = (1, 8, 8, 300)[step % 4] if step % 8 else 8
        real = rows if step % 3 else max(1, rows - 3)
        expected.append(sizes[rows].fresh())
        reals.append(real)
        counter.begin_step(real)
        graphs[rows].replay() if rows in graphs else sizes[rows].run()
        if step % 5 == 0:
            counter.skip_step()
            graphs[8].replay()
    found = counter.stop()
    graphs[8].replay()
    assert found.rows.tolist() == [len(ids) for ids in expected]
    for step, (ids, real) in enumerate(zip(expected, reals, strict=True)):
        for layer in range(LAYERS):
            counts = np.bincount(ids[:real, layer].ravel(), minlength=EXPERTS)
            padding = np.bincount(ids[real:, layer].ravel(), minlength=EXPERTS) > 0
            assert found.counts[step, layer].tolist() == counts.tolist(), (step, layer)
            assert found.padding[step, layer].tolist() == padding.tolist(), (step, layer)
    if keep_tokens:
        assert found.token_ids is not None
        kept = np.concatenate([ids[:real] for ids, real in zip(expected, reals, strict=True)])
        assert (found.token_ids == kept).all()
    else:
        assert found.token_ids is None


@pytest.mark.gpu
def test_it_starts_anew() -> None:
    counter = DeviceCounter(
        num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, max_rows=64, device=torch.device("cuda")
    )
    routers = Routers(counter, 8, torch.int32)
    for _ in range(2):
        counter.start(keep_tokens=False)
        ids = routers.fresh()
        counter.begin_step(8)
        routers.run()
        found = counter.stop()
        assert found.rows.tolist() == [8]
        assert found.counts[0, 0].tolist() == np.bincount(ids[:, 0].ravel(), minlength=EXPERTS).tolist()

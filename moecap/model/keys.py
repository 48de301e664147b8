"""Keys of attention: how many a sequence holds, and how many a pass adds, scores and reads.

A layer has up to three sets of keys: tokens (all, a window, or what an indexer selects), compressed entries that stand
for several tokens each (DeepSeek-V4), and an indexer's own. Keys of any set are counted by the same arithmetic, on
integers or on numpy arrays of them. What a key takes is kept beside it; bytes and FLOPs are the callers'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from moecap.records import LayerShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Count = TypeVar("Count", int, "NDArray[np.integer[Any]]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """One set of keys. A query may attend to those whose last token is its own or an earlier one.

    `query`: tokens that a pass computes for a sequence; `context`: all that it has at the pass's end.
    """

    tokens_per_key: int = 1
    window: int | None = None
    """A query attends to the latest keys, at most so many; older ones are dropped."""
    selected_max: int | None = None
    """A query attends to keys that an indexer selects, at most so many; all are kept."""
    block: int = 1
    """Keys are selected in blocks of so many, the query's own, which is still filling, among them."""

    def kept(self, context: Count) -> Count:
        """Keys that a sequence holds."""
        keys = context // self.tokens_per_key
        return keys if self.window is None else _lesser(keys, self.window)

    def added(self, query: Count, context: Count) -> Count:
        """Keys that a pass writes."""
        added: Count = context // self.tokens_per_key - (context - query) // self.tokens_per_key
        return added

    def pairs(self, query: Count, context: Count) -> Count:
        """(query, attended key) pairs of a pass, causal."""
        return self._pairs_from_start(context) - self._pairs_from_start(context - query)

    def read(self, query: Count, context: Count) -> Count:
        """Distinct keys that a pass attends to. Selections of several queries may overlap or not: the most is taken,
        their sum or every key, whichever is less; exact for one query."""
        keys = context // self.tokens_per_key
        if self.window is not None:
            return _lesser(keys, self.window + query - 1)
        return keys if self.selected_max is None else _lesser(keys, self.pairs(query, context))

    def _pairs_from_start(self, context: Count) -> Count:
        """Pairs of the first `context` queries: `tokens_per_key` of them for each number of keys but the last."""
        keys = context // self.tokens_per_key
        with_all = context - keys * self.tokens_per_key + 1
        pairs: Count = self.tokens_per_key * self._attended_up_to(keys - 1) + with_all * self._attended(keys)
        return pairs

    @property
    def _most(self) -> int | None:
        return self.selected_max if self.window is None else self.window

    def _attended(self, keys: Count) -> Count:
        """Of so many keys, what one query attends to: `_most`, less what its own block lacks."""
        most = self._most
        return keys if most is None else _lesser(keys, most - (most - keys) % self.block)

    def _attended_up_to(self, keys: Count) -> Count:
        """Sum of `_attended` of 1, 2 ... `keys`; 0 from -1 on."""
        most = self._most
        if most is None:
            return keys * (keys + 1) // 2
        growing = _lesser(keys, most)
        blocks, rest = (keys - growing) // self.block, (keys - growing) % self.block
        lacking = blocks * (self.block * (self.block - 1) // 2) + rest * self.block - rest * (rest + 1) // 2
        total: Count = growing * (growing + 1) // 2 + (keys - growing) * most - lacking
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySet:
    """Keys of some layers that are counted alike."""

    keys: Keys
    is_index: bool
    """An indexer's own."""
    elements: int
    """Of one key in all these layers."""
    flops_per_pair: int
    """Likewise."""


def key_sets(layers: Iterable[LayerShape]) -> list[KeySet]:
    """What is counted alike in one: a few sets, however many layers there are."""
    found: dict[tuple[Keys, bool], KeySet] = {}
    for one in (one for layer in layers for one in _of_layer(layer)):
        kind = (one.keys, one.is_index)
        had = found.get(kind, replace(one, elements=0, flops_per_pair=0))
        found[kind] = replace(
            one, elements=had.elements + one.elements, flops_per_pair=had.flops_per_pair + one.flops_per_pair
        )
    return list(found.values())


def _of_layer(layer: LayerShape) -> Iterator[KeySet]:
    has_entries = layer.tokens_per_entry is not None
    selection = Keys(
        tokens_per_key=layer.tokens_per_entry or 1, selected_max=layer.selected_max, block=layer.selected_block
    )
    tokens = Keys(window=layer.window_tokens) if has_entries or layer.selected_max is None else selection
    scores = layer.score_flops_per_pair
    if layer.kv_elements_per_token or scores:
        yield KeySet(keys=tokens, is_index=False, elements=layer.kv_elements_per_token, flops_per_pair=scores)
    if has_entries:
        yield KeySet(keys=selection, is_index=False, elements=layer.elements_per_entry, flops_per_pair=scores)
    if layer.index_elements_per_key:
        own, flops = Keys(tokens_per_key=layer.tokens_per_index_key), layer.index_flops_per_pair
        yield KeySet(keys=own, is_index=True, elements=layer.index_elements_per_key, flops_per_pair=flops)


def _lesser(one: Count, other: Count | int) -> Count:
    """The smaller of two numbers, element by element."""
    lesser: Count = (one + other - abs(one - other)) // 2
    return lesser

"""A batch of sequences that share one left-padded KV cache, so that requests can join and leave between passes.

Pure tensor bookkeeping: it runs no model, keeps no time and knows no request. Works for caches whose layers are all
plain growing keys and values; others (sliding windows, recurrent state) can't be re-aligned, and `can_join` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer


@dataclass(slots=True)
class KVBatch:
    """Rows are sequences; columns are positions, aligned at the right."""

    cache: DynamicCache
    """Per layer keys and values [rows, heads, columns, head_dim]."""
    mask: torch.Tensor
    """int64 [rows, columns]: 1 where a row holds a token."""


def can_join(cache: DynamicCache) -> bool:
    """Whether sequences can be re-aligned in this cache."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both int64 [rows, longest]."""
    longest = max(map(len, sequences))
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in sequences]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in sequences]
    return torch.tensor(ids), torch.tensor(mask)


def join(old: KVBatch, new: KVBatch) -> KVBatch:
    """Both batches in one, `old`'s rows first; the shorter is padded on the left."""
    columns = max(old.mask.shape[1], new.mask.shape[1])
    for mine, other in zip(old.cache.layers, new.cache.layers, strict=True):
        mine.keys = torch.cat([_widen(mine.keys, columns), _widen(other.keys, columns)])
        mine.values = torch.cat([_widen(mine.values, columns), _widen(other.values, columns)])
    mask = torch.cat([pad(part.mask, (columns - part.mask.shape[1], 0)) for part in (old, new)])
    return KVBatch(cache=old.cache, mask=mask)


def keep(batch: KVBatch, rows: Sequence[int]) -> KVBatch:
    """Only these rows, without the columns that only the others used."""
    index = torch.tensor(rows, device=batch.mask.device)
    mask = batch.mask[index]
    if not can_join(batch.cache):
        batch.cache.batch_select_indices(index)
        return KVBatch(cache=batch.cache, mask=mask)
    first = int(mask.any(dim=0).to(torch.int8).argmax())
    for layer in batch.cache.layers:
        layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]
    return KVBatch(cache=batch.cache, mask=mask[:, first:])


def _widen(states: torch.Tensor, columns: int) -> torch.Tensor:
    return pad(states, (0, 0, columns - states.shape[2], 0))

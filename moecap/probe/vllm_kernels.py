"""The one kernel of the probe: experts of all MoE layers of a step, counted from the ids where the routers left them.

It needs Triton, so only who counts on a CUDA device imports it.
"""

# Triton reads annotations as values: no `from __future__ import annotations` here.
import torch
import triton
import triton.language as tl

IDS = 1024
"""Ids that one program counts."""


@triton.jit(do_not_specialize=["num_ids", "rows", "num_layers"])  # type: ignore[untyped-decorator]
def _count_experts(  # type: ignore[no-untyped-def]  # noqa: PLR0917 - a kernel's arguments have no names
    tables, cell, counts, rows_seen, tokens, num_ids, rows, num_layers,
    top_k: tl.constexpr, num_experts: tl.constexpr, wide: tl.constexpr, ids_per_program: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0)
    chunk = tl.program_id(1)
    slot = tl.load(cell)
    if slot < 0:
        return
    real = tl.load(cell + 1)
    token = tl.load(cell + 2)
    address = tl.load(tables + layer)
    at = chunk * ids_per_program + tl.arange(0, ids_per_program)
    inside = at < num_ids
    if wide:
        ids = tl.load(address.to(tl.pointer_type(tl.int64)) + at, mask=inside, other=-1)
    else:
        ids = tl.load(address.to(tl.pointer_type(tl.int32)) + at, mask=inside, other=-1).to(tl.int64)
    row = at // top_k
    is_padding = (row >= real).to(tl.int64)
    known = inside & (ids >= 0) & (ids < num_experts)
    plane = counts + (slot * num_layers + layer) * 2 * num_experts
    tl.atomic_add(plane + is_padding * num_experts + ids, 1, mask=known, sem="relaxed")
    if (layer == 0) & (chunk == 0):
        tl.store(rows_seen + slot, rows)
    if token >= 0:
        kept = tokens + ((token + row) * num_layers + layer) * top_k + at % top_k
        tl.store(kept, ids.to(tl.int16), mask=inside & (row < real))


def count_experts(
    table: torch.Tensor, cell: torch.Tensor, counts: torch.Tensor, rows_seen: torch.Tensor, tokens: torch.Tensor, *,
    rows: int, top_k: int, num_experts: int, ids_dtype: torch.dtype,
) -> None:  # fmt: skip
    """Launch on the current stream.

    `table` int64 [layers]: addresses of contiguous ids [rows, top_k] of `ids_dtype` (int32, uint32 or int64). `cell`
    int64 [3]: slot (negative: do nothing), real rows, first row in `tokens` (negative: keep none). Adds to `counts`
    int32 [slots, layers, 2 (real, padding), experts]; writes `rows_seen` int32 [slots] and `tokens` int16 [rows,
    layers, top_k].
    """
    num_layers, num_ids = table.shape[0], rows * top_k
    _count_experts[(num_layers, triton.cdiv(num_ids, IDS))](
        table, cell, counts, rows_seen, tokens, num_ids, rows, num_layers, top_k=top_k, num_experts=num_experts,
        wide=ids_dtype == torch.int64, ids_per_program=IDS,
    )  # fmt: skip

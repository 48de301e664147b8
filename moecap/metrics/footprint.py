"""Metrics of what a run occupied and moved: memory, reads of memory tiers, experts.

Definitions: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from moecap.metrics.columns import NO_PASSES, PHASES
from moecap.metrics.declare import Observed, metric, ratio
from moecap.metrics.performance import output_tokens
from moecap.metrics.view import RunView
from moecap.metrics.work import kv_held_bytes


@metric("weight_bytes", unit="bytes", direction="lower", needs=())
def weight_bytes(run: RunView) -> Iterator[Observed]:
    """Weights held in all tiers, scales included."""
    yield Observed(largest=float(sum(run.held.weight_bytes.values())), n=1)


@metric("resident_weight_bytes", unit="bytes", direction="lower", needs=())
def resident_weight_bytes(run: RunView) -> Iterator[Observed]:
    """Weights in the memory that computes."""
    yield Observed(largest=float(run.held.resident_weight_bytes), n=1)


@metric("kv_peak_bytes", unit="bytes", direction="lower", needs=("passes",))
def kv_peak_bytes(run: RunView) -> Iterator[Observed]:
    """Most KV and state that the requests of one pass held."""
    if len(run.passes) == 0:
        yield Observed(missing=NO_PASSES)
        return
    yield Observed(largest=float(kv_held_bytes(run.shape, run.held, run.passes).max()), n=len(run.passes))


@metric("memory_bytes", unit="bytes", direction="lower", needs=("passes",))
def memory_bytes(run: RunView) -> Iterator[Observed]:
    """Resident weights and peak KV: what the model needs, without the engine's own workspace."""
    for peak in kv_peak_bytes(run):
        if peak.largest is None:
            yield peak
        else:
            yield Observed(largest=run.held.resident_weight_bytes + peak.largest, n=peak.n)


@metric("peak_rss_bytes", unit="bytes", direction="lower", needs=("hosts",))
def peak_rss_bytes(run: RunView) -> Iterator[Observed]:
    """Most resident memory of the engine's processes, libraries and all."""
    seen = run.run.hosts["engine_rss_bytes"].drop_null().to_numpy()
    if len(seen) == 0:
        yield Observed(missing=run.manifest.unknown.get("engine_rss_bytes", "it was not sampled"))
        return
    yield Observed(largest=float(seen.max()), n=len(seen))


@metric("distinct_experts", unit="experts", direction="neither", needs=("passes", "routing"))
def distinct_experts(run: RunView) -> Iterator[Observed]:
    """Mean over passes and MoE layers of the distinct experts that fired."""
    for phase in PHASES:
        found = run.routing.distinct[run.passes.where(phase)]
        yield ratio(found.sum(), found.size, n=len(found), why_zero=NO_PASSES, phase=phase)


@metric("expert_load_imbalance", unit="ratio", direction="lower", needs=("passes", "routing"))
def expert_load_imbalance(run: RunView) -> Iterator[Observed]:
    """Tokens of a layer's busiest expert over the mean of its experts, over the whole window; mean of the layers."""
    tokens = run.expert_tokens
    if tokens.size == 0:
        yield Observed(missing=NO_PASSES)
        return
    yield ratio(
        float((tokens.max(axis=1) / tokens.mean(axis=1)).sum()), len(tokens), n=len(run.passes), why_zero=NO_PASSES
    )


@metric(
    "tier_bytes_per_output_token", unit="bytes", direction="lower",
    needs=("passes", "tiers", "requests", "chunk_tokens"),
)  # fmt: skip
def tier_bytes_per_output_token(run: RunView) -> Iterator[Observed]:
    """What passes read from a memory tier, per output token of the window."""
    for tier, bytes_read in run.tier_bytes().items():
        yield ratio(
            bytes_read, output_tokens(run), n=len(run.passes), why_zero="no output token in the window",
            qualifiers={"tier": tier},
        )  # fmt: skip

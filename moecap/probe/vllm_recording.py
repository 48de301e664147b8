"""What a vLLM worker recorded, and its file, one per worker; `vllm_records` makes passes and routing of them. It
imports nothing of vLLM.

Stages of a replica see the same steps in the same order, each its own layers. Replicas have their own requests, and
step together.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecap.probe.vllm_counters import Counted
from moecap.probe.vllm_steps import Step
from moecap.records import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Which worker of a deployment."""

    replica: int
    """Data-parallel rank."""
    num_replicas: int
    """That step together."""
    pipeline: int
    num_pipeline: int
    tensor: int
    num_tensor: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """One worker's recording. Times are monotonic_ns of its host, one per step."""

    ranks: Ranks
    layers: tuple[int, ...]
    """Decoder layers whose routers were observed."""
    steps: tuple[Step, ...]
    step_ids: tuple[int, ...]
    """Counted since the worker started, steps without requests too: equal for steps that replicas take together."""
    begun_ns: tuple[int, ...]
    """The device came to the step."""
    ended_ns: tuple[int, ...]
    observed_ns: int
    """Host time that was spent recording between the begin and end of steps."""
    counted: Counted | None
    """None: this worker has no MoE layers."""


def write_recording(folder: Path, recorded: Recorded) -> Path:
    """Into a file of its own in `folder`."""
    steps, ranks = recorded.steps, recorded.ranks
    arrays: dict[str, Any] = {
        "phase": np.array([step.phase.value for step in steps], dtype="U8"),
        "requests": np.array([len(step.query_lens) for step in steps], np.int32),
        "query_lens": np.array([length for step in steps for length in step.query_lens], np.int32),
        "context_lens": np.array([length for step in steps for length in step.context_lens], np.int32),
        "cached_tokens": np.array([step.cached_tokens for step in steps], np.int64),
        "logits_tokens": np.array([step.logits_tokens for step in steps], np.int64),
        "after_idle": np.array([step.after_idle for step in steps], np.bool_),
        "step_ids": np.array(recorded.step_ids, np.int64),
        "begun_ns": np.array(recorded.begun_ns, np.int64),
        "ended_ns": np.array(recorded.ended_ns, np.int64),
    }
    if recorded.counted is not None:
        counted = recorded.counted
        narrow = counted.counts.astype(np.min_scalar_type(counted.counts.max(initial=0)))
        arrays |= {"rows": counted.rows, "counts": narrow, "padding": counted.padding}
        arrays |= {} if counted.token_ids is None else {"token_ids": counted.token_ids}
    about = {"ranks": asdict(ranks), "layers": recorded.layers, "observed_ns": recorded.observed_ns}
    path = folder / f"replica{ranks.replica}-stage{ranks.pipeline}-rank{ranks.tensor}.npz"
    with path.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)
    return path


def read_recording(path: Path) -> Recorded:
    """What `write_recording` wrote."""
    with np.load(path) as file:
        held: dict[str, NDArray[Any]] = dict(file)
    about = json.loads(str(held["about"]))
    ends = np.cumsum(held["requests"])[:-1]
    queries, contexts = (np.split(held[name], ends) for name in ("query_lens", "context_lens"))
    steps = tuple(
        Step(
            phase=Phase(str(held["phase"][i])), query_lens=tuple(queries[i].tolist()),
            context_lens=tuple(contexts[i].tolist()), cached_tokens=int(held["cached_tokens"][i]),
            logits_tokens=int(held["logits_tokens"][i]), after_idle=bool(held["after_idle"][i]),
        )
        for i in range(len(held["requests"]))
    )  # fmt: skip
    counted = (
        Counted(rows=held["rows"], counts=held["counts"], padding=held["padding"], token_ids=held.get("token_ids"))
        if "rows" in held
        else None
    )
    return Recorded(
        ranks=Ranks(**about["ranks"]), layers=tuple(about["layers"]), steps=steps,
        step_ids=tuple(held["step_ids"].tolist()), begun_ns=tuple(held["begun_ns"].tolist()),
        ended_ns=tuple(held["ended_ns"].tolist()), observed_ns=about["observed_ns"], counted=counted,
    )  # fmt: skip

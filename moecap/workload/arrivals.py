"""When the requests of an open loop arrive: seeded times, made before anything is sent. Pure; it knows no prompt.

Gaps are drawn from a Gamma distribution with shape `burstiness` and mean 1 / rate, as `vllm bench serve` draws them:
its coefficient of variation is 1 / sqrt(burstiness), so that 1 is a Poisson process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from moecap.errors import ConfigError
from moecap.records import LoadSpec, Request


def arrival_times_s(count: int, rate_per_s: float, *, burstiness: float = 1.0, seed: int) -> tuple[float, ...]:
    """`count` increasing offsets; the first is one gap after the start. The same for the same arguments."""
    draw = random.Random(f"arrivals-{seed}")
    gaps = (draw.gammavariate(burstiness, 1 / (rate_per_s * burstiness)) for _ in range(count))
    return tuple(accumulate(gaps))


def with_arrivals(requests: Sequence[Request], load: LoadSpec, seed: int) -> list[Request]:
    """The requests as `load` lets them arrive.

    Times that a trace recorded are kept only where it is replayed. Raises ConfigError when there are none to replay.
    """
    recorded = [one.request_id for one in requests if one.arrival_s is not None]
    if load.arrival == "trace" and len(recorded) < len(requests):
        raise ConfigError("the workload recorded no arrival times", "arrival", "trace", "use a workload of type trace")
    if load.arrival == "closed":
        return [replace(one, arrival_s=None) for one in requests]
    if load.arrival == "trace":
        return list(requests)
    assert load.rate_per_s is not None, "a load that is searched for has no times yet"
    times = arrival_times_s(len(requests), load.rate_per_s, burstiness=load.burstiness or 1.0, seed=seed)
    return [replace(one, arrival_s=time_s) for one, time_s in zip(requests, times, strict=True)]

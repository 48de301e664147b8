"""Finds the load of one point by trials on a warm engine. What to try is decided in `workload/search.py`; who serves it
is given. It measures nothing that is kept but what the trials said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from moecap.records import LoadSpec, RequestRecord, SearchRecord, SearchSpec, SearchTrial, Window
from moecap.windows import steady_window
from moecap.workload.search import found_load, judge, next_load, smallest_load

log = logging.getLogger(__name__)

Serve = Callable[[LoadSpec, int, int], Sequence[RequestRecord]]
"""(load, requests, number of the trial) -> what came of them, on caches that hold nothing of before."""


class LoadFinder:
    """Of one load with a search; repeats of its point take the load that the first one found."""

    def __init__(self, load: LoadSpec, *, filling: int, most_at_once: int | None, serve: Serve) -> None:
        """`filling`: arrivals that fill an open loop; `most_at_once`: what the engine can compute of a closed one."""
        assert load.search is not None, "a load that needs no search"
        self._load, self._search, self._filling, self._serve = load, load.search, filling, serve
        self._whole = not load.is_open
        self._largest = self._search.largest
        if self._whole and most_at_once is not None:
            self._largest = min(self._largest, most_at_once)
        self._trials: list[SearchTrial] = []
        self._is_confirmed = False

    def find(self) -> SearchRecord:
        """Try until nothing is left to try."""
        while (size := next_load(self._trials, self._search, whole=self._whole, largest=self._largest)) is not None:
            trial = self._try(size)
            log.info("tried %s: %s", self._of(size).label, "within the SLO" if trial.met else trial.reason)
            self._trials.append(trial)
        return self._record()

    def settle(self, requests: Sequence[RequestRecord], window: Window | None) -> SearchRecord | None:
        """How the load was found, when the measurement there holds; None: it failed, and another has to be measured.

        The first one counts as one more trial, a longer one; those of repeats hold whatever they say.
        """
        before = self._record()
        if before.found is None or self._is_confirmed:
            return before
        trial = judge(before.load, before.found, requests, window, self._search.slo)
        self._is_confirmed = trial.met
        if trial.met:
            return before
        self._trials.append(trial)
        after = self.find()
        return after if after.load == before.load else None

    def _record(self) -> SearchRecord:
        found = found_load(self._trials)
        size = smallest_load(self._trials) if found is None else found
        return SearchRecord(trials=tuple(self._trials), found=found, load=self._of(size))

    def _try(self, size: float) -> SearchTrial:
        load = self._of(size)
        requests = self._serve(load, self._filling + planned_requests(self._search, load), len(self._trials))
        window = steady_window(requests, load, self._filling)
        return judge(load, size, requests, window, self._search.slo)

    def _of(self, size: float) -> LoadSpec:
        sized = {"concurrency": int(size)} if self._whole else {"rate_per_s": size}
        return replace(self._load, search=None, **sized)


def planned_requests(search: SearchSpec, load: LoadSpec) -> int:
    """Of a trial, without those that fill an open loop."""
    in_flight, per_second = load.concurrency or 0, load.rate_per_s or 0.0
    wanted = search.trial_s * per_second if load.is_open else search.trial_requests * in_flight
    return max(search.trial_min_requests, math.ceil(wanted))

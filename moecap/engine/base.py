"""The one interface between moecap and whatever serves tokens. An engine knows no metric and no store.

Life: `start` once, then any number of `serve` calls (no cache outlives one), then `stop`.
Registered in `ENGINES`; third parties through the entry-point group `moecap.engines`. What every engine must do is
tested in tests/engine/test_contract.py, for each way to start one that tests/engine/engines.py lists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moecap.records import HeldWeights, LoadSpec, ModelShape, ModelSpec, Placement, Request, ServeRecord, SystemSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFacts:
    """What a started engine says of itself."""

    shape: ModelShape
    held: HeldWeights
    settings: Mapping[str, Any]
    """Resolved settings for the manifest; JSON values."""
    dummy_weights: bool
    flags: Mapping[str, str] = field(default_factory=dict)
    """What else a reader of this engine's numbers must know -> why."""
    max_context_tokens: int
    max_concurrency: int | None = None
    """Most requests that it computes at once; more wait. None: not known."""


class Engine(ABC):
    """Serves one model on the devices of one placement."""

    @abstractmethod
    def start(self, model: ModelSpec, system: SystemSpec, placement: Placement) -> EngineFacts:
        """Load the model. Raises EngineError with the cause when it can't."""

    @abstractmethod
    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated token ids, special tokens left out."""

    @abstractmethod
    def serve(self, requests: Sequence[Request], load: LoadSpec, routing: Literal["counts", "tokens"]) -> ServeRecord:
        """Serve `requests` under `load`, recording passes, routing and requests. A request that fails is recorded as
        failed and doesn't end the others; EngineError means that the engine itself is gone."""

    @abstractmethod
    def stop(self) -> None:
        """Free everything. Safe to call twice."""

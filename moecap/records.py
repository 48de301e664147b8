"""The nouns: frozen records that pass between the stages. They hold data and check it; they do no I/O.

Quantities carry their unit in the name. All `*_ns` of a run are on one clock of its host (`time.monotonic_ns`).
None means unknown (with a reason beside it where one is known), never 0.

Identity: `PointSpec.point_id` names what is measured; `RunSpec.run_id` adds the hardware it ran on and the repeat.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

TensorClass = Literal["mixer", "router", "routed_expert", "shared_expert", "dense_ffn", "norm", "embedding", "lm_head"]
NodeKind = Literal["gpu", "cpu-offload", "expert-parallel", "cpu"]
MixerKind = Literal["full_attention", "sliding_attention", "compressed_attention", "mla", "linear", "none"]
Arrival = Literal["closed", "poisson", "burst", "trace"]


class Phase(StrEnum):
    """What a pass, or a window, is doing."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    WARMUP = "warmup"
    STEADY = "steady"
    ACCURACY = "accuracy"


def to_jsonable(value: Any) -> Any:
    """Records, enums, tuples, sets and mappings as plain JSON values; mappings keep their order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_jsonable(item) for item in value)
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return value


def content_hash(value: Any) -> str:
    """16 hexadecimal digits of SHA-256 over the canonical JSON of `value`."""
    canonical = json.dumps(to_jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- what is to be measured


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Which weights."""

    name: str
    """What the study wrote: `reference`, a Hugging Face id or a local path."""
    revision: str | None = None
    """Hugging Face commit; for local weights, a hash of all that decides their tokens; None: unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemSpec:
    """What serves the model, on which kind of node."""

    name: str
    engine: str
    node: NodeKind
    device: str = "any"
    """A catalogue key, `any`, or `each` (replaced by the device models present when the plan is made)."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Engine arguments, passed through."""
    dtype: str = "auto"
    kv_dtype: str = "auto"
    quantization: str | None = None
    resident_share: float | None = None
    """Share of the routed experts kept in the memory that computes; None: all of them, but on a cpu-offload node as few
    as the engine can."""
    top_k: int | None = None


def _short(value: Any) -> str:
    """An option as labels show it: `add+sort`, `uniform(16+64)`, `lognormal(max=900+median=128.0+sigma=0.5)`."""
    if isinstance(value, Mapping):
        inner = {key: _short(item) for key, item in sorted(value.items())}
        return "+".join(
            f"{key}({text})" if isinstance(value[key], Mapping | list | tuple) else f"{key}={text}"
            for key, text in inner.items()
        )
    return "+".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSpec:
    """Where prompts come from. `options` belong to the workload type (see `moecap/workload/`)."""

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short and readable: `synthetic(input_tokens=64,output_tokens=32)`, `tasks(shots=0,tasks=add+sort)`."""
        shown = {key: _short(value) for key, value in self.options.items() if key != "content"}
        return f"{self.type}({','.join(f'{k}={v}' for k, v in sorted(shown.items()))})"


@dataclass(frozen=True, kw_only=True, slots=True)
class SloSpec:
    """Limits that a request must hold; a point meets them if `share` of its requests do."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    share: float = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpec:
    """A search for the largest load that meets an SLO; `moecap/workload/search.py` decides it."""

    slo: SloSpec
    """Decides what is run, so it is part of the load."""
    start: float = 1.0
    """First load that is tried: requests in flight, or requests per second."""
    largest: float = 1024.0
    """Beyond it nothing is tried."""
    resolution: float = 0.1
    """It ends when the smallest load that failed is at most this share above the largest that passed."""
    trial_requests: int = 4
    """Closed loop: requests of a trial per request in flight."""
    trial_s: float = 20.0
    """Open loop: seconds of arrivals of a trial."""
    trial_min_requests: int = 16
    """Of any trial."""

    def __post_init__(self) -> None:
        if self.slo.ttft_s is None and self.slo.tpot_s is None and self.slo.e2e_s is None:
            raise ValueError("a search needs an SLO with a limit: ttft_s, tpot_s or e2e_s")
        if not 0 < self.start <= self.largest or not 0 < self.resolution <= 1:
            raise ValueError(f"a search needs 0 < start <= largest and 0 < resolution <= 1; got {self}")
        if self.trial_requests < 3 or self.trial_min_requests < 3 or self.trial_s <= 0:
            raise ValueError(f"a trial needs at least 3 requests, per request in flight too; got {self}")


LOAD_FIELDS: Mapping[str, tuple[str, ...]] = {
    "closed": ("concurrency", "search"),
    "poisson": ("rate_per_s", "search", "max_concurrency"),
    "burst": ("rate_per_s", "search", "burstiness", "max_concurrency"),
    "trace": ("max_concurrency",),
}
"""Which fields a load of each arrival has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadSpec:
    """How requests arrive. Closed loop: a new one for each that ends. Open loop: at times of their own."""

    arrival: Arrival = "closed"
    """`poisson`: exponential gaps; `burst`: Gamma gaps; `trace`: the times that the workload recorded."""
    concurrency: int | None = None
    """Closed loop: requests in flight."""
    rate_per_s: float | None = None
    """Poisson and burst: mean arrival rate."""
    staggered: bool = True
    """Closed loop: first requests start spread over one generation, so that they don't end, and refill, in lockstep."""
    burstiness: float | None = None
    """Burst: shape of the Gamma distribution of gaps; 1 is Poisson, below 1 burstier, above 1 more even."""
    max_concurrency: int | None = None
    """Open loop: most requests in flight; one that comes then waits with the client. None: no limit."""
    search: SearchSpec | None = None
    """In place of the concurrency or the rate: it is searched for."""

    def __post_init__(self) -> None:
        if self.arrival not in LOAD_FIELDS:
            raise ValueError(f"arrival must be one of {', '.join(LOAD_FIELDS)}; got {self.arrival!r}")
        for name in ("concurrency", "rate_per_s", "burstiness", "max_concurrency", "search"):
            value = getattr(self, name)
            if value is not None and name not in LOAD_FIELDS[self.arrival]:
                raise ValueError(f"a load with arrival {self.arrival!r} has no {name}; got {value}")
            if isinstance(value, int | float) and value <= 0:
                raise ValueError(f"{name} must be above 0; got {value}")
        sized = [name for name in LOAD_FIELDS[self.arrival] if name in ("concurrency", "rate_per_s")]
        for name in sized:
            if (getattr(self, name) is None) == (self.search is None):
                raise ValueError(f"a load with arrival {self.arrival!r} has one of {name} and search; got {self}")
        if self.arrival == "burst" and self.burstiness is None:
            raise ValueError(f"a load with arrival 'burst' has a burstiness; got {self}")

    @property
    def is_open(self) -> bool:
        """Whether requests arrive at times of their own."""
        return self.arrival != "closed"

    @property
    def label(self) -> str:
        """Short and readable: `concurrency=8`, `rate=2.0/s`, `rate=auto`."""
        if self.arrival == "trace":
            return "trace" + self._limit
        if self.arrival == "closed":
            return f"concurrency={'auto' if self.search else self.concurrency}"
        rate = "auto" if self.search else f"{self.rate_per_s}/s"
        return f"rate={rate}" + ("" if self.burstiness is None else f",burstiness={self.burstiness:g}") + self._limit

    @property
    def _limit(self) -> str:
        return "" if self.max_concurrency is None else f",max_concurrency={self.max_concurrency}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSpec:
    """How much is run before and inside the measurement window."""

    warmup_requests: int
    requests: int
    """Planned requests after warm-up; closed loop: at least 3 x concurrency."""
    per_load: float | None = None
    """With a search: at least so many per request in flight, or per request per second, of the load that it found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracySpec:
    """Which graded tasks, how many items of each."""

    tasks: tuple[str, ...]
    limit: int | None = None
    """Items per task; None: all."""
    batch_size: int = 32
    """Most requests in flight while scoring."""


LATER_FIELDS = {"load": ("burstiness", "max_concurrency", "search"), "window": ("per_load",)}
"""Fields that came after the first stores. Unset, they leave a point's identity as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointSpec:
    """One thing to measure: a performance point (workload and load) or an accuracy point (accuracy), never both."""

    model: ModelSpec
    system: SystemSpec
    workload: WorkloadSpec | None = None
    load: LoadSpec | None = None
    window: WindowSpec | None = None
    accuracy: AccuracySpec | None = None
    seed: int = 0
    routing: Literal["counts", "tokens"] = "counts"

    def __post_init__(self) -> None:
        performance = (self.workload, self.load, self.window)
        if (self.accuracy is None) == (None in performance) or (self.accuracy is not None and any(performance)):
            raise ValueError(f"a point has workload, load and window, or accuracy alone; got {self}")

    @property
    def point_id(self) -> str:
        """Content hash of everything here; what came later than the first stores counts only where it is set."""
        described = to_jsonable(self)
        for part, later in LATER_FIELDS.items():
            if described[part] is not None:
                described[part] = {k: v for k, v in described[part].items() if k not in later or v is not None}
        return content_hash(described)

    @property
    def kind(self) -> Literal["performance", "accuracy"]:
        """Which of the two it is."""
        return "performance" if self.accuracy is None else "accuracy"

    @property
    def label(self) -> str:
        """One line for people: system and load."""
        return f"{self.system.name} {self.load.label if self.load else 'accuracy'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One repeat of one point."""

    point: PointSpec
    repeat: int = 0

    def run_id(self, fingerprint: str) -> str:
        """Content hash of the point, the hardware fingerprint it ran on, and the repeat."""
        return content_hash({"point": self.point.point_id, "hardware": fingerprint, "repeat": self.repeat})

    @property
    def label(self) -> str:
        """One line for people: system, load and repeat."""
        return f"{self.point.label} #{self.repeat}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatsSpec:
    """Repeats stop early, from `min` on, when the 95 % interval of output_tokens_per_s is narrow enough."""

    min: int = 3
    max: int = 3
    ci95_rel_width: float = 0.05


# ------------------------------------------------------------------------------------------------- where it can be run


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceInfo:
    """One accelerator of a node."""

    uuid: str
    index: int
    name: str
    """As the driver reports it."""
    key: str | None
    """Catalogue key; None when the catalogue doesn't know it."""
    memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NumaNode:
    """Part of a node whose CPUs are nearest to part of its memory."""

    index: int
    cpus: str | None
    """As the kernel lists them: `0-15,32-47`; empty: it has memory alone."""
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeInfo:
    """One live node, as seen from itself."""

    node_id: str
    hostname: str
    kinds: frozenset[NodeKind]
    cpu_model: str
    num_cpus: int
    memory_bytes: int
    devices: tuple[DeviceInfo, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    numa_nodes: tuple[NumaNode, ...] = ()
    """Empty: the kernel tells none, or written before they were read."""

    @property
    def device_key(self) -> str:
        """What `device:` in a study matches: the accelerators' catalogue key (or name), else `cpu`."""
        return (self.devices[0].key or self.devices[0].name) if self.devices else "cpu"

    @property
    def fingerprint(self) -> str:
        """Hash of device models and count, CPU model and count: no serial numbers, no host names."""
        return content_hash([sorted(d.name for d in self.devices), self.cpu_model, self.num_cpus])


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a run goes."""

    node_id: str
    hostname: str
    kind: NodeKind
    device_uuids: tuple[str, ...] = ()
    """Empty: the run computes on the host's CPUs."""
    num_cpus: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why no node can host a point, and the nearest change that would help."""

    reason: str
    remedy: str


# ------------------------------------------------------------------------------------------ what the hardware can do


@dataclass(frozen=True, kw_only=True, slots=True)
class Peaks:
    """Peak rates of the whole deployment (sums over its devices), and where they come from."""

    source: Literal["catalogue", "calibrated"]
    memory_bytes_per_s: float | None
    """Of the memory that compute reads from."""
    flops_per_s: Mapping[str, float]
    """Dense peak by compute dtype (`float32`, `bfloat16`, ...); a dtype that is absent is unknown."""
    tier_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """Peak of other memory tiers (`host`, `ssd`)."""
    method: str = ""
    """How it was measured, or the catalogue row."""
    spread: Mapping[str, float] = field(default_factory=dict)
    """Calibration: (max - min) / median over its repeats, by quantity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A rate or a cost of hardware that no peak holds."""

    quantity: str
    """With its unit: `h2d_bytes_per_s`, `kernel_launch_s` ... (docs/hardware.md lists them)."""
    value: float
    """The best of all rounds: the highest rate, the lowest cost."""
    spread: float
    """(max - min) / median over the rounds' bests."""
    at: Mapping[str, int] = field(default_factory=dict)
    """What it holds for: `threads`; `devices` and `message_bytes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a part of a node was measured to reach."""

    peaks: Peaks | None
    """None: it has none, as collectives."""
    measured: tuple[Measured, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)
    """What could not be measured (a dtype, `ssd` ...; `all` of it) -> why."""
    disturbed: str = ""
    """What ran beside it, where that was so much that the rates may be too low."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwarePart:
    """What is calibrated as one, and what its rates depend on: together their identity."""

    kind: Literal["cpu", "device", "collectives"]
    name: str
    """CPU model, or device as the driver reports it."""
    num_threads: int | None = None
    """Of CPUs."""
    device_uuids: tuple[str, ...] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Versions of torch and the driver, power cap, host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """One part of a node, measured."""

    part: HardwarePart
    rates: Rates
    measured_unix_s: float
    """When: it may have been kept from before."""
    took_s: float


# ---------------------------------------------------------------------------------------------------- what a model is


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """One decoder layer in parameters. `matmul` counts only weights of matrix products (no bias, norm, conv)."""

    index: int
    mixer: MixerKind
    """`none`: a layer that is a feed-forward alone, as hybrids have. `compressed_attention`: a window of tokens and
    entries that stand for the older ones (DeepSeek-V4)."""
    mixer_params: int
    """Attention or linear mixer with its own norms, biases and sinks."""
    mixer_matmul_params: int
    """What one token multiplies by; a bare matrix that every head uses counts once per head."""
    score_flops_per_pair: int
    """FLOPs of attention scores and values for one (query, attended key) pair, all heads; MLA: as engines compute it
    (absorbed, over the latent), unless this one expands it. 0 for linear mixers."""
    kv_elements_per_token: int
    """Elements that this layer's KV cache keeps per token (MLA: latent + rope); 0 without KV."""
    window_tokens: int | None
    """Sliding window, counting the query's own position; None: the whole context."""
    state_elements: int = 0
    """Elements of recurrent state per sequence (linear mixers, convolutions)."""
    tokens_per_entry: int | None = None
    """Tokens that one compressed entry stands for; queries score entries beside the window. None: there are none."""
    elements_per_entry: int = 0
    waiting_elements: int = 0
    """Elements per sequence, at most, of tokens that wait to be compressed."""
    expanded_flops_per_key: int = 0
    """Engines that expand MLA's latents anew in every pass: FLOPs of that for each key that the cache then holds."""
    expanded_elements_per_key: int = 0
    """Elements that this writes and attention reads, beside the cached latent."""
    selected_max: int | None = None
    """Keys that a query attends to at most, chosen by an indexer: entries if there are any, else tokens. None: all."""
    selected_block: int = 1
    """Neighbouring keys are chosen together, so many at a time; the query's own block always."""
    index_elements_per_key: int = 0
    """Elements of an indexer's own key; 0: no indexer, or another layer's choice is used."""
    index_flops_per_pair: int = 0
    """FLOPs of an indexer's scores, heads weighted and summed, for one (query, own key) pair; it scores all."""
    tokens_per_index_key: int = 1
    mixer_num_experts: int = 0
    """Experts inside the mixer (mixture of attention heads); `mixer_params` holds them all."""
    mixer_top_k: int = 0
    mixer_expert_params: int = 0
    """One of these; `mixer_matmul_params` has those that one token uses."""
    dense_ffn_params: int = 0
    num_experts: int = 0
    """0: a dense layer."""
    top_k: int = 0
    num_weightless_choices: int = 0
    """What the router can choose beside its experts and that has no weights: a token uses at most `top_k` experts."""
    expert_params: int = 0
    """One routed expert."""
    num_shared_experts: int = 0
    shared_expert_params: int = 0
    """All shared experts together."""
    router_params: int = 0
    """Router and shared-expert gate."""
    norm_params: int = 0
    ffn_matmul_params_per_token: int = 0
    """Matrix parameters that one token uses outside the mixer: router, top-k experts, shared experts, dense FFN."""
    routed_matmul_params_per_token: int = 0
    """Of these, the routed experts'."""
    shared_matmul_params: int = 0
    """Of these, the shared experts'."""
    dense_matmul_params: int = 0
    """Of these, the dense FFN's; what is left is the router's and the residual stream's."""
    activation_elements_per_token: int = 0
    """Elements that one token's operators read and write, each input and output once; moecap/model/activations.py."""

    def __post_init__(self) -> None:
        at_least_1 = ("window_tokens", "tokens_per_entry", "selected_max", "selected_block", "tokens_per_index_key")
        for name in at_least_1:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"layer {self.index}: {name} is at least 1; got {value}")
        if (self.tokens_per_entry is None) != (self.elements_per_entry == 0):
            raise ValueError(
                f"layer {self.index}: compressed entries have a size and stand for tokens; got elements_per_entry "
                f"{self.elements_per_entry}, tokens_per_entry {self.tokens_per_entry}"
            )
        if self.selected_max is not None and self.window_tokens is not None and self.tokens_per_entry is None:
            raise ValueError(
                f"layer {self.index}: tokens are chosen by a window or by an indexer, not by both; got window_tokens "
                f"{self.window_tokens}, selected_max {self.selected_max}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What a model weighs and computes, exact, in parameters; bytes come from the widths an engine holds."""

    name: str
    model_type: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerShape, ...]
    embedding_params: int
    lm_head_params: int
    """0 if tied to the embedding."""
    lm_head_matrix_params: int
    """The matrix that produces logits, tied or not."""
    final_norm_params: int
    further_row_elements: int = 0
    """Elements that a token looks up in tables beside its own row of the embedding: inputs of each layer, n-grams."""
    other_params: Mapping[str, int] = field(default_factory=dict)
    """What a multimodal wrapper holds beside its text model, by module; in no other count."""
    mtp_layers: int | None = 0
    """Layers that predict further tokens (multi-token prediction, for speculative decoding); in no other count. None:
    checkpoints of the family hold some that configurations don't tell."""
    mtp_params: int | None = 0
    """Their parameters, the shared embedding and head left out; None: how the family lays them out isn't known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeights:
    """What a checkpoint's files hold of a model."""

    dtype: str
    """Of what isn't quantised."""
    quantization: str | None
    """Method and packings; None: nothing is quantised."""
    kv_dtype: str
    """Of the KV cache, as the checkpoint asks; else `dtype`."""
    bytes: Mapping[TensorClass, int]
    """By tensor class, scales and zero points included."""
    notes: tuple[str, ...] = ()
    state_dtype: str | None = None
    """Of recurrent states, where the configuration says so; None: `dtype`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldWeights:
    """How a running engine holds a model: what bytes and compute dtypes are derived from."""

    bytes_per_param: Mapping[str, float]
    """Tensor class -> held bytes / parameters, scales included (exact ratio of what is held)."""
    compute_dtype: Mapping[str, str]
    """Tensor class -> dtype of its matrix products; `attention` -> dtype of scores."""
    kv_bytes_per_element: float
    activation_bytes_per_element: float
    weight_bytes: Mapping[str, int]
    """Tensor class -> bytes held in all tiers."""
    resident_weight_bytes: int
    """Bytes held in the memory that compute reads from."""


# ------------------------------------------------------------------------------------------------------- what happened


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request, ready to be sent."""

    request_id: str
    item_index: int
    prompt_token_ids: tuple[int, ...]
    max_new_tokens: int
    ignore_eos: bool = True
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    seed: int = 0
    arrival_s: float | None = None
    """Open loop: when it is sent, from the start of serving. None: when there is room, in a closed loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """One attempt at a request, as observed at the engine's boundary."""

    request_id: str
    attempt: int
    item_index: int
    replica: int | None
    """Data-parallel replica that served it; None: whoever sent it can't know."""
    scheduled_ns: int | None
    """Open loop: when it was to be sent."""
    sent_ns: int
    first_token_ns: int | None
    end_ns: int | None
    chunk_ns: tuple[int, ...]
    chunk_tokens: tuple[int | None, ...]
    """None: the server doesn't say how many tokens the chunk holds."""
    input_tokens: int
    cached_tokens: int | None
    """Prompt tokens that were not computed again; None: the server doesn't say."""
    output_tokens: int
    status: Literal["ok", "failed"]
    error: str | None = None
    output_token_ids: tuple[int, ...] = ()
    """Not stored with the run's requests; accuracy keeps the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRecord:
    """One forward pass of one data-parallel replica."""

    pass_id: int
    step_id: int
    """Shared by the passes that replicas make in lockstep; unique in the run otherwise."""
    replica: int
    phase: Phase
    started_ns: int
    """End of the replica's previous pass, or this pass's launch when nothing was scheduled between."""
    launched_ns: int
    duration_ns: int
    num_requests: int
    query_lens: tuple[int, ...]
    """Per request: tokens computed in this pass."""
    context_lens: tuple[int, ...]
    """Per request: tokens attended at its end."""
    scheduled_tokens: int
    cached_tokens: int
    logits_tokens: int
    padded_tokens: int
    accepted_tokens: int | None
    valid: bool
    invalid_reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingRecord:
    """What the router of one MoE layer did in one pass."""

    pass_id: int
    layer: int
    counts: tuple[int, ...]
    """Real tokens per expert."""
    distinct: int
    distinct_physical: int
    """Padding rows included, as the kernels read."""
    token_experts: tuple[tuple[int, ...], ...] | None = None
    """Per real token its top-k experts; only with `routing: tokens`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TierRecord:
    """What one pass read from one memory tier."""

    pass_id: int
    tier: Literal["hbm", "host", "ssd"]
    bytes_read: int
    expert_hits: int
    expert_misses: int
    stall_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientRecord:
    """How late a client was that drove a server: none of that is the server's."""

    loop_lag_p50_s: float | None
    """How late its event loop woke a coroutine: so late may it see what arrives. Up to 1 ms is its timers' own."""
    loop_lag_p99_s: float | None
    loop_lag_max_s: float | None
    loop_lag_samples: int
    send_delay_p50_s: float | None
    """Sent - scheduled, of the requests of an open loop; None in a closed one."""
    send_delay_p99_s: float | None
    send_delay_max_s: float | None
    cpu_s: float
    """CPU time of the thread that the loop ran in ..."""
    wall_s: float
    """... in so long: near 1 together, it had no time to spare."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeRecord:
    """Everything an engine recorded while serving."""

    passes: tuple[PassRecord, ...]
    routing: Sequence[RoutingRecord]
    """By pass, then by layer: a tuple, or `schema.Rows` of a recording that is long."""
    requests: tuple[RequestRecord, ...]
    tiers: tuple[TierRecord, ...] = ()
    observer_ns: int | None = None
    """Time spent observing inside the measured path."""
    client: ClientRecord | None = None
    """Of a server's client; None in process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSample:
    """One reading of a host."""

    time_ns: int
    host: str
    cpu_utilisation: float | None
    """0 to 1 over all CPUs, since the previous sample."""
    memory_used_bytes: int | None
    engine_rss_bytes: int | None
    package_energy_j: float | None
    """Monotonic counter, wrap-arounds removed."""
    dram_energy_j: float | None
    disk_read_bytes: int | None
    disk_written_bytes: int | None
    network_sent_bytes: int | None
    network_received_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSample:
    """One reading of an accelerator. Rates differ: a quantity that is read less often is null between."""

    time_ns: int
    device_id: str
    """UUID, as its driver gives it."""
    energy_j: float | None = None
    """The driver's counter, of the device, since the driver was loaded."""
    power_w: float | None = None
    """Instant, of the device."""
    power_average_w: float | None = None
    """The driver's moving average, of the device."""
    module_power_w: float | None = None
    """Instant, of the module that the device is part of, its CPU included (superchips)."""
    memory_power_w: float | None = None
    """The driver's moving average, of the device's memory."""
    gpu_utilisation: float | None = None
    """0 to 1: share of the driver's last period in which a kernel ran."""
    memory_utilisation: float | None = None
    """0 to 1: share of that period in which memory was read or written."""
    memory_used_bytes: int | None = None
    sm_clock_hz: int | None = None
    memory_clock_hz: int | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Why clocks are below the highest; empty: nothing holds them."""
    pcie_sent_bytes_per_s: float | None = None
    """By the driver, over the 20 ms before the reading."""
    pcie_received_bytes_per_s: float | None = None
    nvlink_sent_bytes: int | None = None
    """Counter over all links, payload alone."""
    nvlink_received_bytes: int | None = None
    dram_active_s: float | None = None
    """Hardware counters, integrated since the recording began: share of the peak DRAM rate x seconds."""
    sm_active_s: float | None = None
    """Share of SMs that were busy x seconds."""
    tensor_active_s: float | None = None
    """Share of peak tensor operations x seconds."""
    gpm_pcie_sent_bytes: float | None = None
    """Hardware counters, integrated since the recording began."""
    gpm_pcie_received_bytes: float | None = None
    gpm_nvlink_sent_bytes: float | None = None
    gpm_nvlink_received_bytes: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """How an accelerator was set up during a run, as its driver tells."""

    name: str
    driver_version: str | None = None
    power_cap_w: float | None = None
    """In force; below the default where somebody lowered it."""
    power_cap_default_w: float | None = None
    memory_bus_bits: int | None = None
    memory_clock_max_hz: int | None = None
    sm_clock_max_hz: int | None = None
    clock_policy: str | None = None
    """What limits the clocks beside power and heat: `free`, or application clocks and what else the driver names."""
    mig: bool | None = None
    """Whether the device is cut into instances, or is one."""
    numa_node: int | None = None
    """NUMA node of the host that it is nearest to."""
    idle_power_w: float | None = None
    """By counter, measured once before anything ran on it."""
    energy_period_s: float | None = None
    """How often the energy counter changes, measured with the idle power."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Field that is None -> reason."""

    @property
    def dram_bytes_per_s(self) -> float | None:
        """Peak by the driver: bus width x highest memory clock x 2 (both edges)."""
        if self.memory_bus_bits is None or self.memory_clock_max_hz is None:
            return None
        return self.memory_bus_bits / 8 * self.memory_clock_max_hz * 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """One graded item."""

    task: str
    item_id: str
    repeat: int
    raw_output: str | None
    score: float
    status: Literal["ok", "truncated", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTrial:
    """One load that was tried while searching for the largest that meets an SLO."""

    load: float
    """Requests in flight, or per second."""
    met: bool
    margin: float
    """Smallest share of a limit that was left, at the SLO's own percentile; below 0: exceeded, or nothing was seen."""
    requests: int
    """Sent inside its window."""
    slo_share: float
    """Of these, how many were within every limit."""
    ttft_s: float | None
    """At the percentile that is the SLO's share; null: nothing was seen."""
    tpot_s: float | None
    e2e_s: float | None
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRecord:
    """How the load of a run was found."""

    trials: tuple[SearchTrial, ...]
    """In the order in which they were run; the last ones may be whole measurements that didn't hold."""
    found: float | None
    """The largest load that met the SLO; None: none did."""
    load: LoadSpec
    """What was measured: the found load, else the smallest that was tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of a run."""

    start_ns: int
    end_ns: int
    phase: Phase
    label: str = ""
    """Accuracy: the task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a stored run is: written last, so its presence means that the run is whole."""

    schema_version: int
    study: str
    run_id: str
    point_id: str
    spec: RunSpec
    placement: Placement
    node: NodeInfo
    fingerprint: str
    packages: Mapping[str, str]
    git_commit: str | None
    engine: Mapping[str, Any]
    """Settings as the engine resolved them (attention and experts implementation, threads, KV layout ...)."""
    shape: ModelShape
    held: HeldWeights
    peaks: tuple[Peaks, ...]
    """Every known peak source; reports choose one."""
    windows: tuple[Window, ...]
    clock: str
    """Name of the clock of all `*_ns`."""
    wall_offset_ns: int
    """Add to a `*_ns` to get Unix time."""
    attempted: int
    served: int
    completed: int
    checks_passed: tuple[str, ...]
    checks_failed: Mapping[str, str]
    """Check -> what was seen."""
    flags: Mapping[str, str]
    """What a reader must know (dummy weights, experts read through a cache ...) -> why."""
    unknown: Mapping[str, str]
    """Quantity that is null -> reason."""
    observer_ns: int | None
    """Time that the probe spent inside the measured path."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Telemetry: asked period, samples taken, late samples, CPU seconds used."""
    device_facts: Mapping[str, DeviceFacts] = field(default_factory=dict)
    """UUID -> how it was set up. Empty: no device was placed, or written before they were read."""
    client: ClientRecord | None = None
    """Of a server's client; None in process."""
    search: SearchRecord | None = None
    """How its load was found; None: the study said it."""
    calibration: tuple[Calibration, ...] = ()
    """What the peaks rest on, and what was measured beside them; empty: nothing was calibrated for it."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """Table -> its rows; the store fills it in. Empty: written before tables were counted."""


# ------------------------------------------------------------------------------------------------- what it amounts to


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One row of metrics.parquet."""

    level: Literal["run", "point", "system"]
    id: str
    """run_id, point_id or system name."""
    metric: str
    phase: str | None
    scope: Literal["paper", "physical"] | None
    stat: Literal["value", "mean", "p50", "p90", "p99"]
    peak_source: str | None
    qualifiers: str
    """JSON object: cost_basis, price_kind, component, energy_source, energy_scope, observer, tier, task, and notes."""
    unit: str
    value: float | None
    missing_reason: str | None
    n: int
    """What the value rests on: passes, requests, runs or items."""
    ci95_low: float | None = None
    ci95_high: float | None = None
    price_low: float | None = None
    """The value with all prices at their low ends; null where no price is in it. No statistical interval."""
    price_high: float | None = None


# ---------------------------------------------------------------------------------------------------------- the study


@dataclass(frozen=True, kw_only=True, slots=True)
class CostSpec:
    """How hardware is charged where one number is shown; metrics hold all ways side by side."""

    basis: Literal["node", "footprint"] = "node"
    kind: Literal["purchase", "rental"] = "purchase"


@dataclass(frozen=True, kw_only=True, slots=True)
class CapSpec:
    """Axes of the CAP diagram, and what they are normalised against."""

    cost: str = "usd_per_million_output_tokens"
    accuracy: str = "accuracy"
    performance: str = "output_tokens_per_s"
    reference: str | None = None
    """System whose values are 1; None: min-max over the compared set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """A study, resolved: every point, and how results are reduced. Written whole to plan.json."""

    name: str
    store: str
    points: tuple[PointSpec, ...]
    repeats: RepeatsSpec
    order: Literal["listed", "random"] = "listed"
    cooldown_s: float = 0.0
    deadline_s: float = 600.0
    """For one run, and for one engine start."""
    slo: SloSpec | None = None
    peaks: Literal["catalogue", "calibrated"] = "calibrated"
    cost: CostSpec = field(default_factory=CostSpec)
    cap: CapSpec = field(default_factory=CapSpec)
    prices: Mapping[str, Any] = field(default_factory=dict)
    """What the study overrides of prices.yaml."""
    dropped_points: tuple[str, ...] = ()
    """Points of an earlier edition of the study: kept in the store, marked, not run again."""

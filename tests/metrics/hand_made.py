"""Runs written down by hand: a model of one MoE layer, a few passes and requests. Nothing is asserted here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moecap.metrics.view import RunView
from moecap.prices import load_prices
from moecap.records import (
    AccuracySpec,
    CostSpec,
    DeviceInfo,
    DeviceSample,
    HeldWeights,
    HostSample,
    LayerShape,
    LoadSpec,
    Manifest,
    ModelShape,
    ModelSpec,
    NodeInfo,
    PassRecord,
    Peaks,
    Phase,
    Placement,
    PointSpec,
    RequestRecord,
    RoutingRecord,
    RunSpec,
    SampleRecord,
    SloSpec,
    SystemSpec,
    TierRecord,
    Window,
    WindowSpec,
    WorkloadSpec,
)
from moecap.schema import DEVICES, HOSTS, PASSES, REQUESTS, ROUTING, SAMPLES, SCHEMA_VERSION, TIERS, table_of
from moecap.store import RunData

SECOND = 10**9
MODEL = ModelSpec(name="tiny")
NODE = NodeInfo(
    node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="some CPU", num_cpus=4, memory_bytes=2**34
)
PEAKS = Peaks(source="calibrated", memory_bytes_per_s=1e6, flops_per_s={"float32": 1e6}, tier_bytes_per_s={"ssd": 1e4})

LAYER = LayerShape(
    index=0, mixer="full_attention", mixer_params=100, mixer_matmul_params=90, score_flops_per_pair=8,
    kv_elements_per_token=4, window_tokens=None, num_experts=4, top_k=2, expert_params=50, router_params=10,
    norm_params=6, ffn_matmul_params_per_token=110,
    routed_matmul_params_per_token=100, activation_elements_per_token=30,
)  # fmt: skip
SHAPE = ModelShape(
    name="tiny", model_type="hand", hidden_size=5, vocab_size=20, layers=(LAYER,), embedding_params=100,
    lm_head_params=0, lm_head_matrix_params=100, final_norm_params=5,
)  # fmt: skip
CLASSES = ("mixer", "router", "routed_expert", "norm", "embedding", "lm_head")
HELD = HeldWeights(
    bytes_per_param=dict.fromkeys(CLASSES, 4.0), compute_dtype=dict.fromkeys([*CLASSES, "attention"], "float32"),
    kv_bytes_per_element=2.0, activation_bytes_per_element=4.0, weight_bytes={"mixer": 400, "routed_expert": 800},
    resident_weight_bytes=500,
)  # fmt: skip


def performance_point(system: str = "a", concurrency: int = 2, **changes: Any) -> PointSpec:
    return PointSpec(
        model=MODEL, system=SystemSpec(name=system, engine="fake", node="cpu", **changes),
        workload=WorkloadSpec(type="synthetic"), load=LoadSpec(concurrency=concurrency),
        window=WindowSpec(warmup_requests=0, requests=6),
    )  # fmt: skip


def accuracy_point(system: str = "a", tasks: tuple[str, ...] = ("add", "sort")) -> PointSpec:
    return PointSpec(
        model=MODEL, system=SystemSpec(name=system, engine="fake", node="cpu"), accuracy=AccuracySpec(tasks=tasks)
    )


def one_pass(
    pass_id: int, phase: Phase, start_s: float, seconds: float, query: tuple[int, ...], context: tuple[int, ...],
    **changes: Any,
) -> PassRecord:  # fmt: skip
    plain: dict[str, Any] = {
        "logits_tokens": len(query), "padded_tokens": 0, "cached_tokens": 0, "accepted_tokens": None, "valid": True,
    }  # fmt: skip
    start_ns = round(start_s * SECOND)
    return PassRecord(
        pass_id=pass_id, step_id=pass_id, replica=0, phase=phase, started_ns=start_ns, launched_ns=start_ns,
        duration_ns=round(seconds * SECOND), num_requests=len(query), query_lens=query, context_lens=context,
        scheduled_tokens=sum(query), **{**plain, **changes},
    )  # fmt: skip


def routed(pass_id: int, counts: tuple[int, ...], physical: int | None = None, layer: int = 0) -> RoutingRecord:
    distinct = sum(count > 0 for count in counts)
    return RoutingRecord(
        pass_id=pass_id, layer=layer, counts=counts, distinct=distinct,
        distinct_physical=distinct if physical is None else physical,
    )  # fmt: skip


def request(
    index: int, sent_s: float, token_s: tuple[float, ...], chunk_tokens: tuple[int, ...] = (), **changes: Any
) -> RequestRecord:
    times = tuple(round(one * SECOND) for one in token_s)
    chunks = chunk_tokens or (1,) * len(times)
    plain: dict[str, Any] = {"status": "ok", "input_tokens": 10, "end_ns": times[-1] if times else None}
    return RequestRecord(
        request_id=f"r{index}", attempt=0, item_index=index, replica=0, scheduled_ns=None,
        sent_ns=round(sent_s * SECOND), first_token_ns=times[0] if times else None, chunk_ns=times,
        chunk_tokens=chunks, cached_tokens=0, output_tokens=sum(chunks), **{**plain, **changes},
    )  # fmt: skip


def host(time_s: float, **quantities: Any) -> HostSample:
    nothing = dict.fromkeys(name for name in HOSTS.names if name not in ("time_ns", "host"))
    return HostSample(time_ns=round(time_s * SECOND), host="h", **{**nothing, **quantities})


GPU_NODE = NodeInfo(
    node_id="n", hostname="h", kinds=frozenset({"gpu"}), cpu_model="some CPU", num_cpus=4, memory_bytes=2**34,
    devices=tuple(
        DeviceInfo(uuid=uuid, index=index, name="card", key=None, memory_bytes=2**30)
        for index, uuid in enumerate(("GPU-a", "GPU-b"))
    ),
)  # fmt: skip


def placed(*uuids: str) -> dict[str, Any]:
    """Changes to a run: it computes on these of the two devices."""
    where = Placement(node_id="n", hostname="h", kind="gpu", num_cpus=2, device_uuids=uuids)
    return {"node": GPU_NODE, "placement": where}


def device(time_s: float, uuid: str = "GPU-a", **quantities: Any) -> DeviceSample:
    return DeviceSample(time_ns=round(time_s * SECOND), device_id=uuid, **quantities)


def sample(task: str, index: int, score: float, status: str = "ok") -> SampleRecord:
    return SampleRecord(task=task, item_id=f"{task}-{index}", repeat=0, raw_output="", score=score, status=status)  # type: ignore[arg-type]


def a_run(
    *, point: PointSpec | None = None, repeat: int = 0, window_s: tuple[float, float] = (0.0, 10.0),
    passes: tuple[PassRecord, ...] = (), routing: tuple[RoutingRecord, ...] = (),
    requests: tuple[RequestRecord, ...] = (), tiers: tuple[TierRecord, ...] = (), hosts: tuple[HostSample, ...] = (),
    devices: tuple[DeviceSample, ...] = (), samples: tuple[SampleRecord, ...] = (), **manifest: Any,
) -> RunData:  # fmt: skip
    point = point or performance_point()
    spec = RunSpec(point=point, repeat=repeat)
    window = Window(start_ns=round(window_s[0] * SECOND), end_ns=round(window_s[1] * SECOND), phase=Phase.STEADY)
    plain = Manifest(
        schema_version=SCHEMA_VERSION, study="s", run_id=spec.run_id(NODE.fingerprint), point_id=point.point_id,
        spec=spec, placement=Placement(node_id="n", hostname="h", kind="cpu", num_cpus=2), node=NODE,
        fingerprint=NODE.fingerprint, packages={}, git_commit=None, engine={}, shape=SHAPE, held=HELD, peaks=(PEAKS,),
        windows=(window,), clock="monotonic", wall_offset_ns=0, attempted=len(requests), served=len(requests),
        completed=len(requests), checks_passed=(), checks_failed={}, flags={}, unknown={}, observer_ns=0,
    )  # fmt: skip
    return RunData(
        manifest=replace(plain, **manifest), passes=table_of(PASSES, passes), routing=table_of(ROUTING, routing),
        tiers=table_of(TIERS, tiers), requests=table_of(REQUESTS, requests), hosts=table_of(HOSTS, hosts),
        devices=table_of(DEVICES, devices), samples=table_of(SAMPLES, samples),
    )  # fmt: skip


def view(run: RunData, *, slo: SloSpec | None = None, cost: CostSpec | None = None, **prices: Any) -> RunView:
    return RunView(run, slo=slo, cost=cost or CostSpec(), prices=load_prices(prices), peak_source="calibrated")

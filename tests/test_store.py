"""The store: what is written is read back; what is not whole isn't there; nothing half written counts."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moecap.errors import ConfigError, StoreError
from moecap.records import (
    ClientRecord,
    DeviceFacts,
    DeviceSample,
    HeldWeights,
    LayerShape,
    LoadSpec,
    Manifest,
    Metric,
    ModelShape,
    NodeInfo,
    PassRecord,
    Peaks,
    Phase,
    Placement,
    Refusal,
    RunSpec,
    SearchRecord,
    SearchTrial,
    Window,
)  # fmt: skip
from moecap.schema import DEVICES, METRICS, PASSES, RUN_TABLES, rows_of, table_of
from moecap.store import RunData, Store, studies
from moecap.study import load_study, parse_study

PLAN = load_study(None)
NODE = NodeInfo(
    node_id="n1", hostname="host", kinds=frozenset({"cpu"}), cpu_model="CPU", num_cpus=2, memory_bytes=8 << 30
)


def run_data(repeat: int = 0) -> RunData:
    spec = RunSpec(point=PLAN.points[0], repeat=repeat)
    manifest = Manifest(
        schema_version=1, study="s", run_id=spec.run_id(NODE.fingerprint), point_id=spec.point.point_id, spec=spec,
        placement=Placement(node_id="n1", hostname="host", kind="cpu", num_cpus=2), node=NODE,
        fingerprint=NODE.fingerprint, packages={"torch": "2.13.0"}, git_commit=None, engine={"dtype": "bfloat16"},
        shape=ModelShape(
            name="m", model_type="qwen3_moe", hidden_size=8, vocab_size=16,
            layers=(LayerShape(index=0, mixer="full_attention", mixer_params=4, mixer_matmul_params=4,
                               score_flops_per_pair=2, kv_elements_per_token=2, window_tokens=None),),
            embedding_params=128, lm_head_params=0, lm_head_matrix_params=128, final_norm_params=8,
        ),
        held=HeldWeights(bytes_per_param={"mixer": 2.0}, compute_dtype={"mixer": "bfloat16"}, kv_bytes_per_element=2,
                         activation_bytes_per_element=2, weight_bytes={"mixer": 8}, resident_weight_bytes=8),
        peaks=(Peaks(source="calibrated", memory_bytes_per_s=1e10, flops_per_s={"bfloat16": 1e11}),),
        windows=(Window(start_ns=1, end_ns=2, phase=Phase.STEADY),), clock="monotonic", wall_offset_ns=5, attempted=1,
        served=1, completed=1, checks_passed=("x",), checks_failed={}, flags={},
        unknown={"package_energy_j": "no RAPL"}, observer_ns=10,
    )  # fmt: skip
    one = PassRecord(
        pass_id=0, step_id=0, replica=0, phase=Phase.PREFILL, started_ns=1, launched_ns=1, duration_ns=7,
        num_requests=2, query_lens=(3, 4), context_lens=(3, 4), scheduled_tokens=7, cached_tokens=0, logits_tokens=2,
        padded_tokens=1, accepted_tokens=None, valid=True,
    )  # fmt: skip
    empty = {name: schema.empty_table() for name, schema in RUN_TABLES.items()}
    return RunData(manifest=manifest, **{**empty, "passes": table_of(PASSES, [one])})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"), "s")


def test_a_run_comes_back_as_it_was_written(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    back = store.load_run(run.manifest.run_id)
    assert back.manifest == replace(run.manifest, tables={**dict.fromkeys(RUN_TABLES, 0), "passes": 1})
    assert back.passes.equals(run.passes)
    assert back.tiers.num_rows == 0 and back.tiers.schema.names == RUN_TABLES["tiers"].names
    (one,) = rows_of(back.passes, PassRecord)
    assert one.query_lens == (3, 4) and one.accepted_tokens is None
    assert back.manifest.spec.point.point_id == run.manifest.point_id  # identity survives JSON
    stored = pq.read_schema(f"{store.base}/runs/{run.manifest.run_id}/passes.parquet")
    assert stored.metadata[b"schema_version"] == b"1"


def test_how_a_load_was_found_and_who_measured_it_come_back(store: Store) -> None:
    trial = SearchTrial(load=4, met=True, margin=0.5, requests=9, slo_share=1.0, ttft_s=0.1, tpot_s=None, e2e_s=1.0)
    search = SearchRecord(trials=(trial,), found=4, load=LoadSpec(concurrency=4))
    client = ClientRecord(
        loop_lag_p50_s=0.1, loop_lag_p99_s=0.2, loop_lag_max_s=0.3, loop_lag_samples=3, send_delay_p50_s=None,
        send_delay_p99_s=None, send_delay_max_s=None, cpu_s=1.0, wall_s=2.0,
    )  # fmt: skip
    run = run_data()
    store.write_run(replace(run, manifest=replace(run.manifest, search=search, client=client)))
    back = store.load_manifest(run.manifest.run_id)
    assert (back.search, back.client) == (search, client)


def test_devices_and_how_they_were_set_up_come_back(store: Store) -> None:
    facts = DeviceFacts(
        name="NVIDIA H100 80GB HBM3", power_cap_w=700.0, memory_bus_bits=5120, memory_clock_max_hz=2_619_000_000,
        mig=False, unknown={"numa_node": "Not Supported"},
    )  # fmt: skip
    samples = [
        DeviceSample(time_ns=5, device_id="GPU-a", energy_j=0.25, memory_used_bytes=1 << 36, throttle_reasons=()),
        DeviceSample(time_ns=6, device_id="GPU-a", throttle_reasons=("power cap", "heat"), dram_active_s=0.5),
    ]
    run = run_data()
    manifest = replace(run.manifest, device_facts={"GPU-a": facts})
    store.write_run(replace(run, manifest=manifest, devices=table_of(DEVICES, samples)))
    back = store.load_run(manifest.run_id)
    assert back.manifest.device_facts == {"GPU-a": facts}
    assert back.manifest.tables["devices"] == 2
    first, second = rows_of(back.devices, DeviceSample)
    assert (first.energy_j, first.memory_used_bytes, first.throttle_reasons) == (0.25, 1 << 36, ())
    assert (second.energy_j, second.throttle_reasons, second.dram_active_s) == (None, ("power cap", "heat"), 0.5)
    # 5120 bits are 640 bytes; 2,619 MHz, both edges: 3.352 TB/s as the device's datasheet rounds it
    assert facts.dram_bytes_per_s == 640 * 2_619_000_000 * 2 == 3_352_320_000_000


def test_a_run_from_before_devices_were_sampled_is_read(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    path = Path(store.base, "runs", run.manifest.run_id, "manifest.json")
    document = json.loads(path.read_text())
    del document["device_facts"], document["tables"]["devices"]
    path.write_text(json.dumps(document))
    back = store.load_run(run.manifest.run_id)
    assert back.manifest.device_facts == {}
    assert back.devices.schema.equals(DEVICES) and back.devices.num_rows == 0
    assert store.is_whole(run.manifest.run_id)


def test_a_manifest_from_before_searches_and_clients_is_read(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    path = Path(store.base, "runs", run.manifest.run_id, "manifest.json")
    document = json.loads(path.read_text())
    for key in ("search", "client"):
        del document[key]
    load = document["spec"]["point"]["load"]
    first = ("arrival", "concurrency", "rate_per_s", "staggered")
    document["spec"]["point"]["load"] = {key: load[key] for key in first}
    del document["spec"]["point"]["window"]["per_load"]
    path.write_text(json.dumps(document))
    back = store.load_run(run.manifest.run_id).manifest
    assert back.search is None and back.client is None
    assert back.spec.point.point_id == back.point_id


def test_loads_of_every_kind_keep_their_identity_in_a_plan(store: Store) -> None:
    base = {"name": "s", "models": ["reference"], "systems": [{"name": "a", "engine": "fake", "node": "cpu"}],
            "workloads": [{"type": "synthetic", "output_tokens": {"uniform": [1, 5]}}],
            "slo": {"tpot_s": 1}}  # fmt: skip
    for loads in (
        {"sweep": {"concurrency": [2, "auto"], "search": {"largest": 64}}},
        {"arrival": "burst", "burstiness": 2, "duration_s": 9, "sweep": {"rate_per_s": [1, "auto"]}},
    ):
        plan = parse_study({**base, **loads})
        store.write_plan(plan, {})
        back = store.read_plan()
        assert back is not None and back.points == plan.points
        assert [one.point_id for one in back.points] == [one.point_id for one in plan.points]


def test_a_run_without_its_manifest_is_not_there(store: Store) -> None:
    first, second = run_data(0), run_data(1)
    store.write_run(first)
    store.write_run(second)
    Path(f"{store.base}/runs/{second.manifest.run_id}/manifest.json").unlink()
    assert store.whole_runs() == {first.manifest.run_id: (first.manifest.point_id, 0, NODE.fingerprint)}
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        store.load_run(second.manifest.run_id)


def test_an_interrupted_write_leaves_nothing_that_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Path, target: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(StoreError, match="No space left"):
        store.write_run(run_data())
    assert store.whole_runs() == {}
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []  # nothing fills the disk either


def test_what_a_kill_left_half_written_is_no_object(store: Store) -> None:
    store.append_ledger([{"run": "a", "to": "running"}])
    (whole,) = Path(store.base, "ledger").iterdir()
    whole.with_name(f"{whole.name}.0123abcd.part").write_text('{"run": "b", "to"')
    assert [entry["run"] for entry in store.read_ledger()] == ["a"]


def test_data_is_on_the_medium_before_its_name_and_its_name_before_the_next_object(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail at any time: the order of what reaches the disk, as the calls to the kernel give it."""
    told: list[str] = []
    sync, rename = os.fsync, Path.replace

    def noting_sync(opened: int) -> None:
        told.append(f"sync {Path(f'/proc/self/fd/{opened}').readlink().name.removesuffix('.part')[:13]}")
        sync(opened)

    def noting_rename(self: Path, target: Path) -> Path:
        told.append(f"rename {target.name}")
        return rename(self, target)

    store.write_run(run_data())
    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "replace", noting_rename)
    store.write_run(run_data())
    folder = f"sync {run_data().manifest.run_id[:13]}"
    assert told == [
        "sync passes.parque", "rename passes.parquet", folder, "sync manifest.json", "rename manifest.json", folder,
    ]  # fmt: skip

    told.clear()
    store.append_ledger([{"run": "a"}])  # its folder is new: so is that folder's name in the study's
    assert told[-2:] == ["sync ledger", "sync s"]


@pytest.mark.parametrize("left", ["", "{", "[]", "{}", '{"point_id": "p", "spec": {}}'])
def test_a_run_whose_manifest_cannot_be_read_is_missing_and_the_others_are_not(
    left: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = run_data(0), run_data(1)
    store.write_run(first)
    store.write_run(second)
    Path(f"{store.base}/runs/{second.manifest.run_id}/manifest.json").write_text(left)
    for _ in range(2):
        assert list(store.whole_runs()) == [first.manifest.run_id]
    assert not store.is_whole(second.manifest.run_id)
    assert list(store.runs()[1]) == [second.manifest.run_id]
    assert [second.manifest.run_id in told for told in caplog.messages] == [True]  # said once
    store.write_run(second)
    assert store.is_whole(second.manifest.run_id) and len(store.whole_runs()) == 2


def test_a_run_that_lost_a_table_is_missing(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    assert store.is_whole(run.manifest.run_id)
    Path(f"{store.base}/runs/{run.manifest.run_id}/passes.parquet").unlink()
    assert not store.is_whole(run.manifest.run_id)
    assert store.runs() == ({}, {run.manifest.run_id: "passes.parquet missing"})
    with pytest.raises(StoreError, match=r"passes\.parquet has 0 rows, its manifest says 1"):
        store.load_run(run.manifest.run_id)


def test_a_table_that_lost_or_gained_rows_is_refused(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    folder = Path(f"{store.base}/runs/{run.manifest.run_id}")
    twice = pa.concat_tables([run.passes, run.passes])
    pq.write_table(twice, folder / "passes.parquet")
    with pytest.raises(StoreError, match=r"passes\.parquet has 2 rows, its manifest says 1"):
        store.load_run(run.manifest.run_id)
    store.write_run(run)
    pq.write_table(twice, folder / "tiers.parquet")
    with pytest.raises(StoreError, match=r"tiers\.parquet"):
        store.load_run(run.manifest.run_id)


def test_a_manifest_from_before_tables_were_counted_is_believed(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    path = Path(f"{store.base}/runs/{run.manifest.run_id}/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest.pop("tables")["passes"] == 1
    path.write_text(json.dumps(manifest))
    assert store.is_whole(run.manifest.run_id)
    assert store.load_run(run.manifest.run_id).passes.num_rows == 1


@pytest.mark.parametrize("left", [b"", b"PAR1 and nothing else", b"PAR1" + bytes(64) + b"PAR1"])
def test_a_table_that_is_no_parquet_is_our_error(left: bytes, store: Store) -> None:
    run = run_data()
    store.write_run(run)
    Path(f"{store.base}/runs/{run.manifest.run_id}/passes.parquet").write_bytes(left)
    with pytest.raises(StoreError, match=r"passes\.parquet"):
        store.load_run(run.manifest.run_id)


def test_a_store_that_cannot_be_read_is_not_taken_for_an_empty_one(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    manifest = Path(f"{store.base}/runs/{run.manifest.run_id}/manifest.json")
    manifest.unlink()
    manifest.mkdir()  # EISDIR for whoever reads it, as a failing disk gives EIO
    with pytest.raises(StoreError, match=r"manifest\.json"):
        store.whole_runs()


def test_tables_of_an_interrupted_attempt_never_join_a_whole_run(store: Store) -> None:
    """The first attempt recorded passes and died before its manifest; the second recorded none."""
    run = run_data()
    store.write_run(run)
    Path(store.base, "runs", run.manifest.run_id, "manifest.json").unlink()
    store.write_run(replace(run, passes=PASSES.empty_table()))
    assert store.load_run(run.manifest.run_id).passes.num_rows == 0


def test_a_table_from_before_a_column_was_added_reads_it_as_null(store: Store) -> None:
    run = run_data()
    store.write_run(run)
    path = f"{store.base}/runs/{run.manifest.run_id}/passes.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["invalid_reason"]), path)
    passes = store.load_run(run.manifest.run_id).passes
    assert passes.schema.equals(PASSES) and passes["invalid_reason"].null_count == passes.num_rows > 0


def test_another_schema_version_is_refused(store: Store) -> None:
    run = run_data()
    store.write_run(replace(run, manifest=replace(run.manifest, schema_version=99)))
    with pytest.raises(StoreError, match="schema version 99"):
        store.load_run(run.manifest.run_id)


def test_plan_ledger_failures_and_results(store: Store) -> None:
    assert store.read_plan() is None
    placements = {
        "p": Placement(node_id="n", hostname="h", kind="cpu"),
        "q": Refusal(reason="no gpu", remedy="add one"),
    }
    store.write_plan(PLAN, placements)
    assert store.read_plan() == PLAN
    assert json.loads(Path(f"{store.base}/plan.json").read_text())["placements"]["q"]["remedy"] == "add one"
    assert studies(store.root) == ["s"]

    store.append_ledger([{"run": "a", "to": "running"}])
    store.append_ledger([{"run": "a", "to": "stored"}, {"run": "b", "to": "running"}])
    assert [(e["run"], e["to"]) for e in store.read_ledger()] == [("a", "running"), ("a", "stored"), ("b", "running")]

    for attempt, error in enumerate(["first", "last"]):
        store.write_failure(point_id="p", repeat=0, attempt=attempt, run_id="r", error=error, kind="own")
    assert store.failed_runs()["p-0"]["error"] == "last"
    store.write_engine_log("r", 0, "log")
    assert Path(f"{store.base}/failed/r-0/engine.log").read_text() == "log"
    with pytest.raises(StoreError, match="is not valid JSON"):
        Path(f"{store.base}/ledger/9.jsonl").write_text("{")
        store.read_ledger()

    with pytest.raises(StoreError, match="not reduced yet"):
        store.read_metrics()
    metric = Metric(
        level="run", id="r", metric="s_mbu", phase=None, scope="paper", stat="value", peak_source="calibrated",
        qualifiers="{}", unit="1", value=None, missing_reason="no peak", n=0,
    )  # fmt: skip
    store.write_reduction([metric], {"sets": []})
    assert store.read_metrics() == [metric]
    assert store.read_cap() == {"sets": []}
    assert pa.schema(METRICS).names == pq.read_schema(f"{store.base}/metrics.parquet").names


def test_what_a_failed_attempt_recorded_is_kept_and_is_no_run(store: Store) -> None:
    run = run_data()
    store.write_failed_run(run, attempt=2)
    kept = Path(f"{store.base}/failed/{run.manifest.run_id}-2")
    assert pq.read_table(kept / "passes.parquet").num_rows == 1
    assert json.loads((kept / "manifest.json").read_text())["tables"]["passes"] == 1
    assert store.runs() == ({}, {}) and store.failed_runs() == {}


def test_nan_never_enters_the_json(store: Store) -> None:
    with pytest.raises(StoreError, match="not JSON compliant"):
        store.write_reduction([], {"sets": float("nan")})


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 101])
def test_a_study_name_cannot_leave_the_store(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no study name"):
        Store(str(tmp_path), name)

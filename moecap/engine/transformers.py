"""Engine `transformers`: loads a Hugging Face causal LM and drives its prefill and decode passes itself.

Every forward pass is timed, its router is observed through the probe, and requests join and leave the batch between
passes (a family whose cache can't be re-aligned is served in whole batches). The serving loop is in `serving.py`;
here is what is loaded, at which widths, and on which device. CPU and CUDA run the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from moecap.engine.base import Engine, EngineFacts
from moecap.engine.disk import DiskExperts, offload_experts_to_disk
from moecap.engine.experts import weight_storage_bytes
from moecap.engine.int8 import quantise_int8
from moecap.engine.serving import Serving
from moecap.errors import ConfigError, EngineError
from moecap.hardware.compute import compute_dtype_of
from moecap.hardware.ssd import scratch_on_disk
from moecap.model.latents import with_expanded_latents
from moecap.model.shape import classify_parameters, shape_of
from moecap.model.source import resolve
from moecap.probe.torch_hooks import RouterProbe
from moecap.records import (
    HeldWeights,
    LoadSpec,
    ModelShape,
    ModelSpec,
    Placement,
    Request,
    ServeRecord,
    SystemSpec,
    TensorClass,
)

OWN_ARGS = {"load_format", "max_context_tokens", "offload_folder"}
"""Arguments that are ours; all others go to `from_pretrained`."""


class TransformersEngine(Engine):
    """One model in this process. `args`: `load_format: auto|dummy` (random weights), `max_context_tokens`,
    `offload_folder` (default: the system's temporary folder, if it is on a disk), and anything that `from_pretrained`
    takes (`attn_implementation`, `experts_implementation` ...)."""

    def __init__(self) -> None:
        self._serving: Serving | None = None
        self._disk: DiskExperts | None = None

    def start(self, model: ModelSpec, system: SystemSpec, placement: Placement) -> EngineFacts:
        """Load, then quantise or offload the routed experts as `system` asks."""
        _check_args(system)
        device = torch.device("cuda" if placement.device_uuids else "cpu")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"placement gives devices {placement.device_uuids}, but torch sees no CUDA device")
        if not placement.device_uuids:
            torch.set_num_threads(placement.num_cpus)
        net = _load(model, system, device)
        dummy = system.args.get("load_format") == "dummy"
        classes = classify_parameters(net)
        params = {name: parameter.numel() for name, parameter in net.named_parameters()}
        shape = with_expanded_latents(shape_of(net, model.name), net)
        _check_top_k(shape, system.top_k)
        if system.quantization == "int8":
            quantise_int8(net)
        elif system.quantization is not None:
            raise ConfigError("unknown quantization", "quantization", system.quantization, "use int8")
        share = resident_share(system)
        if share is not None:
            folder = Path(system.args.get("offload_folder", scratch_on_disk()))
            self._disk = offload_experts_to_disk(net, folder, resident_share=share)
        probe = RouterProbe(net)
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(model.name), revision=_revision(model))
        limit = int(system.args.get("max_context_tokens", net.config.get_text_config().max_position_embeddings))
        self._serving = Serving(
            net=net, probe=probe, disk=self._disk, max_context_tokens=limit, eos_ids=_eos_ids(net),
            pad_id=self._tokenizer.pad_token_id or 0,
        )  # fmt: skip
        return EngineFacts(
            shape=shape,
            held=_held(net, classes, params, self._disk, system.quantization),
            settings=_settings(net, device, self._serving, self._disk) | {"resident_share": share},
            dummy_weights=dummy,
            flags={"experts_read_through_cache": self._disk.io_mode} if self._disk and self._disk.is_cached else {},
            max_context_tokens=limit,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """By the model's own tokenizer, no special tokens added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def serve(self, requests: Sequence[Request], load: LoadSpec, routing: Literal["counts", "tokens"]) -> ServeRecord:
        """Closed loop at `load.concurrency`."""
        if self._serving is None:
            raise EngineError("serve() before start()")
        if load.arrival != "closed" or load.concurrency is None:
            raise ConfigError("this engine serves a closed loop", "arrival", load.arrival, "use arrival: closed")
        return self._serving.closed_loop(
            requests, load.concurrency, staggered=load.staggered, keep_tokens=routing == "tokens"
        )

    def stop(self) -> None:
        """Free the model and what was offloaded."""
        if self._serving is not None:
            self._serving.probe.detach()
        if self._disk is not None:
            self._disk.close()
        self._serving = self._disk = None


def resident_share(system: SystemSpec) -> float | None:
    """Share of the routed experts that stays in the memory that computes; None: nothing is offloaded.

    A cpu-offload node that is given no share keeps none of them: what is called offloaded never is resident unasked.
    """
    return 0.0 if system.resident_share is None and system.node == "cpu-offload" else system.resident_share


def _check_args(system: SystemSpec) -> None:
    """ConfigError for own arguments that can't be; what belongs to `from_pretrained` is checked there."""
    if "offload_folder" in system.args and resident_share(system) is None:
        folder = system.args["offload_folder"]
        remedy = "write resident_share, or node: cpu-offload"
        raise ConfigError("nothing is offloaded to it", "args.offload_folder", folder, remedy)
    load_format = system.args.get("load_format", "auto")
    if load_format not in ("auto", "dummy"):
        raise ConfigError("unknown load format", "args.load_format", load_format, "use auto or dummy")
    limit = system.args.get("max_context_tokens", 1)
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError("is no number of tokens", "args.max_context_tokens", limit, "use a whole number above 0")


def _check_top_k(shape: ModelShape, asked: int | None) -> None:
    fewest = min((layer.num_experts for layer in shape.layers if layer.num_experts), default=0)
    if asked is not None and asked > fewest:
        raise ConfigError("is more than there are experts", "top_k", asked, f"use 1 to {fewest}")


def _revision(model: ModelSpec) -> str | None:
    """Only the hub knows revisions; local weights carry a content hash there."""
    return None if isinstance(resolve(model.name), Path) else model.revision


def _load(model: ModelSpec, system: SystemSpec, device: torch.device) -> Any:
    source = resolve(model.name)
    passed = {key: value for key, value in system.args.items() if key not in OWN_ARGS}
    changes = {} if system.top_k is None else {"num_experts_per_tok": system.top_k}
    try:
        if system.args.get("load_format", "auto") == "dummy":
            config = AutoConfig.from_pretrained(source, revision=_revision(model), **changes)
            torch.manual_seed(0)
            net = AutoModelForCausalLM.from_config(config, dtype=_dtype(system.dtype) or config.dtype, **passed)
        else:
            net = AutoModelForCausalLM.from_pretrained(
                source, revision=_revision(model), dtype=_dtype(system.dtype) or "auto", **changes, **passed
            )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise EngineError(f"transformers can't load {model.name!r} ({source}): {error}") from error
    return net.to(device).eval()


def _dtype(name: str) -> torch.dtype | None:
    return None if name == "auto" else getattr(torch, name)


def _eos_ids(net: Any) -> frozenset[int]:
    ids = net.generation_config.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def _held(
    net: Any,
    classes: Mapping[str, tuple[TensorClass, int | None]],
    params: Mapping[str, int],
    disk: DiskExperts | None,
    quantization: str | None,
) -> HeldWeights:
    held_bytes: dict[str, int] = {}
    held_params: dict[str, int] = {}
    for name, bytes_held in weight_storage_bytes(net).items():
        kind = classes[name][0]
        held_bytes[kind] = held_bytes.get(kind, 0) + bytes_held
        held_params[kind] = held_params.get(kind, 0) + params[name]
    dtype = str(net.dtype).removeprefix("torch.")
    total = sum(held_bytes.values())
    width = net.dtype.itemsize
    per_param = {kind: held_bytes[kind] / held_params[kind] for kind in held_bytes}
    if "lm_head" not in per_param and "embedding" in per_param:  # tied: the same matrix at the same width
        per_param["lm_head"] = per_param["embedding"]
    return HeldWeights(
        bytes_per_param=per_param,
        compute_dtype=dict.fromkeys([*per_param, "attention"], compute_dtype_of(quantization or dtype, dtype)),
        kv_bytes_per_element=width,
        activation_bytes_per_element=width,
        weight_bytes=held_bytes,
        resident_weight_bytes=total - (disk.bytes_on_disk - disk.staging_bytes if disk else 0),
    )


def _settings(net: Any, device: torch.device, serving: Serving, disk: DiskExperts | None) -> dict[str, Any]:
    config = net.config.get_text_config()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(net.dtype).removeprefix("torch."),
        "attn_implementation": config._attn_implementation,
        "experts_implementation": config._experts_implementation,
        "num_threads": torch.get_num_threads(),
        "batching": "continuous" if serving.continuous else "whole batches",
        "expert_io": disk.io_mode if disk else None,
        "prefix_caching": False,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }

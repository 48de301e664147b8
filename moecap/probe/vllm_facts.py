"""What a vLLM worker holds and what it resolved its settings to, asked from inside it, as JSON values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import vllm


def worker_facts(worker: Any) -> dict[str, Any]:
    """Of one worker after warm-up."""
    config, runner = worker.vllm_config, worker.model_runner
    cache, scheduler, parallel = config.cache_config, config.scheduler_config, config.parallel_config
    blocks, groups = runner.kv_cache_config.num_blocks, max(1, len(runner.kv_cache_config.kv_cache_groups))
    on_cuda = runner.device.type == "cuda"
    return {
        "parameters": list(_parameters(runner.get_model())),
        "settings": {
            "vllm": str(vllm.__version__),
            "torch": str(torch.__version__),
            "device": torch.cuda.get_device_name(runner.device) if on_cuda else "cpu",
            "device_capability": torch.cuda.get_device_capability(runner.device) if on_cuda else None,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "quantization": config.model_config.quantization,
            "load_format": str(config.load_config.load_format),
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "chunked_prefill": scheduler.enable_chunked_prefill,
            "async_scheduling": scheduler.async_scheduling,
            "prefix_caching": cache.enable_prefix_caching,
            "kv_dtype": cache.cache_dtype,
            "kv_block_tokens": cache.block_size,
            "kv_capacity_tokens": blocks // groups * cache.block_size,
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode).rpartition(".")[2],
            "cudagraph_sizes": len(config.compilation_config.cudagraph_capture_sizes or ()),
            "compilation_mode": str(config.compilation_config.mode).rpartition(".")[2],
            "enforce_eager": config.model_config.enforce_eager,
            "model_runner": type(runner).__module__,
            "attention_backends": sorted(set(_attention_backends(config))),
            "moe_methods": sorted(set(_moe_methods(config))),
            "all2all_backend": parallel.all2all_backend,
            "expert_parallel": parallel.enable_expert_parallel,
            "tensor_parallel_size": parallel.tensor_parallel_size,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
            "data_parallel_size": parallel.data_parallel_size,
            "executor": str(parallel.distributed_executor_backend),
        },
    }


def _parameters(model: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """A tied tensor once."""
    for name, parameter in model.named_parameters():
        yield {
            "name": name,
            "numel": parameter.numel(),
            "bytes": parameter.numel() * parameter.element_size(),
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "on_host": parameter.device.type == "cpu",
        }


def _attention_backends(config: Any) -> Iterator[str]:
    for module in config.compilation_config.static_forward_context.values():
        backend = getattr(module, "attn_backend", None)
        if backend is not None:
            yield backend.get_name()


def _moe_methods(config: Any) -> Iterator[str]:
    """How experts are computed, by the layers that have a router."""
    for module in config.compilation_config.static_forward_context.values():
        if getattr(module, "router", None) is not None:
            held = getattr(module, "routed_experts", module)
            method = getattr(held, "quant_method", None)
            kernel = getattr(method, "moe_kernel", None) or getattr(method, "kernel", None)
            experts = getattr(getattr(kernel, "impl", kernel), "fused_experts", None)
            yield type(method).__name__ + (f"({type(experts).__name__})" if experts is not None else "")

"""Tiny MoE models with saved weights in float32, and what transformers says of them. Nothing is asserted here."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from moecap.engine import ENGINES
from moecap.engine.base import Engine
from moecap.records import LoadSpec, ModelSpec, Placement, Request, ServeRecord, SystemSpec
from moecap.reference import MODEL_DIR
from moecap.registry import resolve

COMMON: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 16, "num_experts_per_tok": 4}
CONFIGS: dict[str, Any] = {
    "qwen3_moe": Qwen3MoeConfig(**COMMON, **EXPERTS, head_dim=32, moe_intermediate_size=64),
    "qwen2_moe": Qwen2MoeConfig(
        **COMMON, **EXPERTS, moe_intermediate_size=64, shared_expert_intermediate_size=96, decoder_sparse_step=2
    ),
    "mixtral": MixtralConfig(**COMMON, num_local_experts=8, num_experts_per_tok=2, sliding_window=None),
    "olmoe": OlmoeConfig(**{**COMMON, "num_key_value_heads": 4}, **EXPERTS),
    "gpt_oss": GptOssConfig(
        **COMMON,
        num_local_experts=16,
        num_experts_per_tok=4,
        head_dim=32,
        sliding_window=16,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    ),
}
PROMPT_LENGTHS = (5, 40, 17, 9, 28)


def save(family: str, folder: Path) -> Path:
    """Weights large enough that greedy answers vary; the packaged model's tokenizer, of which nothing is used."""
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.09)
    net.save_pretrained(folder)
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@cache
def requests() -> tuple[Request, ...]:
    draw = random.Random(0)
    return tuple(
        Request(
            request_id=f"r{index}", item_index=index, max_new_tokens=6 + index,
            prompt_token_ids=tuple(draw.randrange(3, 256) for _ in range(length)),
        )
        for index, length in enumerate(PROMPT_LENGTHS)
    )  # fmt: skip


CPUS = Placement(node_id="n", hostname="h", kind="cpu", num_cpus=2)


def serve(
    model: str, engine_name: str, asked: Sequence[Request], concurrency: int, *, where: Placement = CPUS, **args: Any
) -> ServeRecord:
    """In float32, every token's experts kept."""
    engine: Engine = resolve(ENGINES, "moecap.engines", engine_name)()
    spec = SystemSpec(name="s", engine=engine_name, node=where.kind, dtype="float32", args=args)
    try:
        engine.start(ModelSpec(name=model), spec, where)
        return engine.serve(asked, LoadSpec(concurrency=concurrency, staggered=False), "tokens")
    finally:
        engine.stop()

"""Makes moecap/reference: the held-out task files, the byte tokenizer, the trained model and what was measured of it.

    python scripts/train_reference_model.py --only untrained                          # random weights, seconds
    python scripts/train_reference_model.py --device cuda --steps 7500 --workers 14   # the real one
    python scripts/write_model_card.py                                                # then the model card

Trains in bf16 with fp32 master weights, so that the weights in the file are the ones that the training loss saw. Runs
on one device; doesn't resume, and doesn't download anything: the tasks are generated, the text is the standard library
of the interpreter that runs this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import transformers
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from moecap.reference import TASK_NAMES, TaskItem
from moecap.reference.generators import (
    GENERATORS,
    Example,
    completion_items,
    held_out_items,
    text_documents,
    training_stream,
)

EOS, PAD, VOCABULARY = 256, 257, 264
"""Ids 0 to 255 are the bytes themselves; then end-of-sequence, padding, and reserved ids up to a multiple of 8."""

ROW_TOKENS = 512
TEXT_ROWS = 0.2
"""Share of the rows that are one window of text; the others are packed task examples."""
PROMPT_WEIGHT, TEXT_WEIGHT = 0.01, 0.1
"""Loss weights per token. A target's tokens weigh 1 / sqrt(their number), so that one-letter answers count too."""

ITEMS_PER_TASK = 400
ITEM_SEED = 20261124
NEW_TOKENS = 49
"""The longest target and its end-of-sequence."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""tokens int64 [rows, ROW_TOKENS]; weights float32 and segment ids int32 of the same shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the result, apart from the hardware's rounding."""

    steps: int
    """Optimizer steps."""
    max_seconds: float
    """The learning-rate schedule ends at this wall time if the steps have not."""
    rows: int
    """Rows of ROW_TOKENS per step."""
    learning_rate: float
    """Peak, after the warm-up; cosine to zero."""
    balance: float
    """Coefficient of the load-balancing loss."""
    seed: int
    """Of the weights and of the training stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What a training run recorded."""

    curve: list[tuple[int, float, float, float]]
    """(step, weighted cross-entropy, balance loss, learning rate), the losses averaged since the last entry."""
    steps: int
    """Steps done."""
    seconds: float
    """Wall time of the training loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What the saved weights do on held-out data."""

    items: dict[str, int]
    """Task -> number of held-out items asked."""
    wrong: dict[str, dict[str, dict[str, str]]]
    """dtype -> task -> item_id -> the answer, where it is not the target."""
    routing: dict[str, list[list[int]]]
    """Source (task, or "text") -> tokens per [layer][expert], over prompts, targets and end-of-sequence."""
    text_bits_per_byte: float
    """Cross-entropy on windows of held-out text."""
    parameters: int
    """Of the model in the folder."""


def build_config() -> Qwen3MoeConfig:
    """The model's shape: 10.7 M parameters, 2.5 M of them active per token."""
    return Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype="bfloat16",
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one token per UTF-8 byte, whose id is the byte's value."""
    vocabulary = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|pad|>", *(f"<|reserved_{i}|>" for i in range(VOCABULARY - PAD - 1))]
    core.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=specials[0],
        pad_token=specials[1],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


class Batches(Dataset[Batch]):
    """Training batches by step number, made in the loader's worker processes. Rows are full: there is no padding."""

    def __init__(self, recipe: Recipe, text: npt.NDArray[np.uint16]) -> None:
        self.recipe, self.text = recipe, text

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.recipe.seed}:{step}")
        stream = training_stream(rng.getrandbits(64))
        rows = []
        for _ in range(self.recipe.rows):
            pieces = [] if rng.random() < TEXT_ROWS else _pack_examples(stream)
            room = ROW_TOKENS - sum(len(tokens) for tokens, _ in pieces)
            start = rng.randrange(len(self.text) - ROW_TOKENS)
            window = self.text[start : start + room]
            rows.append([*pieces, (window, np.full(room, TEXT_WEIGHT, np.float32))])
        tokens = np.stack([np.concatenate([t for t, _ in row]) for row in rows]).astype(np.int64)
        weights = np.stack([np.concatenate([w for _, w in row]) for row in rows])
        segments = np.stack([np.repeat(np.arange(len(row)), [len(t) for t, _ in row]) for row in rows])
        return torch.from_numpy(tokens), torch.from_numpy(weights), torch.from_numpy(segments.astype(np.int32))


def _pack_examples(stream: Iterator[Example]) -> list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]]:
    """Examples as (tokens, loss weights) until the next one would not fit into a row."""
    pieces: list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]] = []
    used = 0
    while True:
        tokens, weights = encode_example(next(stream))
        used += len(tokens)
        if used > ROW_TOKENS:
            return pieces
        pieces.append((tokens, weights))


def encode_example(example: Example) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
    """Tokens (bytes of prompt and target, end-of-sequence) and the loss weight of predicting each."""
    tokens = np.array([*example.prompt.encode(), *example.target.encode(), EOS], np.uint16)
    weights = np.full(len(tokens), PROMPT_WEIGHT, np.float32)
    answer = len(tokens) - len(example.prompt)
    weights[-answer:] = answer**-0.5
    return tokens, weights


def encode_text(documents: list[str]) -> npt.NDArray[np.uint16]:
    """All documents as bytes, end-of-sequence after each."""
    return np.concatenate([np.array([*document.encode(), EOS], np.uint16) for document in documents])


def losses(model: Qwen3MoeForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted next-token cross-entropy, and the load-balancing loss (1 when every expert gets the same)."""
    tokens, weights, segments = batch
    same = segments[:, :, None] == segments[:, None, :]
    causal = torch.ones(ROW_TOKENS, ROW_TOKENS, dtype=torch.bool, device=tokens.device).tril()
    # A packed example sees nothing of its neighbours: it trains as if it stood alone, as it will be asked.
    mask = torch.zeros(same.shape, dtype=model.dtype, device=tokens.device).masked_fill_(~(same & causal), -1e9)
    positions = torch.arange(ROW_TOKENS, device=tokens.device) - _segment_starts(segments)
    # The backbone, because the full model would add transformers' own balance loss, which can't read a packed mask.
    output = model.model(
        input_ids=tokens,
        attention_mask=mask[:, None],
        position_ids=positions,
        output_router_logits=True,
        use_cache=False,
    )
    inside = (segments[:, 1:] == segments[:, :-1]) * weights[:, 1:]
    logits = model.lm_head(output.last_hidden_state[:, :-1]).flatten(0, 1).float()
    entropy = functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    return (entropy * inside.flatten()).sum() / inside.sum(), balance_loss(output.router_logits, model.config)


def _segment_starts(segments: torch.Tensor) -> torch.Tensor:
    """For each token the column where its segment begins, [rows, ROW_TOKENS]."""
    columns = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return torch.where(begins, columns, 0).cummax(dim=1).values


def balance_loss(router_logits: tuple[torch.Tensor, ...], config: Qwen3MoeConfig) -> torch.Tensor:
    """Experts x sum(share of assignments x mean router probability), averaged over layers.

    Per layer, where transformers' own loss pools the layers: pooled, one layer may starve an expert that another feeds.
    Over the whole batch, where all tasks meet: a task may keep its own experts as long as the mix is balanced.
    """
    logits = torch.stack(router_logits).float()
    chosen = logits.topk(config.num_experts_per_tok, dim=-1).indices
    share = functional.one_hot(chosen, config.num_experts).float().mean(dim=(1, 2))
    loss: torch.Tensor = config.num_experts * (share * logits.softmax(dim=-1).mean(dim=1)).sum(dim=-1).mean()
    return loss


def train(model: Qwen3MoeForCausalLM, recipe: Recipe, text: npt.NDArray[np.uint16], workers: int) -> Training:
    """Train in place. Prints one line every hundred steps."""
    device, parameters = model.device, list(model.parameters())
    masters = [p.detach().float().clone() for p in parameters]
    matrices, vectors = [m for m in masters if m.dim() > 1], [m for m in masters if m.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    curve: list[tuple[int, float, float, float]] = []
    sums, since, step, began = torch.zeros(2, device=device), 0, 0, time.monotonic()
    for step, batch in enumerate(DataLoader(Batches(recipe, text), batch_size=None, num_workers=workers), start=1):
        rate = learning_rate(recipe, step, time.monotonic() - began)
        tokens, weights, segments = (t.to(device, non_blocking=True) for t in batch)
        both = torch.stack(losses(model, (tokens, weights, segments)))
        torch.autograd.backward(both[0] + recipe.balance * both[1])
        apply_gradients(optimizer, masters, parameters, rate)
        sums, since = sums + both.detach(), since + 1
        if step % 100 == 0 or step in (1, recipe.steps) or not rate:
            entropy, balance = (sums / since).tolist()
            curve.append((step, entropy, balance, rate))
            print(f"{step} loss {entropy:.4f} balance {balance:.3f} {time.monotonic() - began:.0f} s", flush=True)
            sums, since = torch.zeros(2, device=device), 0
        if not rate:
            break
    return Training(curve=curve, steps=step, seconds=time.monotonic() - began)


def learning_rate(recipe: Recipe, step: int, seconds: float) -> float:
    """Linear warm-up over 2 % of the steps, then cosine to zero over steps or time, whichever is further on."""
    progress = max(step / recipe.steps, seconds / recipe.max_seconds)
    if progress >= 1:
        return 0.0
    return recipe.learning_rate * min(1.0, step / (0.02 * recipe.steps)) * 0.5 * (1 + math.cos(math.pi * progress))


def apply_gradients(
    optimizer: torch.optim.Optimizer, masters: list[torch.Tensor], parameters: list[torch.nn.Parameter], rate: float
) -> None:
    """One clipped step of the fp32 masters by the bf16 gradients; the parameters become the masters, rounded."""
    for master, parameter in zip(masters, parameters, strict=True):
        master.grad = None if parameter.grad is None else parameter.grad.float()
        parameter.grad = None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    with torch.no_grad():
        torch._foreach_copy_(list[torch.Tensor](parameters), masters)


@torch.inference_mode()
def answer(model: Qwen3MoeForCausalLM, prompts: list[str], batch: int = 200) -> list[str]:
    """Greedy answers, cut at end-of-sequence or the first newline."""
    answers = []
    for start in range(0, len(prompts), batch):
        encoded = [prompt.encode() for prompt in prompts[start : start + batch]]
        width = max(map(len, encoded))
        ids = torch.tensor([[PAD] * (width - len(e)) + [*e] for e in encoded], device=model.device)
        output = model.generate(ids, attention_mask=(ids != PAD).long(), max_new_tokens=NEW_TOKENS, do_sample=False)
        for row in output[:, width:].tolist():
            text = bytes(row[: row.index(EOS)] if EOS in row else [t for t in row if t < EOS])
            answers.append(text.decode(errors="replace").split("\n")[0])
    return answers


@torch.inference_mode()
def route(model: Qwen3MoeForCausalLM, sequences: list[list[int]], batch: int = 100) -> tuple[list[list[int]], float]:
    """Tokens per [layer][expert] over the sequences, and the mean cross-entropy in bits per predicted token."""
    config = model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_experts, dtype=torch.int64)
    nats, predicted = 0.0, 0
    for start in range(0, len(sequences), batch):
        part = sequences[start : start + batch]
        ids = torch.tensor([s + [PAD] * (max(map(len, part)) - len(s)) for s in part], device=model.device)
        # Padding stands to the right, where causal attention can't see it; its routing is left out of the counts.
        output = model(input_ids=ids, output_router_logits=True, use_cache=False)
        real = (ids != PAD).flatten()
        for layer, logits in enumerate(output.router_logits):
            chosen = logits[real].topk(config.num_experts_per_tok, dim=-1).indices
            counts[layer] += torch.bincount(chosen.flatten(), minlength=config.num_experts).cpu()
        targets = ids[:, 1:].flatten()
        logits = output.logits[:, :-1].flatten(0, 1).float()
        nats += functional.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum").item()
        predicted += int((targets != PAD).sum())
    return counts.tolist(), nats / predicted / math.log(2)


def evaluate(folder: Path, items: dict[str, list[TaskItem]], device: str, library: Path | None) -> Evaluation:
    """Load what was saved and measure it: answers in fp32 and in bf16 arithmetic, routing and text in bf16."""
    wrong = {}
    # grouped_mm has no fp32 kernel on every device.
    for dtype, experts in (("float32", "eager"), ("bfloat16", "grouped_mm")):
        model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation=experts)
        model.to(device).eval()
        wrong[dtype] = {task: wrong_answers(model, asked) for task, asked in items.items()}
    routing = {}
    for task, asked in items.items():
        routing[task], _ = route(model, [[*i.prompt.encode(), *i.target.encode(), EOS] for i in asked])
    text = encode_text(text_documents(held_out=True, library=library))
    windows = [text[i : i + ROW_TOKENS].tolist() for i in range(0, min(len(text), 200 * ROW_TOKENS), ROW_TOKENS)]
    routing["text"], bits = route(model, windows)
    counts = {task: len(asked) for task, asked in items.items()}
    return Evaluation(
        items=counts, wrong=wrong, routing=routing, text_bits_per_byte=bits, parameters=model.num_parameters()
    )


def wrong_answers(model: Qwen3MoeForCausalLM, items: list[TaskItem]) -> dict[str, str]:
    """item_id -> answer of the items that the model gets wrong."""
    answers = zip(items, answer(model, [i.prompt for i in items]), strict=True)
    return {item.item_id: given for item, given in answers if given != item.target}


def write_tasks(folder: Path, library: Path | None) -> None:
    """Write the held-out items of every task as <task>.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {task: [("", e) for e in held_out_items(task, ITEMS_PER_TASK, ITEM_SEED)] for task in GENERATORS}
    drawn["complete"] = completion_items(ITEMS_PER_TASK, ITEM_SEED, library)
    for task, examples in drawn.items():
        lines = [
            {"item_id": f"{task}-{i:04}{module and '-'}{module}", "prompt": e.prompt, "target": e.target}
            for i, (module, e) in enumerate(examples)
        ]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_tasks(folder: Path) -> dict[str, list[TaskItem]]:
    """What write_tasks wrote."""
    files = {task: (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines() for task in TASK_NAMES}
    return {task: [TaskItem(task=task, **json.loads(line)) for line in lines] for task, lines in files.items()}


def save(model: Qwen3MoeForCausalLM, folder: Path) -> None:
    """Write the model in Hugging Face layout with the tokenizer."""
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    # The names that readers older than transformers 5 know, too.
    _update_json(folder / "config.json", {"num_experts": model.config.num_experts})
    _update_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "model.safetensors").chmod(0o644)


def _update_json(path: Path, values: dict[str, object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_training(folder: Path, arguments: argparse.Namespace, training: Training, text: list[str]) -> None:
    """Keep what is known of the training run as training.json."""
    options = {name: getattr(arguments, name) for name in ("device", *Recipe.__slots__, "workers")}
    options = {name: value for name, value in options.items() if value != math.inf}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    record = {
        "command": f"python scripts/train_reference_model.py {flags}",
        "recipe": options,
        "training": asdict(training),
        "row_tokens": ROW_TOKENS,
        "tokens": training.steps * arguments.rows * ROW_TOKENS,
        "text": describe_text(text, arguments.library),
        **environment(arguments.device),
    }
    (folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def describe_text(documents: list[str], library: Path | None) -> dict[str, object]:
    """What identifies a corpus."""
    return {
        "library": (library or Path(sysconfig.get_path("stdlib"))).name,
        "documents": len(documents),
        "bytes": sum(len(d.encode()) for d in documents),
        "sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
    }


def environment(device: str) -> dict[str, object]:
    """The hardware and the versions that numbers depend on."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "hardware": f"one {torch.cuda.get_device_name()}" if on_gpu else f"a CPU, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("moecap/reference"), help="folder of model/ and tasks/")
    parser.add_argument("--only", choices=["tasks", "untrained", "evaluate"], help="do this step alone")
    parser.add_argument("--library", type=Path, help="standard library to read text from, if not the interpreter's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="end the schedule by then at the latest")
    parser.add_argument("--rows", type=int, default=128, help=f"rows of {ROW_TOKENS} tokens per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--balance", type=float, default=0.005, help="coefficient of the load-balancing loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that generate training data")
    return parser.parse_args()


def main() -> None:
    """Make tasks, tokenizer and model; train; evaluate."""
    arguments = parse_arguments()
    folder, tasks = arguments.out / "model", arguments.out / "tasks"
    if arguments.only in (None, "tasks"):
        write_tasks(tasks, arguments.library)
    if arguments.only in (None, "untrained"):
        make_model(folder, arguments)
    if arguments.only in (None, "evaluate"):
        evaluation = evaluate(folder, read_tasks(tasks), arguments.device, arguments.library)
        text = describe_text(text_documents(held_out=True, library=arguments.library), arguments.library)
        record = {**asdict(evaluation), "text": text, **environment(arguments.device)}
        (folder / "evaluation.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def make_model(folder: Path, arguments: argparse.Namespace) -> None:
    """Build the model, train it unless told not to, and save it with what was recorded."""
    recipe = Recipe(**{name: getattr(arguments, name) for name in Recipe.__slots__})
    torch.manual_seed(recipe.seed)
    model = Qwen3MoeForCausalLM(build_config()).to(arguments.device, torch.bfloat16)
    model.set_experts_implementation("grouped_mm")
    if arguments.only == "untrained":
        return save(model, folder)
    text = text_documents(held_out=False, library=arguments.library)
    training = train(model, recipe, encode_text(text), arguments.workers)
    save(model, folder)
    write_training(folder, arguments, training, text)


if __name__ == "__main__":
    main()

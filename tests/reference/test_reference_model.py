"""The shipped model: loads offline as what its card says, routes by task without a dead expert, and answers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from moecap.reference import MODEL_DIR, TASK_NAMES, load_items

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EVALUATION = json.loads((MODEL_DIR / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    yield transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, local_files_only=True).eval()


@pytest.fixture(scope="module")
def routing(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Task -> share of assignments, [layers, experts], over 40 items."""
    shares = {}
    for task in TASK_NAMES:
        texts = [i.prompt + i.target for i in load_items(task, 40)]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            logits = model(**batch, output_router_logits=True).router_logits
        real = batch.attention_mask.flatten().bool()
        chosen = torch.stack([layer[real].topk(2, dim=-1).indices.flatten() for layer in logits])
        shares[task] = torch.nn.functional.one_hot(chosen, 16).float().mean(dim=1)
    return shares


def test_tokens_are_bytes(tokenizer: Any) -> None:
    every_byte = bytes(range(256)).decode("latin-1")
    for text in ("add 12+34=", "a\nb\tc  d", "naïve 数 🙂", every_byte):
        ids = tokenizer(text).input_ids
        assert ids == [*text.encode()]
        assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (256, 257, None)
    assert tokenizer("a<|endoftext|>").input_ids == [97, 256]


def test_model_is_what_the_card_says(model: Any, tokenizer: Any) -> None:
    assert model.config.model_type == "qwen3_moe"
    assert model.num_parameters() == EVALUATION["parameters"] == 10_713_088
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.vocab_size == len(tokenizer)
    assert f"{model.num_parameters():,} parameters" in (MODEL_DIR / "README.md").read_text(encoding="utf-8")


def test_size_on_disk() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 25_000_000


def test_no_expert_is_dead(routing: dict[str, Any]) -> None:
    mix = torch.stack(list(routing.values())).mean(dim=0)
    assert mix.min() > 0.005


def test_tasks_use_different_experts(routing: dict[str, Any]) -> None:
    for a, b in (("add", "sort"), ("edit", "choice"), ("chain", "complete")):
        distance = (routing[a] - routing[b]).abs().sum(dim=-1) / 2
        assert distance.mean() > 0.3


def test_records_hold_a_solved_task_and_one_in_between() -> None:
    right = {t: 1 - len(w) / EVALUATION["items"][t] for t, w in EVALUATION["wrong"]["bfloat16"].items()}
    assert {*right} == {*TASK_NAMES}
    assert sum(share > 0.9 for share in right.values()) >= 1
    assert sum(0.3 < share < 0.8 for share in right.values()) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("task", "low", "high"), [("add", 0.9, 1.0), ("edit", 0.9, 1.0), ("multiply", 0.35, 0.9)])
def test_answers(model: Any, tokenizer: Any, task: str, low: float, high: float) -> None:
    items = load_items(task, 40)
    batch = tokenizer([i.prompt for i in items], return_tensors="pt", padding=True)
    output = model.generate(**batch, max_new_tokens=49, do_sample=False)
    answers = tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    right = sum(answer.split("\n")[0] == item.target for answer, item in zip(answers, items, strict=True))
    assert low <= right / len(items) <= high

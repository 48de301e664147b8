"""Shape cards against the models' own modules, against checkpoints' counts and against what authors publish."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import published
import pytest

from moecap.model import accounting
from moecap.model.cards import all_cards, card_text, find_card, near_ids, read_card

CARDS = {card.model: card for card in all_cards()}


def maker() -> ModuleType:
    """scripts/make_shape_cards.py."""
    path = Path(__file__).parent.parent.parent / "scripts" / "make_shape_cards.py"
    spec = importlib.util.spec_from_file_location("make_shape_cards", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("model", published.MODELS)
def test_a_card_is_what_the_modules_say(model: str) -> None:
    assert maker().make_card(published.MODELS[model], published.raw_config(model)) == CARDS[model]


def test_every_model_has_its_card() -> None:
    assert CARDS.keys() == published.MODELS.keys()


@pytest.mark.parametrize("model", ["Qwen/Qwen3-Next-80B-A3B-Instruct", "openai/gpt-oss-20b", "xai-org/grok-1"])
def test_a_card_survives_its_file(model: str) -> None:
    card = CARDS[model]
    assert read_card(card_text(card)) == card
    assert [layer.index for layer in card.shape.layers] == list(range(len(card.shape.layers)))


EXTRA_HEAD = {"ibm-granite/granite-3.0-3b-a800m-instruct"}
"""Checkpoints that store a tied head once more."""
NO_LAYOUT = {
    "baidu/ERNIE-4.5-21B-A3B-PT", "Qwen/Qwen3-Next-80B-A3B-Instruct", "stepfun-ai/Step-3.7-Flash", "zai-org/GLM-5.2",
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
}  # fmt: skip
"""Checkpoints with prediction layers whose layout isn't known, or that configurations don't mention."""
OTHER_ELEMENTS = {
    # vision models that the configurations here abridge
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct", "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "google/gemma-4-26B-A4B", "mistralai/Mistral-Small-4-119B-2603", "MiniMaxAI/MiniMax-M3",
    "moonshotai/Moonlight-16B-A3B",  # 1,728 elements of rotary frequencies beside its correction biases
}  # fmt: skip
SCALES = {
    "deepseek-ai/DeepSeek-V3", "MiniMaxAI/MiniMax-M2.5", "moonshotai/Kimi-K2-Instruct", "Qwen/Qwen3-235B-A22B-FP8",
    "Qwen/Qwen3-30B-A3B-FP8",
    "RedHatAI/Qwen3-30B-A3B-FP8-dynamic", "RedHatAI/Qwen3-30B-A3B-quantized.w4a16", "XiaomiMiMo/MiMo-V2-Flash",
}  # fmt: skip
"""Counted with scales (test_quantization.py holds some of them to these), or with MTP layers of another layout."""
HASHED = {"deepseek-ai/DeepSeek-V4-Flash": 3, "deepseek-ai/DeepSeek-V4-Pro": 3}
"""First layers that look up experts by token: a table of top-k experts for each of the vocabulary, and no bias."""
COUNTED = [
    name
    for name in CARDS
    if published.MODELS[name]["safetensors_elements"] and name not in {*NO_LAYOUT, *OTHER_ELEMENTS, *SCALES}
]


@pytest.mark.parametrize("model", COUNTED)
def test_parameters_are_those_of_the_checkpoint(model: str) -> None:
    """Elements of the published safetensors files: exactly our parameters, with what a checkpoint may hold besides:
    one correction bias per expert or a table (buffers), prediction layers with those of their own, and their copies of
    embedding and head."""
    shape, elements = CARDS[model].shape, int(published.MODELS[model]["safetensors_elements"])
    rest = elements - accounting.total_params(shape) - sum(shape.other_params.values())
    moe = [layer.num_experts for layer in shape.layers if layer.num_experts]
    copies = shape.embedding_params + shape.lm_head_params
    mtp, mtp_biases = shape.mtp_params or 0, (shape.mtp_layers or 0) * moe[-1]
    buffers = sum(moe[(hashed := HASHED.get(model, 0)) :]) + hashed * shape.vocab_size * shape.layers[-1].top_k
    allowed = {0, buffers, mtp, mtp + buffers + mtp_biases, mtp + buffers + mtp_biases + copies}
    if model in HASHED:
        allowed = {mtp + buffers + mtp_biases}
    if model in EXTRA_HEAD:
        allowed = {shape.lm_head_matrix_params}
    assert rest in allowed


ROUNDED = {
    "baidu/ERNIE-4.5-21B-A3B-PT", "moonshotai/Kimi-K2-Instruct", "moonshotai/Kimi-K2.5",
    "Qwen/Qwen3-VL-30B-A3B-Instruct", "moonshotai/Kimi-Linear-48B-A3B-Instruct",
    "ibm-granite/granite-3.0-1b-a400m-instruct", "ibm-granite/granite-3.1-1b-a400m-instruct",
}  # fmt: skip
"""Published with one or two digits, or cut."""


@pytest.mark.parametrize("model", sorted(ROUNDED))
def test_size_is_within_one_percent_of_the_checkpoint_where_the_published_figure_is_coarse(model: str) -> None:
    shape, elements = CARDS[model].shape, int(published.MODELS[model]["safetensors_elements"])
    assert elements / (accounting.total_params(shape) + sum(shape.other_params.values())) == pytest.approx(1, abs=0.01)


WITH_PREDICTION = {"deepseek-ai/DeepSeek-V4-Pro"}
"""Published with their prediction layers."""


@pytest.mark.parametrize("model", [name for name, card in CARDS.items() if card.published and name not in ROUNDED])
def test_size_is_within_one_percent_of_what_authors_publish(model: str) -> None:
    card = CARDS[model]
    assert card.published is not None
    scale = {"B": 1e9, "T": 1e12}[card.published.total[-1]]
    said = float(card.published.total[:-1]) * scale
    text = accounting.total_params(card.shape)
    whole = text + sum(card.shape.other_params.values())
    if model in WITH_PREDICTION:
        assert card.shape.mtp_params is not None
        whole += card.shape.mtp_params
    assert min(abs(text / said - 1), abs(whole / said - 1)) < 0.01


ACTIVE = {  # in the digits of their model cards, which count the head and not the embedding
    "openai/gpt-oss-120b": "5.13", "openai/gpt-oss-20b": "3.61", "deepseek-ai/DeepSeek-V2": "21",
    "google/gemma-4-26B-A4B": "3.8", "XiaomiMiMo/MiMo-V2-Flash": "15", "Qwen/Qwen3-Coder-480B-A35B-Instruct": "35",
    "Snowflake/snowflake-arctic-instruct": "17", "databricks/dbrx-instruct": "36", "mistralai/Mixtral-8x22B-v0.1": "39",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "3.2", "baidu/ERNIE-4.5-300B-A47B-PT": "47",
    "deepseek-ai/DeepSeek-V4-Flash": "13", "deepseek-ai/DeepSeek-V4-Pro": "49",
}  # fmt: skip


@pytest.mark.parametrize("model", ACTIVE)
def test_active_parameters_are_what_authors_publish(model: str) -> None:
    decimals = len(ACTIVE[model].partition(".")[2])
    assert f"{accounting.active_params(CARDS[model].shape) / 1e9:.{decimals}f}" == ACTIVE[model]


def test_grok_by_hand() -> None:
    """64 layers: attention 2 x 6144 x 6144 + 2 x 6144 x 1024, 8 experts of 3 x 6144 x 32768, a router of 6144 x 8, four
    norms of 6144; embedding 131072 x 6144, tied; a last norm."""
    layer = 2 * 6144 * 6144 + 2 * 6144 * 1024 + 8 * 3 * 6144 * 32768 + 6144 * 8 + 4 * 6144
    assert accounting.total_params(CARDS["xai-org/grok-1"].shape) == 64 * layer + 131072 * 6144 + 6144


def test_other_trainings_share_a_card() -> None:
    assert find_card("deepseek-ai/DeepSeek-V2-Lite-Chat") is find_card("deepseek-ai/deepseek-v2-lite")
    assert find_card("org/unheard-of") is None
    assert near_ids("Qwen/Qwen3-30B-A3")[0] == "Qwen/Qwen3-30B-A3B"
    assert near_ids("qwen/qwen3-30b-a3b-bas")[0] == "Qwen/Qwen3-30B-A3B-Base"


def test_a_card_needs_neither_torch_nor_transformers() -> None:
    check = (
        "import sys; from moecap.model.describe import document, find_model;"
        "document(find_model('deepseek-ai/DeepSeek-R1'));"
        "sys.exit(bool({'torch', 'transformers', 'pyarrow', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

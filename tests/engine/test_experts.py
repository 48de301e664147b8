"""Quantised and offloaded experts against plain transformers: same mathematics, and the bytes that they claim."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import torch
import transformers

from moecap.engine.disk import READ_AHEAD, DiskExperts, offload_experts_to_disk
from moecap.engine.experts import expert_by_expert, int8_linear, take_over_experts, weight_storage_bytes
from moecap.engine.int8 import Int8Linear, quantise_int8, quantise_rows
from moecap.errors import EngineError, UnsupportedModelError
from moecap.hardware.ssd import MEMORY_FILESYSTEMS, is_in_memory, scratch_on_disk

E, HIDDEN, INNER, LAYERS = 8, 32, 16, 2
EXPERT_BYTES = 3 * HIDDEN * INNER * 4  # gate, up and down in float32: 6,144, one and a half blocks
PADDED_BYTES = 8192


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """Temporary, and on a disk also where pytest's own folders are in memory."""
    with TemporaryDirectory(dir=scratch_on_disk()) as folder:
        yield Path(folder)


def tiny(kind: str = "Qwen3MoeConfig", dtype: torch.dtype = torch.float32, **own: Any) -> Any:
    torch.manual_seed(1)
    config = getattr(transformers, kind)(
        vocab_size=97, hidden_size=HIDDEN, intermediate_size=48, moe_intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128, num_experts=E,
        num_local_experts=E, num_experts_per_tok=2, decoder_sparse_step=1, tie_word_embeddings=True, **own,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager").eval()


def logits(net: Any) -> torch.Tensor:
    ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        out: torch.Tensor = net(input_ids=ids).logits
    return out


@pytest.mark.parametrize("kind", ["Qwen3MoeConfig", "MixtralConfig", "GptOssConfig"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expert_by_expert_is_eager_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    net = tiny(kind, dtype)
    expected = logits(net)
    take_over_experts(net)
    assert torch.equal(logits(net), expected)


@pytest.mark.parametrize("resident_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_is_eager_bit_for_bit(disk_folder: Path, resident_share: float, dtype: torch.dtype) -> None:
    net = tiny(dtype=dtype)
    expected = logits(net)
    disk = offload_experts_to_disk(net, disk_folder, resident_share=resident_share)
    assert torch.equal(logits(net), expected)
    assert list(disk_folder.iterdir()) == []  # nothing to leave behind, whatever happens
    on_disk = LAYERS * (E - int(E * resident_share)) * EXPERT_BYTES * dtype.itemsize // 4
    assert disk.bytes_on_disk == on_disk
    disk.close()
    disk.close()


def fire(net: Any, choices: list[list[int]]) -> None:
    """Send one token per row of `choices` to these experts of layer 0."""
    ids = torch.tensor(choices)
    module = net.model.layers[0].mlp.experts
    expert_by_expert(module, torch.ones(len(choices), HIDDEN), ids, torch.ones(ids.shape))


def test_a_pass_reads_each_fired_expert_once_and_no_other(disk_folder: Path) -> None:
    net = tiny()
    disk = offload_experts_to_disk(net, disk_folder, resident_share=0.25)  # experts 0 and 1 stay
    disk.begin_pass()
    fire(net, [[0, 7], [7, 3], [4, 3]])
    found = disk.end_pass()
    assert (found.expert_hits, found.expert_misses) == (1, 3)
    assert found.bytes_read == 3 * PADDED_BYTES
    assert found.stall_ns > 0
    disk.begin_pass()
    fire(net, [[0, 1]])
    resident_only = disk.end_pass()
    assert (resident_only.expert_hits, resident_only.expert_misses, resident_only.bytes_read) == (2, 0, 0)
    disk.begin_pass()
    fire(net, [[0, 7], [7, 3], [4, 3]])
    assert disk.end_pass().bytes_read == 3 * PADDED_BYTES  # nothing was kept from the pass before
    disk.close()


def test_more_experts_than_read_ahead_come_in_order(disk_folder: Path) -> None:
    net, plain = tiny(), tiny()
    disk = offload_experts_to_disk(net, disk_folder, resident_share=0.0)
    experts = net.model.layers[1].mlp.experts
    assert READ_AHEAD < E
    experts.expert_rows.fetch(range(E))
    for expert in range(E):
        row = experts.expert_rows.row(expert)
        assert torch.equal(row["gate_up_proj"], plain.model.layers[1].mlp.experts.gate_up_proj[expert])
        assert torch.equal(row["down_proj"], plain.model.layers[1].mlp.experts.down_proj[expert])
    disk.close()


def test_what_counts_as_read_really_comes_from_the_disk(disk_folder: Path) -> None:
    net = tiny()
    disk = offload_experts_to_disk(net, disk_folder, resident_share=0.0)
    if disk.io_mode != "O_DIRECT":
        pytest.skip(f"reads of this disk can't be told from its cache: {disk.io_mode}")
    before = psutil.Process().io_counters().read_bytes  # of the block layer, kept by the kernel
    disk.begin_pass()
    for _ in range(4):
        logits(net)
    counted = disk.end_pass().bytes_read
    assert counted >= 4 * LAYERS * 2 * PADDED_BYTES
    assert psutil.Process().io_counters().read_bytes - before >= counted
    disk.close()


def test_a_cut_file_and_an_unwritable_folder_are_errors(disk_folder: Path) -> None:
    disk = DiskExperts(disk_folder, PADDED_BYTES)
    disk.append(bytes(4096))
    disk.expect(0, [(0, PADDED_BYTES)])
    with pytest.raises(EngineError, match="4096 of 8192"):
        disk.next_read()
    disk.close()
    with pytest.raises(EngineError, match="No such file"):
        offload_experts_to_disk(tiny(), disk_folder / "absent", resident_share=0.0)


def test_a_folder_in_memory_is_refused_with_the_remedy() -> None:
    """Linux always mounts one for shared memory."""
    folder = Path("/dev/shm")
    if not is_in_memory(folder):
        pytest.skip(f"{folder} is none of {MEMORY_FILESYSTEMS} here")
    with pytest.raises(EngineError, match=r"lies in memory.*offload_folder"):
        offload_experts_to_disk(tiny(), folder, resident_share=0.0)


def test_reads_are_staged_in_memory_that_is_counted(disk_folder: Path) -> None:
    disk = offload_experts_to_disk(tiny(), disk_folder, resident_share=0.0)
    assert disk.staging_bytes == READ_AHEAD * PADDED_BYTES
    disk.close()


def test_quantised_rows_by_hand() -> None:
    weight, scales = quantise_rows(torch.tensor([[1.27, -0.01, 0.5], [0.0, 0.0, 0.0]]))
    assert weight.tolist() == [[127, -1, 50], [0, 0, 0]]
    assert scales.tolist() == pytest.approx([0.01, 1.0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_int8_product_is_that_of_the_dequantised_weights(dtype: torch.dtype, tolerance: float) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 64, generator=draw, dtype=torch.float32).to(dtype)
    weight, scales = quantise_rows(torch.randn(48, 64, generator=draw))
    expected = inputs.double() @ (weight.double() * scales.double()[:, None]).T
    error = (int8_linear(inputs, weight, scales).double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance


def dequantise_into(plain: Any, quantised: Any) -> None:
    """Give `plain` the weights that `quantised` stands for."""
    for layer, of in zip(plain.model.layers, quantised.model.layers, strict=True):
        rows = of.mlp.experts.expert_rows.tensors
        for name in ("gate_up_proj", "down_proj"):
            weight = rows[f"{name}_int8"].float() * rows[f"{name}_scales"][..., None]
            parameter = getattr(layer.mlp.experts, name)
            parameter.data = weight.mT.contiguous() if layer.mlp.experts.is_transposed else weight
        for name, module in of.self_attn.named_children():
            if isinstance(module, Int8Linear):
                getattr(layer.self_attn, name).weight.data = module.weight_int8 * module.weight_scales[:, None]


@pytest.mark.parametrize("kind", ["Qwen3MoeConfig", "GptOssConfig"])  # GptOss: transposed weights, biases
def test_a_quantised_model_computes_what_its_dequantised_weights_compute(kind: str) -> None:
    quantised, plain = tiny(kind), tiny(kind)
    original = logits(plain)
    quantise_int8(quantised)
    dequantise_into(plain, quantised)
    expected = logits(plain)
    assert not torch.equal(expected, original)
    torch.testing.assert_close(logits(quantised), expected, rtol=1e-4, atol=1e-5)


def test_the_routed_experts_really_shrink() -> None:
    net = tiny()
    plain = weight_storage_bytes(net)
    quantise_int8(net)
    held = weight_storage_bytes(net)
    assert set(held) == set(plain) == {name for name, _ in tiny().named_parameters()}
    gate_up = "model.layers.0.mlp.experts.gate_up_proj"
    assert plain[gate_up] == 4 * E * 2 * INNER * HIDDEN
    assert held[gate_up] == E * 2 * INNER * HIDDEN + 4 * E * 2 * INNER  # one byte a weight, a float32 scale a row
    assert held["model.layers.0.mlp.experts.down_proj"] == E * HIDDEN * INNER + 4 * E * HIDDEN
    assert held["model.layers.1.self_attn.q_proj.weight"] == 32 * HIDDEN + 4 * 32
    assert held["model.layers.1.mlp.gate.weight"] == plain["model.layers.1.mlp.gate.weight"] == 4 * E * HIDDEN
    assert not any("experts" in name for name, _ in net.named_parameters())  # the originals are gone


def test_quantised_experts_can_be_offloaded_too(disk_folder: Path) -> None:
    net, both = tiny(), tiny()
    quantise_int8(net)
    quantise_int8(both)
    disk = offload_experts_to_disk(both, disk_folder, resident_share=0.0)
    assert torch.equal(logits(both), logits(net))
    assert weight_storage_bytes(both) == weight_storage_bytes(net)
    assert disk.bytes_on_disk == LAYERS * E * (3 * HIDDEN * INNER + 4 * (2 * INNER + HIDDEN))
    disk.close()


def test_experts_outside_transformers_dispatch_are_refused() -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UnsupportedModelError, match="llama"):
        take_over_experts(transformers.AutoModelForCausalLM.from_config(config))

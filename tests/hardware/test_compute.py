"""Compute dtypes by hand; the parts of a host against JEDEC arithmetic and the prices in the file."""

import pytest

from moecap.errors import ConfigError
from moecap.hardware.catalogue import find_device
from moecap.hardware.components import component_class, components, dram_of, price_per_gb
from moecap.hardware.compute import compute_dtype_of


@pytest.mark.parametrize(
    ("weights", "activations", "computed"),
    [
        ("int4", "bfloat16", "bfloat16"),  # weight-only: no unit multiplies int4 by bf16
        ("gptq", "float16", "float16"),
        ("mxfp4", "bfloat16", "bfloat16"),
        ("mxfp4", "float8", "float8"),
        ("nvfp4", "nvfp4", "float4"),
        ("fp8", "bfloat16", "bfloat16"),
        ("fp8", "fp8", "float8"),
        ("int4", "int8", "int8"),
        ("int8", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_products_are_computed_in_the_wider_of_both(weights: str, activations: str, computed: str) -> None:
    assert compute_dtype_of(weights, activations) == computed


def test_activations_are_bfloat16_unless_said() -> None:
    assert compute_dtype_of("awq") == "bfloat16"


def test_what_no_unit_computes_is_an_error_with_the_dtypes_there_are() -> None:
    with pytest.raises(ConfigError, match=r"activations = 'int4'.*float32, tfloat32, bfloat16"):
        compute_dtype_of("int4", "int4")
    with pytest.raises(ConfigError, match=r"weights = 'int3': is no known number format.*int4"):
        compute_dtype_of("int3")


def test_parts_of_a_host_fall_into_classes() -> None:
    assert list(components("dram")) == [
        "ddr4-3200-channel", "ddr5-4800-channel", "ddr5-5600-channel", "ddr5-6400-channel", "mrdimm-8800-channel",
    ]  # fmt: skip
    assert list(components("ssd")) == ["nvme-ssd-pcie4-x4", "nvme-ssd-pcie5-x4"]
    assert list(components("link")) == ["pcie3-x16", "pcie4-x16", "pcie5-x16", "pcie6-x16"]
    assert component_class(find_device("nvidia-l4-24gb")) is None
    assert component_class(find_device("nvidia-dgx-h100")) is None


@pytest.mark.parametrize(
    ("cpu", "channels", "channel", "bytes_per_s"),
    [
        ("amd-epyc-7763", 8, "ddr4-3200-channel", 8 * 25.6e9),
        ("amd-epyc-9654", 12, "ddr5-4800-channel", 12 * 38.4e9),
        ("intel-xeon-platinum-8480plus", 8, "ddr5-4800-channel", 8 * 38.4e9),
        ("intel-xeon-6980p", 12, "mrdimm-8800-channel", 12 * 70.4e9),
        ("amd-epyc-9755", 12, None, 576e9),  # DDR5-6000 has no row
        ("nvidia-grace-72c", None, None, 500e9),  # LPDDR5X has no DIMM channels
    ],
)
def test_a_socket_is_so_many_channels(cpu: str, channels: int | None, channel: str | None, bytes_per_s: float) -> None:
    spec = find_device(cpu)
    assert spec.memory_channels == channels
    assert spec.memory_bytes_per_s == pytest.approx(bytes_per_s)
    row = dram_of(spec) if spec.memory_channels else None
    assert (row.key if row else None) == channel


def test_a_gigabyte_costs_what_the_slowest_part_that_is_fast_enough_costs() -> None:
    assert price_per_gb("ssd") == (0.07, find_device("nvme-ssd-pcie4-x4"))
    assert price_per_gb("ssd", 10e9) == (0.20, find_device("nvme-ssd-pcie5-x4"))
    assert price_per_gb("dram", 38.4e9) == (20, find_device("ddr5-4800-channel"))
    assert price_per_gb("dram", 44.8e9) == (32, find_device("ddr5-6400-channel"))  # DDR5-5600 has no price of its own
    assert price_per_gb("dram", 70.4e9) is None  # MRDIMMs have none
    assert price_per_gb("link") is None

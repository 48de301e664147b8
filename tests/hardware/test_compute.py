"""Compute dtypes by hand."""

import pytest

from moecap.errors import ConfigError
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
        ("bf16", "fp32", "float32"),
        ("awq", "half", "float16"),
        ("fp8", "tf32", "tfloat32"),
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

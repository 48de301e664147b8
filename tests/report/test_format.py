"""Numbers for people, each worked out by hand."""

import pytest

from moecap.report.format import byte_count, markdown_cell, number, quantity, with_half_width


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1234.4, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (-5.0, "-5.00"), (0.00001234, "1.23e-05"),
        (123456789, "1.23e+08"),
    ],
)  # fmt: skip
def test_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (86.13, 2.583, "86.1 ± 2.6"), (131.74, 3.95, "131.7 ± 4.0"), (1054.2, 31.6, "1054 ± 32"),
        (12345.0, 0.3, "12345 ± 0.3"), (5.0, 0.0, "5.00 ± 0.00"),
    ],
)  # fmt: skip
def test_a_half_width_has_two_digits(value: float, half: float, text: str) -> None:
    assert with_half_width(value, half) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (12, "12.0 B"), (1500, "1.50 kB"), (21_700_000, "21.7 MB"), (1e9, "1.00 GB"), (2.5e18, "2500 PB")],
)
def test_bytes_are_decimal(value: float, text: str) -> None:
    assert byte_count(value) == text


@pytest.mark.parametrize(
    ("metric", "value", "unit", "text"),
    [
        ("accuracy", 0.625, "share", "62.5 %"),
        ("ttft_s", 0.0456, "s", "45.6 ms"),
        ("e2e_s", 12.0, "s", "12.0 s"),
        ("energy_usd_per_million_output_tokens", 0.5, "USD", "$0.500/1M"),
        ("output_tokens_per_s", 86.1, "tokens/s", "86.1 tok/s"),
        ("memory_bytes", 1e6, "bytes", "1.00 MB"),
        ("distinct_experts", 7.25, "ratio", "7.25"),
        ("energy_j_per_output_token", 2.0, "J", "2.00 J"),
    ],
)
def test_units_for_people(metric: str, value: float, unit: str, text: str) -> None:
    assert quantity(metric, value, unit) == text


def test_a_name_can_not_break_a_markdown_table() -> None:
    assert markdown_cell("a|b\n<img src=x> `c` [d](e)") == r"a\|b \<img src=x\> \`c\` \[d\](e)"

"""The console table: values, intervals, reasons and width, against what a reader would write by hand."""

from dataclasses import replace

import pytest
from study_in_hand import WORKLOAD, accuracy_point, cap_of, entry, performance_point, plan_of, row

from moecap.records import CostSpec, Metric, PointSpec, SloSpec, StudyPlan
from moecap.report import console_table

FAST, SLOW = performance_point("fast", 1), performance_point("slow", 1)
GRADED = accuracy_point("fast")
PLAN = plan_of(FAST, SLOW, GRADED, accuracy_point("slow"))
CAP = cap_of(entry("fast", (1, 1, 1), cap_area=1.0, **{"class": "PA"}), entry("slow", (0, None, 0)))


def rows_of_fast(point: PointSpec = FAST) -> list[Metric]:
    return [
        row(point, "output_tokens_per_s", 123.44, "tokens/s", ci95_low=120.44, ci95_high=126.44),
        row(point, "ttft_s", 0.0456, "s", stat="p50"),
        row(point, "ttft_s", 0.9, "s", stat="p99"),
        row(point, "tpot_s", 0.00812, "s", stat="p50"),
        row(point, "memory_bytes", 21_700_000, "bytes"),
        row(point, "s_mbu", 0.111, "share", phase="decode", peak_source="calibrated"),
        row(point, "s_mbu", 0.222, "share", peak_source="catalogue"),
        row(point, "s_mbu", 0.333, "share", peak_source="calibrated"),
        row(point, "s_mfu", None, "share", peak_source="calibrated", missing_reason="no int8 peak is known"),
        row(point, "usd_per_million_output_tokens", 0.5, "USD", qualifiers='{"cost_basis": "node"}'),
        row(point, "energy_j_per_output_token", 2.0, "J"),
        row(GRADED, "accuracy", 0.25, "share", qualifiers='{"task": "add"}'),
        row(GRADED, "accuracy", 0.625, "share", ci95_low=0.5625, ci95_high=0.6875),
    ]


def line_of(text: str, system: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{system} ")]
    return line.replace(" ± ", "±").split()


def test_every_value_stands_in_its_column() -> None:
    text = console_table(rows_of_fast(), CAP, PLAN)
    assert text.startswith("synthetic(input_tokens=64), concurrency=1\n")
    assert line_of(text, "fast") == [
        "fast", "123.4±3.0", "45.6", "8.12", "62.5±6.2", "21.7", "MB", "33.3", "–", "0.500", "2.00", "1.00", "PA",
        "yes",
    ]  # fmt: skip


def test_peaks_are_those_that_the_study_reports() -> None:
    text = console_table(rows_of_fast(), CAP, replace(PLAN, peaks="catalogue"))
    assert line_of(text, "fast")[7] == "22.2"
    assert "S-MBU and S-MFU are shares of catalogue peaks" in text


def test_unknown_is_a_dash_with_its_reason_never_zero() -> None:
    text = console_table(rows_of_fast(), CAP, PLAN)
    assert line_of(text, "slow") == ["slow", *["–"] * 12]
    assert "– S-MFU: no int8 peak is known (fast)" in text
    assert "– CAP: no accuracy axis (slow)" in text
    assert "it was not measured (slow)" in text


def test_a_mark_is_told_once_with_where_it_holds() -> None:
    default, overhead = "rests on a default", "overhead-bound"
    slow = entry("slow", (0, 0, 0), marks=[default])
    one = cap_of(entry("fast", (1, 1, 1), marks=[overhead, default]), slow, load="concurrency=1")
    eight = cap_of(entry("fast", (1, 1, 1), marks=[default]), slow, load="concurrency=8")
    text = console_table([], {"sets": one["sets"] + eight["sets"]}, PLAN)
    assert text.count("overhead-bound") == 1
    assert "overhead-bound (fast at concurrency=1)" in text
    assert "rests on a default (all systems)" in text


def test_what_a_cost_rests_on_is_told() -> None:
    assert "cost - cost basis: node" in console_table(rows_of_fast(), CAP, PLAN)


def test_the_ends_of_the_prices_are_told_as_shares_of_the_cost() -> None:
    """0.4 to 0.75 USD about 0.5."""
    ranged = replace(rows_of_fast()[9], price_low=0.4, price_high=0.75)
    text = console_table([ranged], CAP, PLAN)
    assert "cost at the low and high ends of its prices: 0.8 to 1.5 times what is shown (fast)" in text


def test_the_cost_that_the_study_asks_for_is_shown_wherever_its_row_stands() -> None:
    ways = [("footprint", "purchase", 7.0), ("node", "purchase", 8.0), ("node", "rental", 9.0)]
    rows = [
        row(FAST, "usd_per_million_output_tokens", usd, "USD",
            qualifiers=f'{{"cost_basis": "{basis}", "price_kind": "{kind}"}}')
        for basis, kind, usd in ways
    ]  # fmt: skip
    for basis, kind, usd in ways:
        asked = replace(PLAN, cost=CostSpec(basis=basis, kind=kind))  # type: ignore[arg-type]
        assert line_of(console_table(rows, CAP, asked), "fast")[8] == f"{usd:.2f}"


def test_points_without_an_entry_are_named() -> None:
    text = console_table([], cap_of(entry("fast", (1, 1, 1))), plan_of(FAST, SLOW, performance_point("fast", 8)))
    assert "not shown, without a whole run: slow concurrency=1, fast concurrency=8" in text


def test_with_an_slo_each_system_shows_its_own_load() -> None:
    cap = {"sets": [{"workload": WORKLOAD.label, "load": None, "entries": [entry("fast", (1, 1, 1))]}]}
    plan = replace(plan_of(FAST, performance_point("fast", 8)), slo=SloSpec(ttft_s=1))
    text = console_table([], cap, plan)
    assert text.startswith("synthetic(input_tokens=64)\n")
    assert "fast, concurrency=1" in text and "not shown" not in text


def test_models_and_devices_are_named_where_they_differ() -> None:
    cap = cap_of(entry("fast", (1, 1, 1)), entry("fast", (0, 0, 0), model="other", device="h100"))
    text = console_table([], cap, PLAN)
    assert "fast, reference, cpu" in text and "fast, other, h100" in text


def test_a_study_without_results_says_so() -> None:
    assert console_table([], {"sets": []}, plan_of(GRADED)).startswith("nothing to compare")


@pytest.mark.parametrize("length", [5, 40, 300])
def test_no_line_is_wider_than_120_and_no_name_is_cut(length: int) -> None:
    name = "s" * length
    point = performance_point(name, 1)
    plan: StudyPlan = plan_of(point, FAST, GRADED)
    cap = cap_of(entry(name, (1, 1, 1), marks=["m" * 30 + " " + "n" * 200]), entry("fast", (0, 0, 0)))
    text = console_table([*rows_of_fast(point), *rows_of_fast()], cap, plan)
    assert max(map(len, text.splitlines())) <= 120
    assert name in text.replace("\n", "")

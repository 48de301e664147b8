"""The report's files: all there, full precision kept, whatever a name holds."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from study_in_hand import accuracy_point, cap_of, entry, forward_pass, performance_point, plan_of, routed, row, run_of

from moecap.errors import StoreError
from moecap.records import Phase, Window
from moecap.report import write_report

POINT, GRADED = performance_point("in|valid\nname", 1), accuracy_point("in|valid\nname", ("add",))
PLAN = plan_of(POINT, GRADED, name="hand")
METRICS = [
    row(POINT, "output_tokens_per_s", 1 / 3, "tokens/s", ci95_low=0.1, ci95_high=0.7),
    row(POINT, "s_mfu", None, "share", missing_reason='no "peak", known'),
    row(POINT, "output_tokens_per_s", 0.3, "tokens/s", level="run", id="run-1"),
    row(performance_point("gone", 1), "tpot_s", 0.005, "s", stat="p50"),
    row(POINT, "usd_per_million_output_tokens", 0.5, "USD", price_low=0.4, price_high=0.75),
]
CAP = cap_of(entry("in|valid\nname", (1, None, 1)))
FILES = {"cap_radar.png", "expert_activation.png", "summary.md", "metrics.md", "metrics.csv", "metrics.json"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    window = Window(start_ns=0, end_ns=100, phase=Phase.ACCURACY, label="add")
    run = run_of(GRADED, [window], [forward_pass(0, 50)], [routed(0, 0, [1, 3])], flags={"dummy_weights": "random"})
    written = write_report(METRICS, CAP, (one for one in [run]), PLAN, folder)
    assert {path.name for path in written} == FILES == {path.name for path in folder.iterdir()}
    return folder


def test_csv_keeps_every_row_in_full_precision(out: Path) -> None:
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(METRICS)
    assert float(rows[0]["value"]) == 1 / 3
    assert rows[1]["value"] == "" and rows[1]["missing_reason"] == 'no "peak", known'
    assert [one["id"] for one in rows] == [one.id for one in METRICS]


def test_json_keeps_every_row_in_full_precision(out: Path) -> None:
    rows = json.loads((out / "metrics.json").read_text("utf-8"))
    assert rows[0]["value"] == 1 / 3 and rows[1]["value"] is None
    assert (rows[2]["level"], rows[2]["id"]) == ("run", "run-1")


def test_markdown_has_the_points_rounded_with_reasons(out: Path) -> None:
    text = (out / "metrics.md").read_text("utf-8")
    assert "0.333 tok/s | 0.100 tok/s to 0.700 tok/s" in text
    assert '– (no "peak", known)' in text
    assert r"| $0.500/1M |  | $0.400/1M to $0.750/1M | 3 |" in text, "a price range is no interval over runs"
    assert "5.00 ms" in text and "(dropped)" in text
    assert "run-1" not in text


@pytest.mark.parametrize("name", ["metrics.md", "summary.md"])
def test_names_do_not_break_tables(out: Path, name: str) -> None:
    lines = (out / name).read_text("utf-8").splitlines()
    assert any(r"in\|valid name" in line for line in lines)
    blocks: list[set[int]] = [set()]
    for line in lines:
        if line.startswith("|"):
            blocks[-1].add(line.replace(r"\|", "").count("|"))
        elif blocks[-1]:
            blocks.append(set())
    assert all(len(columns) <= 1 for columns in blocks), "every table keeps its number of columns"


def test_summary_shows_figures_machine_peaks_and_flags(out: Path) -> None:
    text = (out / "summary.md").read_text("utf-8")
    assert "![Cost, accuracy and performance](cap_radar.png)" in text
    assert "![Expert activation by layer](expert_activation.png)" in text
    assert r"| Some CPU \| 2.0 GHz | 2 | 8.00 GB | none | torch 2.13.0 |" in text
    assert "| calibrated | 15.0 GB/s | bfloat16 0.200 TFLOP/s | memory 3.10 % | triad |" in text
    assert r"dummy weights: random (in\|valid name)" in text
    assert "**S-MBU**" in text


@pytest.mark.parametrize("name", ["cap_radar.png", "expert_activation.png"])
def test_figures_are_png(out: Path, name: str) -> None:
    assert (out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_folder_that_can_not_be_made_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="choose a folder"):
        write_report([], {"sets": []}, [], PLAN, tmp_path / "file" / "report")


def test_an_empty_study_is_reported_too(tmp_path: Path) -> None:
    write_report([], {"sets": []}, [], PLAN, tmp_path)
    assert "Nothing to compare" in (tmp_path / "summary.md").read_text("utf-8")


def test_importing_the_report_draws_nothing() -> None:
    statement = "import sys, moecap.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"

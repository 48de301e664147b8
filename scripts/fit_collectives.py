"""Fit times of NCCL collectives on half of the measured sizes, and tell the error on the other half.

    python scripts/fit_collectives.py [--parquet FOLDER]

Reads docs/results/collectives/nccl.csv; writes moecap/predict/collectives.json, which the package uses, and prints the
tables of docs/results/collectives.md. `--parquet` first makes the CSV from AIConfigurator's files
(`<system>_comm_nccl_<version>_nccl_perf.parquet`).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from moecap.predict.fit import Measured, Piece, error_of, fit, held_out, size_class, used

ROOT = Path(__file__).resolve().parent.parent
CSV = ROOT / "docs/results/collectives/nccl.csv"
FITTED = ROOT / "moecap/predict/collectives.json"
SOURCE = (
    "AIConfigurator (github.com/ai-dynamo/aiconfigurator), measured with nccl-tests on one host; Apache License 2.0; "
    "fitted by scripts/fit_collectives.py"
)
DEVICES = {"NVIDIA H100 80GB HBM3": "nvidia-h100-sxm5-80gb", "NVIDIA A100-SXM4-80GB": "nvidia-a100-sxm4-80gb"}
WIDTHS = {"half": 2, "int8": 1}
REDUCING = ("all_reduce", "reduce_scatter")
"""Sums of int8 are slower than those of half, and no MoE layer makes them: left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="folder of AIConfigurator's files, to make the CSV from")
    folder = parser.parse_args().parquet
    if folder is not None:
        write_csv(folder)
    fits = fitted(read_csv())
    FITTED.write_text(json.dumps({"source": SOURCE, "fits": fits}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(error_table(fits)), "\n", sep="")
    print("\n".join(fit_table(fits)))


def write_csv(folder: Path) -> None:
    rows = [row for path in sorted(folder.glob("*_nccl_perf.parquet")) for row in pq.read_table(path).to_pylist()]
    CSV.parent.mkdir(parents=True, exist_ok=True)
    with CSV.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["device", "nccl_version", "operation", "dtype", "num_gpus", "size_bytes", "latency_us"])
        for row in rows:
            size = row["message_size"] * WIDTHS[row["nccl_dtype"]]  # the files count elements
            name = row["op_name"].replace("alltoall", "all_to_all")
            writer.writerow(
                [DEVICES[row["device"]], row["version"], name, row["nccl_dtype"], row["num_gpus"], size,
                 round(row["latency"] * 1e3, 4)]
            )  # fmt: skip


def read_csv() -> dict[tuple[str, str, str, int], list[Measured]]:
    """(device, NCCL version, operation, GPUs) -> its points."""
    found: dict[tuple[str, str, str, int], list[Measured]] = {}
    with CSV.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["operation"] not in REDUCING or row["dtype"] == "half":
                key = (row["device"], row["nccl_version"], row["operation"], int(row["num_gpus"]))
                point = Measured(size_bytes=int(row["size_bytes"]), time_s=float(row["latency_us"]) * 1e-6)
                found.setdefault(key, []).append(point)
    return found


def fitted(points: dict[tuple[str, str, str, int], list[Measured]]) -> list[dict[str, Any]]:
    found = []
    for (device, version, operation, num_gpus), measured in points.items():
        pieces = fit(used(measured))
        found.append(
            {
                "device": device, "nccl_version": version, "operation": operation, "num_gpus": num_gpus,
                "pieces": [asdict(piece) for piece in pieces], "errors": errors_of(pieces, held_out(measured)),
            }
        )  # fmt: skip
    return found


def errors_of(pieces: Sequence[Piece], points: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Size class -> relative errors of the points that the fit didn't see."""
    by_class: dict[str, list[float]] = {}
    for point in points:
        by_class.setdefault(size_class(point.size_bytes), []).append(error_of(pieces, point))
    return {
        name: {"points": len(found), "mean_abs": sum(map(abs, found)) / len(found), "low": min(found),
               "high": max(found)}
        for name, found in by_class.items()
    }  # fmt: skip


def error_table(fits: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| device | operation | GPUs | size | points | mean abs error % | from % | to % |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for one in fits:
        for name, error in one["errors"].items():
            cells = [one["device"], one["operation"], one["num_gpus"], name, error["points"]]
            shares = [f"{100 * error[key]:.1f}" for key in ("mean_abs", "low", "high")]
            yield "| " + " | ".join(map(str, [*cells, *shares])) + " |"


def fit_table(fits: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| device | operation | GPUs | from bytes | latency µs | GB/s |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in fits:
        for piece in one["pieces"]:
            rate = "–" if piece["s_per_byte"] == 0 else f"{1e-9 / piece['s_per_byte']:.1f}"
            cells = [one["device"], one["operation"], one["num_gpus"], piece["from_bytes"]]
            yield "| " + " | ".join(map(str, [*cells, f"{1e6 * piece['latency_s']:.2f}", rate])) + " |"


if __name__ == "__main__":
    main()

"""What people see on the terminal: tables and the line per run. It computes no metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.messages import RunState
from moecap.records import NodeInfo, Placement

if TYPE_CHECKING:  # both load Ray, which a table needs not
    from cluster.agenda import Agenda
    from cluster.driver import Progress


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of equal width, separated by two spaces."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def progress_line(progress: Progress) -> str | None:
    """One line for what is worth a line: an engine that starts, a run that ended, an attempt that is repeated."""
    counted = f"[{progress.ended}/{progress.planned}] {progress.label}"
    match progress.state:
        case RunState.RUNNING:
            return None
        case RunState.STARTING:
            return f"starting the engine of {progress.label.partition(' ')[0]} on {progress.hostname}"
        case RunState.STORED:
            headline = progress.summary.headline if progress.summary else {}
            return "  ".join([counted, *_headline(headline)])
        case RunState.PLANNED:
            return f"{progress.label} will be tried again: {_first_line(progress.why)}"
        case _:
            return f"{counted}  {progress.state}: {_first_line(progress.why)}"


def placement_table(agenda: Agenda) -> str:
    """Every point of the study with its node, or the reason why it has none."""
    rows = []
    for point_id, point in agenda.points.items():
        placement = agenda.placements[point_id]
        if isinstance(placement, Placement):
            devices = f"{len(placement.device_uuids)} devices" if placement.device_uuids else "CPU"
            where = f"{placement.hostname} ({devices}, {placement.num_cpus} CPUs)"
        else:
            where = f"refused: {placement.reason}; {placement.remedy}"
        rows.append((point_id, point.model.name, point.label, where))
    return table(("point", "model", "what", "where"), rows)


def node_table(nodes: Sequence[NodeInfo]) -> str:
    """Every node with what it can host."""
    rows = [
        (
            node.hostname, ", ".join(sorted(node.kinds)), node.device_key, len(node.devices), node.num_cpus,
            f"{node.memory_bytes / 2**30:.1f} GiB", node.cpu_model,
        )
        for node in nodes
    ]  # fmt: skip
    return table(("host", "kinds", "device", "devices", "CPUs", "memory", "CPU"), rows)


_SHOWN: dict[str, Callable[[float], str]] = {
    "output_tokens_per_s": lambda value: f"{value:.1f} tok/s",
    "ttft_s": lambda value: f"ttft {value * 1e3:.0f} ms",
    "tpot_s": lambda value: f"tpot {value * 1e3:.0f} ms",
    "accuracy": lambda value: f"accuracy {value:.1%}",
}


def _headline(headline: Mapping[str, float | None]) -> list[str]:
    """The values that a headline has, scaled for reading."""
    return [show(value) for name, show in _SHOWN.items() if (value := headline.get(name)) is not None]


def _first_line(text: str) -> str:
    return text.partition("\n")[0]

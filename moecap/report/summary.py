"""summary.md: the comparison, the figures, what the numbers rest on, and the machines they were measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moecap.records import Manifest, Peaks, StudyPlan
from moecap.report.comparison import HEADERS, Comparison
from moecap.report.evidence import Evidence
from moecap.report.format import byte_count, markdown_cell, number
from moecap.report.tables import markdown_table

READING = """\
- **S-MBU**: bytes that the passes had to read (weights of the experts that fired, attention, dense parts, and the KV
  cache) divided by the passes' time and by the peak memory bandwidth. Low with high load: look for overheads.
- **S-MFU**: floating-point operations that the tokens needed, divided by the passes' time and by the dense peak.
- **CAP area**: cost, accuracy and performance, each scaled to 0..1 within a compared set (1 is best), as
  (ab + bc + ca) / 3. A score of a few systems against each other, not a property of one.
- **Class**: PA, PC or CA names the two axes a system is good at; `balanced`: no axis is clearly the weakest.
- **Pareto**: no other system of the set is at least as good on every axis and better on one."""
FIGURES = (
    ("Cost, accuracy and performance", "cap_radar.png"),
    ("Expert activation by layer", "expert_activation.png"),
)


def summary(comparison: Comparison, silicon: Sequence[str], evidence: Evidence, plan: StudyPlan) -> str:
    """The whole page; `silicon`: its sections on the devices' counters."""
    parts = [f"# {markdown_cell(plan.name)}", *_sections(comparison)]
    parts += [f"![{title}]({file})" for title, file in FIGURES]
    parts += silicon
    parts += ["## Notes", _listed(_notes(comparison, evidence))]
    parts += ["## Machines", _machines(evidence.machines.values()), _peaks(evidence)]
    parts += ["## How to read it", READING]
    parts += ["Every number: [metrics.md](metrics.md); in full precision: [metrics.csv](metrics.csv), "
              "[metrics.json](metrics.json)."]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _sections(comparison: Comparison) -> Iterable[str]:
    headers = [f"{title} {unit}".strip() for title, unit in HEADERS]
    for section in comparison.sections:
        yield f"## {markdown_cell(section.title)}"
        yield markdown_table(headers, section.rows)
    if not comparison.sections:
        yield "Nothing to compare: no performance run is whole."


def _notes(comparison: Comparison, evidence: Evidence) -> list[str]:
    seen = [f"{remark} ({', '.join(systems)})" for remark, systems in evidence.remarks.items()]
    return [*comparison.notes, *seen] or ["none"]


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_cell(line)}" for line in lines)


def _machines(manifests: Iterable[Manifest]) -> str:
    rows = []
    for one in manifests:
        devices = ", ".join(device.name for device in one.node.devices) or "none"
        packages = ", ".join(f"{name} {version}" for name, version in one.packages.items())
        rows.append((one.node.cpu_model, str(one.node.num_cpus), byte_count(one.node.memory_bytes), devices, packages))
    return markdown_table(("CPU", "CPUs", "memory", "devices", "packages"), rows)


def _peaks(evidence: Evidence) -> str:
    """Every peak source, with its rates and how far its repeats lay apart."""
    rows = [
        (f"{hardware}, {cpus} CPUs used", peaks.source, _rate(peaks), _flops(peaks), _spread(peaks), peaks.method)
        for (hardware, cpus), known in evidence.peaks.items()
        for peaks in known
    ]
    return markdown_table(("hardware", "peaks", "memory bandwidth", "compute", "spread", "how"), rows)


def _rate(peaks: Peaks) -> str:
    return "unknown" if peaks.memory_bytes_per_s is None else f"{byte_count(peaks.memory_bytes_per_s)}/s"


def _flops(peaks: Peaks) -> str:
    rates = [f"{dtype} {number(rate / 1e12)} TFLOP/s" for dtype, rate in peaks.flops_per_s.items()]
    return ", ".join(rates) or "unknown"


def _spread(peaks: Peaks) -> str:
    return ", ".join(f"{name} {number(100 * share)} %" for name, share in peaks.spread.items()) or "not measured"

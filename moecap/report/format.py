"""Numbers as people read them: three significant digits, ms, MB, %. The only place where anything is rounded.

It knows no metric's meaning beyond its name and unit. Unknown is shown as `–`, never as 0.
"""

from __future__ import annotations

import math

from moecap.records import Metric

UNKNOWN = "–"
SHARE = "share"
"""Unit of what is stored as a share and read as a percentage."""
SHORT_UNITS = {"ratio": "", "tokens/s": "tok/s"}
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, without an exponent between 0.0001 and 10 million: 1234, 12.3, 0.0123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{_decimals(value, digits)}f}"


def with_half_width(value: float, half: float) -> str:
    """`86.1 ± 2.6`: two digits of the half-width, as many decimals of the value (at most what gives it five digits)."""
    decimals = max(_decimals(value, 3), min(_decimals(half, 2), _decimals(value, 5)))
    return f"{value:.{decimals}f} ± {half:.{max(decimals, _decimals(half, 1))}f}"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits."""
    return 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value))))


def byte_count(value: float) -> str:
    """Decimal units: 21.7 MB."""
    power = 0 if value == 0 else min(len(BYTE_UNITS) - 1, int(math.log10(abs(value)) // 3))
    return f"{number(value / 1000 ** max(0, power))} {BYTE_UNITS[max(0, power)]}"


def quantity(metric: str, value: float, unit: str) -> str:
    """A value with the unit that people use for it: seconds as ms, bytes as MB, shares as %, dollars with `$`."""
    if unit == SHARE:
        return f"{number(value * 100)} %"
    if "usd_per_million" in metric:
        return f"${number(value)}/1M"
    if unit == "s":
        return f"{number(value * 1e3)} ms" if value < 10 else f"{number(value)} s"
    if unit in ("B", "bytes"):
        return byte_count(value)
    return f"{number(value)} {SHORT_UNITS.get(unit, unit)}".rstrip()


def shown(row: Metric) -> str:
    """A metric's value with its unit, or `–`."""
    return UNKNOWN if row.value is None else quantity(row.metric, row.value, row.unit)


def half_width(row: Metric) -> float | None:
    """Half of the 95 % interval, in the metric's unit; None when it is unknown."""
    if row.ci95_low is None or row.ci95_high is None:
        return None
    return (row.ci95_high - row.ci95_low) / 2


def markdown_cell(text: str) -> str:
    """Text that can stand in a Markdown table or paragraph whatever it holds: no markup, no HTML, one line."""
    for sign in "\\`*_[]<>|#~&":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())

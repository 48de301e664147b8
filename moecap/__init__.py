"""moecap knows what is measured: models, hardware, engines, probes, telemetry, records, metrics, reports.

It never imports Ray (the package `cluster` does), and importing it loads neither torch nor transformers nor matplotlib.
"""

from __future__ import annotations

__version__ = "0.1.0"

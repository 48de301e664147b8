"""What hardware and energy cost: prices.yaml and a study's overrides, typed (`table`), with their ranges (`uncertain`),
and what a placement takes of its node (`node`). It knows no run: `metrics.cost` charges one.
"""

from moecap.prices.table import Device, Prices, load_prices, merged_prices

__all__ = ["Device", "Prices", "load_prices", "merged_prices"]

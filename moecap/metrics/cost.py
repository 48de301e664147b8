"""Metrics of the cost axis: energy and money per token.

`cost_basis: node`: the placed devices, and of the host the share that they (or the placed CPUs) are of all. Purchase
spreads the price over lifetime and duty cycle and adds energy; rental is all there is to pay, energy is shown beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moecap.metrics.declare import Observed, metric, ratio
from moecap.metrics.performance import completed, output_tokens, total_tokens
from moecap.metrics.view import RunView
from moecap.prices import Device, Host

HOURS_PER_YEAR = 365.25 * 24
JOULES_PER_KWH = 3.6e6
NO_TOKENS = "no output token in the window"
MIN_SAMPLES = 3
"""Readings inside a window without which its energy is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """Energy of the window and where the number comes from."""

    joules: float | None
    qualifiers: Mapping[str, str]
    """energy_source, energy_scope."""
    n: int
    missing: str | None = None


def energy_of(run: RunView) -> Energy:
    """By the packages' (and DRAM's) energy counters where they were read, else estimated from the host's TDP.

    The counters are those of the whole host. An estimate charges the placed share of the host's TDP, all the time.
    """
    counted = _counted_energy(run)
    if counted is not None:
        return counted
    host, share = _host(run)
    devices = _devices(run)
    powers = [None if device is None else device.tdp_w for device in devices]
    if host.tdp_w is None or None in powers:
        key = {"energy_source": "missing"}
        return Energy(joules=None, qualifiers=key, n=0, missing="no counter was readable, and no TDP is known")
    watts = host.tdp_w * share + sum(power for power in powers if power is not None)
    scope = "share of the host" + (" and its placed devices" if devices else "")
    return Energy(joules=watts * run.window_s, qualifiers={"energy_source": "tdp_estimate", "energy_scope": scope}, n=0)


def _counted_energy(run: RunView) -> Energy | None:
    """Counter deltas over the window, interpolated between samples; None when the packages' counter wasn't read, or
    when there are accelerators, which it doesn't cover."""
    if run.manifest.placement.device_uuids:
        return None
    package = _delta(run, "package_energy_j")
    if package is None:
        return None
    dram = _delta(run, "dram_energy_j")
    scope = "CPU packages and DRAM" if dram is not None else "CPU packages (DRAM is not measured)"
    joules = package[0] + (dram[0] if dram is not None else 0.0)
    return Energy(joules=joules, qualifiers={"energy_source": "rapl", "energy_scope": scope}, n=package[1])


def _delta(run: RunView, counter: str) -> tuple[float, int] | None:
    """Increase of a counter over the window, and the readings inside it; None without enough of them."""
    table = run.run.hosts.select(["time_ns", counter]).drop_null()
    times, values = table["time_ns"].to_numpy(), table[counter].to_numpy()
    inside = int(run.inside(times).sum())
    if inside < MIN_SAMPLES:
        return None
    start, end = np.interp(np.array(run.window_ns), times, values)
    return float(end - start), inside


def _host(run: RunView) -> tuple[Host, float]:
    """The host's entry in the prices, and the share of it that the placement takes: of the node, by devices or CPUs;
    the node itself is the share of the priced host that its CPUs are."""
    node, placement = run.manifest.node, run.manifest.placement
    host = run.prices.host(node.hostname, node.cpu_model)
    whole_node = node.num_cpus / (host.num_cpus or node.num_cpus)
    if placement.device_uuids:
        return host, whole_node * len(placement.device_uuids) / len(node.devices)
    return host, whole_node * placement.num_cpus / node.num_cpus


def _devices(run: RunView) -> list[Device | None]:
    """Entries of the placed accelerators; None for one that has no price anywhere."""
    placed = [device for device in run.manifest.node.devices if device.uuid in run.manifest.placement.device_uuids]
    return [run.prices.device(device.key or device.name) for device in placed]


def _hardware_usd_per_s(run: RunView) -> tuple[float | None, str, str]:
    """USD per second of the placed hardware, what it rests on, and why it is unknown."""
    host, share = _host(run)
    devices = _devices(run)
    parts = [(host, share)] + [(device, 1.0) for device in devices]
    if None in devices:
        return None, "", "a placed device has no price in the catalogue; add it to prices.devices"
    labels = ", ".join(dict.fromkeys(part.label for part, _ in parts if part is not None))
    if run.cost.kind == "rental":
        hourly = [(part.rental_usd_per_hour, weight) for part, weight in parts if part is not None]
        if any(rate is None for rate, _ in hourly):
            return None, labels, f"no rental price is known ({labels})"
        return sum((rate or 0.0) * weight for rate, weight in hourly) / 3600, labels, ""
    prices = [(part.price_usd, weight) for part, weight in parts if part is not None]
    if any(price is None for price, _ in prices):
        return None, labels, f"no price is known ({labels})"
    ownership = run.prices.ownership
    used_s = ownership.lifetime_years * HOURS_PER_YEAR * 3600 * ownership.duty_cycle
    total = sum((price or 0.0) * weight for price, weight in prices)
    return total / used_s, f"{labels}; {ownership.label}", ""


def _energy_usd(run: RunView) -> tuple[float | None, Energy]:
    """What the window's energy costs, site losses included."""
    energy, price = energy_of(run), run.prices.energy
    if energy.joules is None:
        return None, energy
    return energy.joules * price.pue / JOULES_PER_KWH * price.usd_per_kwh, energy


@metric("energy_j_per_output_token", unit="J", direction="lower", needs=("requests",))
def energy_j_per_output_token(run: RunView) -> Iterator[Observed]:
    """Energy of the window / output tokens of the window."""
    yield _energy_over(run, output_tokens(run), NO_TOKENS)


@metric("energy_j_per_request", unit="J", direction="lower", needs=("requests",))
def energy_j_per_request(run: RunView) -> Iterator[Observed]:
    """Energy of the window / requests that completed in it."""
    yield _energy_over(run, float(completed(run)), "no request completed in the window")


def _energy_over(run: RunView, count: float, why_zero: str) -> Observed:
    energy = energy_of(run)
    if energy.joules is None:
        return Observed(missing=energy.missing, qualifiers=energy.qualifiers)
    return ratio(energy.joules, count, n=energy.n, why_zero=why_zero, qualifiers=energy.qualifiers)


def _per_million(
    tokens_of: Callable[[RunView], float], *, hardware: bool, energy: bool
) -> Callable[[RunView], Iterator[Observed]]:
    """USD per million tokens of hardware, of energy, or of both; with rental, both are the hardware alone."""

    def observe(run: RunView) -> Iterator[Observed]:
        qualifiers: dict[str, str] = {"cost_basis": run.cost.basis, "price_kind": run.cost.kind}
        usd, missing, n = 0.0, "", 0
        if hardware:
            rate, rests_on, missing = _hardware_usd_per_s(run)
            usd += (rate or 0.0) * run.window_s
            qualifiers["prices"] = rests_on
        if energy and not (hardware and run.cost.kind == "rental"):
            spent, found = _energy_usd(run)
            usd, n = usd + (spent or 0.0), found.n
            missing = missing or found.missing or ""
            qualifiers |= {**found.qualifiers, "energy_price": run.prices.energy.label}
        if missing:
            yield Observed(missing=missing, qualifiers=qualifiers)
        else:
            millions = tokens_of(run) / 1e6
            yield ratio(usd, millions, n=n or len(run.requests), why_zero=NO_TOKENS, qualifiers=qualifiers)

    return observe


for _tokens, _of in (("output", output_tokens), ("total", total_tokens)):
    for _prefix, _hardware, _energy in (("", True, True), ("hardware_", True, False), ("energy_", False, True)):
        metric(f"{_prefix}usd_per_million_{_tokens}_tokens", unit="USD", direction="lower", needs=("requests",))(
            _per_million(_of, hardware=_hardware, energy=_energy)
        )

"""Metrics of the cost axis: money per token, by every cost basis and price kind, the study's own first.

`cost_basis: node`: the placed devices and their, or the placed CPUs', share of the host. `footprint`: the cheapest
catalogue device that would have been enough, modelled. Purchase spreads the price over lifetime and duty cycle and
adds energy; rental is all there is to pay, energy is shown beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from moecap.hardware.catalogue import DeviceSpec, catalogue
from moecap.metrics.cheapest_device import Chosen, cheapest_device
from moecap.metrics.columns import NO_PASSES
from moecap.metrics.components import Energy, filled_energy
from moecap.metrics.declare import Observed, metric
from moecap.metrics.energy import NO_TOKENS
from moecap.metrics.performance import NOTHING_MEETS_THE_SLO, output_tokens, total_tokens
from moecap.metrics.view import RunView
from moecap.prices.node import price_by_component, purchase_usd, rental_usd_per_hour
from moecap.prices.uncertain import Uncertain, exactly
from moecap.records import CostSpec

HOURS_PER_YEAR = 365.25 * 24
JOULES_PER_KWH = 3.6e6
WAYS = tuple(CostSpec(basis=basis, kind=kind) for basis in ("node", "footprint") for kind in ("purchase", "rental"))
NOT_ENOUGH = "no priced catalogue device is rated for the memory, bandwidth and FLOP/s of this run"
NO_LINK = "; more than one would need a known link rate"
PAPER = "MoE-CAP (arXiv 2412.07067): the whole purchase price over the tokens of this window"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What is charged: its price (purchase: USD, rental: USD per hour) and energy, or why they are unknown."""

    price: Uncertain | None
    energy: Energy
    missing: str = ""
    told: Mapping[str, str] = field(default_factory=dict)
    """What it rests on."""


def hardware_of(run: RunView, way: CostSpec) -> Hardware:
    """The hardware that a run is charged for."""
    if way.basis == "footprint":
        return _footprint(run, way.kind)
    price, missing = (purchase_usd if way.kind == "purchase" else rental_usd_per_hour)(run.placed)
    return Hardware(price=price, energy=filled_energy(run), missing=missing, told={"prices": run.placed.labels})


def _footprint(run: RunView, kind: str) -> Hardware:
    """The cheapest device that would have been enough, at its TDP all the time."""

    def price_of(spec: DeviceSpec) -> Uncertain | None:
        priced = run.prices.device(spec.key)
        if priced is None:
            return None
        return priced.price_usd if kind == "purchase" else priced.rental_usd_per_hour

    nothing = Energy(joules=None, qualifiers={"energy_source": "missing"}, n=0, missing=NO_PASSES)
    if run.needs is None:
        return Hardware(price=None, energy=nothing, missing=NO_PASSES)
    count, link = len(run.manifest.placement.device_uuids) or 1, _rated_link(run)
    chosen = cheapest_device(run.needs, catalogue().values(), price_of, num_devices=count, link_bytes_per_s=link)
    if chosen is None:
        missing = NOT_ENOUGH + (NO_LINK if count > 1 and link is None else "")
        return Hardware(price=None, energy=nothing, missing=missing)
    priced = run.prices.device(chosen.spec.key)
    assert priced is not None, "it was chosen for its price"
    labels = ", ".join(filter(None, (priced.label, run.prices.ranges_told(chosen.spec.key))))
    has_host = kind == "rental" and priced.rental_includes_host
    modelled = f"by ratings, {'the rented host with it' if has_host else 'without a host'}"
    told = {"prices": labels, "device": chosen.label, "modelled": modelled}
    return Hardware(price=chosen.price, energy=_at_tdp(chosen, priced.tdp_w, run.window_s), told=told)


def _at_tdp(chosen: Chosen, tdp_w: float | None, seconds: float) -> Energy:
    if tdp_w is None:
        why = f"the TDP of {chosen.spec.key} is unknown"
        return Energy(joules=None, qualifiers={"energy_source": "missing"}, n=0, missing=why)
    key = {"energy_source": "tdp_estimate", "energy_scope": "the device"}
    return Energy(joules=chosen.count * tdp_w * seconds, qualifiers=key, n=0)


def _rated_link(run: RunView) -> float | None:
    """Fastest that the placed devices can have exchanged data at: no record tells how fast they did."""
    node, uuids = run.manifest.node, run.manifest.placement.device_uuids
    rows = [catalogue().get(one.key or "") for one in node.devices if one.uuid in uuids]
    rated = [None if row is None else row.link_bytes_per_s for row in rows]
    known = [rate for rate in rated if rate is not None]
    return max(known) if known and len(known) == len(rated) else None


def _ways(asked: CostSpec) -> Iterator[CostSpec]:
    """Every cost basis and price kind, the asked one first."""
    yield asked
    yield from (way for way in WAYS if way != asked)


def _hardware_usd(run: RunView, price: Uncertain, kind: str) -> Uncertain:
    """Its share of the window: a rent's, or a purchase's over lifetime and duty cycle."""
    if kind == "rental":
        return price * (run.window_s / 3600)
    ownership = run.prices.ownership
    return price * (run.window_s / (ownership.lifetime_years * HOURS_PER_YEAR * 3600 * ownership.duty_cycle))


def _energy_usd(run: RunView, joules: float) -> Uncertain:
    """What energy costs, site losses included."""
    return run.prices.energy.usd_per_kwh * run.prices.energy.pue * (joules / JOULES_PER_KWH)


def _per_million(
    tokens_of: Callable[[RunView], float], *, hardware: bool, energy: bool
) -> Callable[[RunView], Iterator[Observed]]:
    """USD per million tokens of hardware, of energy, or of both; with rental, both are the hardware alone."""

    def observe(run: RunView) -> Iterator[Observed]:
        tokens = tokens_of(run)
        for way in _ways(run.cost):
            yield _charged(run, way, tokens / 1e6, hardware, energy and not (hardware and way.kind == "rental"))

    return observe


def _charged(run: RunView, way: CostSpec, millions: float, hardware: bool, energy: bool) -> Observed:
    """USD of the chosen parts over a number of tokens."""
    found, usd, missing, n = hardware_of(run, way), exactly(0.0), "", 0
    qualifiers: dict[str, str] = {"cost_basis": way.basis, "price_kind": way.kind}
    told = {name: text for name, text in found.told.items() if hardware or name != "prices"}
    if hardware:
        missing = found.missing
        usd += exactly(0.0) if found.price is None else _hardware_usd(run, found.price, way.kind)
        if way.kind == "purchase" and told:
            told["prices"] += f"; {run.prices.ownership.label}"
    if energy:
        missing = missing or found.energy.missing or ""
        usd += _energy_usd(run, found.energy.joules or 0.0)
        n = found.energy.n
        qualifiers |= found.energy.qualifiers
        told["energy_price"] = run.prices.energy.label
    return _usd_over(usd, millions, missing, n=n or len(run.requests), qualifiers=qualifiers, told=told)


def _usd_over(
    usd: Uncertain, count: float, missing: str, *, n: int, qualifiers: Mapping[str, str], told: Mapping[str, str]
) -> Observed:
    """A price over a count, with its bounds; or the first reason why it is unknown."""
    if missing or count <= 0:
        return Observed(missing=missing or NO_TOKENS, qualifiers=qualifiers, told=told)
    return Observed(
        numerator=usd.value, denominator=count, price_bounds=usd.bounds, n=n, qualifiers=qualifiers, told=told
    )


for _tokens, _of in (("output", output_tokens), ("total", total_tokens)):
    for _prefix, _hardware, _energy in (("", True, True), ("hardware_", True, False), ("energy_", False, True)):
        metric(
            f"{_prefix}usd_per_million_{_tokens}_tokens",
            unit="USD",
            direction="lower",
            needs=("requests", "chunk_tokens"),
        )(_per_million(_of, hardware=_hardware, energy=_energy))


@metric("usd_per_million_output_tokens_under_slo", unit="USD", direction="lower", needs=("requests", "chunk_tokens"))
def usd_per_million_output_tokens_under_slo(run: RunView) -> Iterator[Observed]:
    """What a million output tokens cost at the largest load that meets the SLO, as `auto` found it."""
    search = run.manifest.search
    if search is None or search.found is None:
        yield Observed(missing="the study searches for no load" if search is None else NOTHING_MEETS_THE_SLO)
        return
    yield from _per_million(output_tokens, hardware=True, energy=True)(run)


@metric("hardware_price_usd", unit="USD", direction="lower", needs=())
def hardware_price_usd(run: RunView) -> Iterator[Observed]:
    """Purchase price of the hardware charged, and of its components."""
    for basis in dict.fromkeys(way.basis for way in _ways(run.cost)):
        found = hardware_of(run, CostSpec(basis=basis, kind="purchase"))
        usd = found.price or exactly(0.0)
        yield _usd_over(usd, 1.0, found.missing, n=1, qualifiers={"cost_basis": basis}, told=found.told)
    for component, price in price_by_component(run.placed.parts).items():
        key = {"cost_basis": "node", "component": component}
        yield _usd_over(
            price or exactly(0.0), 1.0, "" if price else "its price is unknown", n=1, qualifiers=key, told={}
        )


@metric("moe_cap_usd_per_token", unit="USD", direction="lower", needs=("requests", "chunk_tokens"))
def moe_cap_usd_per_token(run: RunView) -> Iterator[Observed]:
    """MoE-CAP's C_token = (C_hardware + C_energy x price) / (T_token x R), for comparison with the paper alone.

    C_hardware is the whole purchase price of the placed hardware, C_energy in kWh without site losses. T_token is taken
    as output tokens per second and R, which the paper leaves open, as the window's seconds: T_token x R output tokens.
    """
    found = hardware_of(run, CostSpec(basis="node", kind="purchase"))
    kwh = (found.energy.joules or 0.0) / JOULES_PER_KWH
    usd = (found.price or exactly(0.0)) + run.prices.energy.usd_per_kwh * kwh
    told = {**found.told, "formula": PAPER, "R": "seconds of the window"}
    missing = found.missing or found.energy.missing or ""
    yield _usd_over(
        usd, output_tokens(run), missing, n=len(run.requests), qualifiers=found.energy.qualifiers, told=told
    )

"""Money and energy: what device-hours cost, when a local model pays off against an API, and what serving adds.

Of a pay-off only what differs is counted: energy and the machine here, tokens there. A machine that is there anyway
costs its energy alone.

Over a model's life, a smaller one trained on more text reaches the same loss, and every token that it serves costs
less. Source: Sardana et al., Beyond Chinchilla-Optimal, arXiv 2401.00448; the loss by size and text is Hoffmann's
(settle/plan/loss_law.py).
"""

import math
import random
from dataclasses import dataclass, replace

from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.library.prices import RENT_PER_FLOPS, ApiPrice, Prices, prices
from settle.machine.described_machine import Machine
from settle.plan.loss_law import SIZE_POWER, SIZE_TERM, TEXT_POWER, TEXT_TERM, left_over

# Energy of a device-hour over its design power, with host, network and cooling: OLMo 3 used 624 and 649 W for each H100
# of 700 W; a consumer card under load stays below its limit, its computer takes 50 to 150 W beside.
OF_DESIGN_POWER = Interval(0.93, 0.75, 1.2, FORECAST_LEVEL)
# The same while it serves, which waits for memory: ML.ENERGY's rows of H100 and B200 draw 0.66 of their design power in
# the median, 0.45 to 0.93 in four fifths of them; host, network and cooling take a tenth to two fifths beside.
SERVING_POWER = Interval(0.79, 0.51, 1.14, FORECAST_LEVEL)
# Rent of devices over the whole bill: storage, network and support take the rest (mercatus-ai 2026-05, 0.6 to 0.7).
SHARE_OF_BILL = 0.65
ASKED = "asked"  # the source of a price that the user gave
UNKNOWN_WATTS = 400.0  # of a device whose design power nobody says


@dataclass(frozen=True)
class Cost:
    """What device-hours cost."""

    energy: Interval  # kWh
    electricity: Interval  # dollars
    rent: Interval  # dollars, with nothing beside the devices
    bill: Interval  # rent with storage and network
    rent_source: str  # of the price, with its day
    electricity_source: str


def cost(
    hours: Interval,
    machine: Machine,
    *,
    per_kwh: float | None = None,
    per_hour: float | None = None,
    table: Prices | None = None,
) -> Cost:
    """Return what so many device-hours cost. per_kwh, per_hour: the user's own prices, which are taken as exact."""
    table = table or prices()
    watts = machine.watts or UNKNOWN_WATTS
    energy = product(hours, OF_DESIGN_POWER).scaled(watts / 1000)
    electricity = exact(per_kwh) if per_kwh is not None else table.electricity.interval
    if per_hour is not None:
        rent, source = exact(per_hour), ASKED
    elif machine.name in table.rent:
        row = table.rent[machine.name]
        rent, source = row.interval, row.whence
    else:
        rent, source = RENT_PER_FLOPS.scaled(machine.matrix_flops), "no offer at hand: by its arithmetic, as others are"
    rented = product(hours, rent)
    return Cost(
        energy=energy,
        electricity=product(energy, electricity),
        rent=rented,
        bill=rented.scaled(1 / SHARE_OF_BILL),
        rent_source=source,
        electricity_source=ASKED if per_kwh is not None else table.electricity.whence,
    )


def exact(value: float) -> Interval:
    return Interval(value, value, value, FORECAST_LEVEL)


def product(one: Interval, other: Interval) -> Interval:
    """Multiply two positive numbers that err independently: distances of the ends add up in squares, as logarithms."""
    value = one.value * other.value
    if value <= 0:
        return Interval(value, one.low * other.low, one.high * other.high, one.level)
    down = math.hypot(_log(one.value, one.low), _log(other.value, other.low))
    up = math.hypot(_log(one.high, one.value), _log(other.high, other.value))
    return Interval(value, value * math.exp(-down), value * math.exp(up), one.level)


def _log(large: float, small: float) -> float:
    return math.log(large / small) if small > 0 else math.inf


TRAIN, SERVE = 6.0, 2.0  # operations a weight and token
# Price of an operation while serving over one while training: devices that serve read memory and wait. Servers in use
# reach a fifth to a half of the share of the rate that training does.
WEIGHTS = (2.0, 5.0, 3.0)  # low, high, expected
STEPS, SMALLEST = 400, 0.02  # of the search, down to this share of the size


@dataclass(frozen=True)
class Life:
    """Training against serving over a model's life."""

    serving: tuple[float, float, float]  # share of all that serving costs: low, high and expected
    parameters: float  # of the cheapest model of the same loss
    tokens: float  # of the same
    saving: float  # of the whole


def life(parameters: float, tokens: float, served: float) -> Life:
    """Compare training and serving of a model of so many weights, trained on `tokens`, that serves `served` tokens."""
    loss = left_over(parameters, tokens)

    def total(size: float, text: float, weight: float = WEIGHTS[2]) -> float:
        return size * (TRAIN * text + weight * SERVE * served)

    low, high, expected = (
        weight * SERVE * served * parameters / total(parameters, tokens, weight) for weight in WEIGHTS
    )
    whole = total(parameters, tokens)
    best = (whole, parameters, tokens)
    for step in range(1, STEPS):
        size = parameters * SMALLEST ** (step / STEPS)
        text = tokens_for(size, loss)
        if text is None:
            break
        best = min(best, (total(size, text), size, text))
    return Life((low, high, expected), best[1], best[2], 1 - best[0] / whole)


def tokens_for(parameters: float, loss: float) -> float | None:
    """Text that a model of this size needs for the same reducible loss; None where no text is enough."""
    left = loss - SIZE_TERM / math.pow(parameters, SIZE_POWER)
    return math.pow(TEXT_TERM / left, 1 / TEXT_POWER) if left > 0 else None


DAY = 86400.0
DRAWS = 4000
YEARS = 3.0  # that a bought machine lasts


@dataclass(frozen=True)
class Workload:
    """What is asked in a day."""

    requests: float
    input_tokens: float
    output_tokens: float
    cached: float = 0.0  # share of a prompt that the vendor has seen before and charges less for


@dataclass(frozen=True)
class PayOff:
    """What a day costs here and at the API, and when a machine is paid off."""

    here: Interval  # dollars a day
    api: float  # dollars a day
    busy: float  # hours of the day that the machine works, at the expected speed
    days: Interval | None  # until the machine is paid; None where it never is in its life
    chance: float  # that it pays off within its life
    requests: float | None  # a day from which the machine is cheaper over its life
    energy: Interval  # joules of an output token


def pay_off(
    load: Workload,
    api: ApiPrice,
    prefill: Interval,
    decode: Interval,
    watts: float,
    per_kwh: Interval,
    *,
    purchase: float = 0.0,
    per_hour: float = 0.0,
) -> PayOff:
    """Compare a machine with an API. Uncertain inputs are drawn together, so the answer carries them all.

    prefill, decode: tokens per second of the machine, of all texts answered at once. purchase: of the machine, dollars.
    per_hour: of its rent, paid while it works.
    """
    at_api = api_dollars(load, api)
    one = replace(load, requests=1.0)
    rng = random.Random(0)
    days, costs, joules, least = [], [], [], []
    for _ in range(DRAWS):
        speeds = (_draw(rng, prefill), _draw(rng, decode))
        power = watts * _draw(rng, SERVING_POWER)
        price = _draw(rng, per_kwh)
        a_day = _here(load, speeds, power, price, per_hour)
        costs.append(a_day)
        joules.append(power / speeds[1])
        saved = at_api - a_day
        days.append(purchase / saved if saved > 0 else math.inf)
        # requests a day at which the machine, spread over its life, costs what the API does
        each = api_dollars(one, api) - _here(one, speeds, power, price, per_hour)
        enough = purchase / (YEARS * 365) / each if each > 0 else math.inf
        least.append(enough if enough <= DAY / _busy(one, speeds) else math.inf)
    life = YEARS * 365
    value = _here(load, (prefill.value, decode.value), watts * SERVING_POWER.value, per_kwh.value, per_hour)
    expected = purchase / (at_api - value) if at_api > value else math.inf
    low, high = drawn_ends(days)
    requests = sorted(least)[len(least) // 2]
    return PayOff(
        here=Interval(value, *drawn_ends(costs), FORECAST_LEVEL),
        api=at_api,
        busy=_busy(load, (prefill.value, decode.value)) / 3600,
        days=Interval(expected, low, high, FORECAST_LEVEL) if math.isfinite(expected) else None,
        chance=sum(day <= life for day in days) / len(days),
        requests=requests if math.isfinite(requests) else None,
        energy=Interval(watts * SERVING_POWER.value / decode.value, *drawn_ends(joules), FORECAST_LEVEL),
    )


def api_dollars(load: Workload, api: ApiPrice) -> float:
    """Return the API's price of a day."""
    cached = load.cached if api.cached is not None else 0.0
    prompt = load.input_tokens * ((1 - cached) * api.input + cached * (api.cached or 0.0))
    return load.requests * (prompt + load.output_tokens * api.output) / 1e6


def _busy(load: Workload, speeds: tuple[float, float]) -> float:
    """Seconds of work a day, as many requests at once as the speeds are of."""
    return load.requests * (load.input_tokens / speeds[0] + load.output_tokens / speeds[1])


def _here(load: Workload, speeds: tuple[float, float], power: float, price: float, per_hour: float) -> float:
    """Return the dollars of a day of energy and rent; infinite where the day is too short."""
    seconds = _busy(load, speeds)
    return math.inf if seconds > DAY else power * seconds / 3.6e6 * price + per_hour * seconds / 3600


def _draw(rng: random.Random, interval: Interval) -> float:
    """Draw a number whose logarithm is normal on either side of the expected one, with the interval's ends."""
    z = rng.gauss(0, 1)
    end = interval.high if z > 0 else interval.low
    return interval.value * (end / interval.value) ** (abs(z) / 1.2816) if interval.value > 0 and end > 0 else 0.0


def drawn_ends(values: list[float]) -> tuple[float, float]:
    """Return the tenth and the ninetieth percentile of what was drawn."""
    ordered = sorted(values)
    edge = (1 - FORECAST_LEVEL) / 2
    return ordered[int(edge * len(ordered))], ordered[int((1 - edge) * len(ordered))]

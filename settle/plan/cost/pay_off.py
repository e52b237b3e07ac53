"""When a model on a machine of one's own pays off against an API: what a day costs either way, and from which day on.

Only what differs is counted: energy and the machine here, tokens there. A machine that is there anyway costs its
energy alone.
"""

import math
import random
from dataclasses import dataclass

from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.library.prices import ApiPrice
from settle.plan.cost.money import SERVING_POWER

DAY = 86400.0
DRAWS = 4000
YEARS = 3.0  # that a bought machine lasts
IDLE_SHARE = 0.15  # of the design power, while it waits: desktops and cards at idle


@dataclass(frozen=True)
class Workload:
    """Of a day. cached: share of a prompt that the vendor has seen before and charges less for."""

    requests: float
    input_tokens: float
    output_tokens: float
    cached: float = 0.0


@dataclass(frozen=True)
class PayOff:
    """Dollars a day, here and at the API. busy: hours of the day that the machine works, at the expected speed.
    days: until a machine of `purchase` dollars is paid, None where it never is in its life. chance: that it pays off
    within its life. requests: a day from which the machine is cheaper over its life. energy: joules of an output
    token."""

    here: Interval
    api: float
    busy: float
    days: Interval | None
    chance: float
    requests: float | None
    energy: Interval


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
    always_on: bool = False,
    seed: int = 0,
) -> PayOff:
    """prefill, decode: tokens per second of the machine, of all texts answered at once. purchase: of the machine,
    dollars. per_hour: of its rent, paid while it works, or all day when always_on. Uncertain inputs are drawn together,
    so the answer carries them all."""
    at_api = api_dollars(load, api)
    rng = random.Random(seed)
    days, costs, joules, least = [], [], [], []
    for _ in range(DRAWS):
        speeds = (_draw(rng, prefill), _draw(rng, decode))
        power = watts * _draw(rng, SERVING_POWER)
        price = _draw(rng, per_kwh)
        a_day = _here(load, speeds, power, price, per_hour, always_on, watts)
        costs.append(a_day)
        joules.append(power / speeds[1])
        saved = at_api - a_day
        days.append(purchase / saved if saved > 0 else math.inf)
        least.append(_break_even(load, api, speeds, power, price, purchase, per_hour, always_on, watts))
    life = YEARS * 365
    value = _here(
        load, (prefill.value, decode.value), watts * SERVING_POWER.value, per_kwh.value, per_hour, always_on, watts
    )
    expected = purchase / (at_api - value) if at_api > value else math.inf
    low, high = _ends(days)
    requests = sorted(least)[len(least) // 2]
    return PayOff(
        here=Interval(value, *_ends(costs), FORECAST_LEVEL),
        api=at_api,
        busy=_busy(load, (prefill.value, decode.value)) / 3600,
        days=Interval(expected, low, high, FORECAST_LEVEL) if math.isfinite(expected) else None,
        chance=sum(day <= life for day in days) / len(days),
        requests=requests if math.isfinite(requests) else None,
        energy=Interval(watts * SERVING_POWER.value / decode.value, *_ends(joules), FORECAST_LEVEL),
    )


def api_dollars(load: Workload, api: ApiPrice) -> float:
    """Of a day."""
    cached = load.cached if api.cached is not None else 0.0
    prompt = load.input_tokens * ((1 - cached) * api.input + cached * (api.cached or 0.0))
    return load.requests * (prompt + load.output_tokens * api.output) / 1e6


def _busy(load: Workload, speeds: tuple[float, float]) -> float:
    """Seconds of work a day, as many requests at once as the speeds are of."""
    return load.requests * (load.input_tokens / speeds[0] + load.output_tokens / speeds[1])


def _here(
    load: Workload,
    speeds: tuple[float, float],
    power: float,
    price: float,
    per_hour: float,
    always_on: bool,
    watts: float,
) -> float:
    """Dollars of a day of energy and rent; infinite where the day is too short."""
    seconds = _busy(load, speeds)
    if seconds > DAY:
        return math.inf
    joules = power * seconds + (IDLE_SHARE * watts * (DAY - seconds) if always_on else 0.0)
    rented = DAY if always_on else seconds
    return joules / 3.6e6 * price + per_hour * rented / 3600


def _break_even(
    load: Workload, api: ApiPrice, speeds: tuple[float, float], power: float, price: float, purchase: float,
    per_hour: float, always_on: bool, watts: float,
) -> float:  # fmt: skip
    """Requests a day at which the machine, spread over its life, costs what the API does."""
    one = Workload(1.0, load.input_tokens, load.output_tokens, load.cached)
    each = api_dollars(one, api) - _here(one, speeds, power, price, per_hour, False, watts)
    fixed = purchase / (YEARS * 365)
    if always_on:
        fixed += IDLE_SHARE * watts * DAY / 3.6e6 * price + per_hour * 24
    most = DAY / _busy(one, speeds)
    return fixed / each if each > 0 and fixed / each <= most else math.inf


def _draw(rng: random.Random, interval: Interval) -> float:
    """A number whose logarithm is normal on either side of the expected one, with the interval's ends."""
    z = rng.gauss(0, 1)
    end = interval.high if z > 0 else interval.low
    return interval.value * (end / interval.value) ** (abs(z) / 1.2816) if interval.value > 0 and end > 0 else 0.0


def _ends(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    edge = (1 - FORECAST_LEVEL) / 2
    return ordered[int(edge * len(ordered))], ordered[int((1 - edge) * len(ordered))]

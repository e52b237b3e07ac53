"""What device-hours cost: rent or electricity, and the energy of it."""

import math
from dataclasses import dataclass

from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.library.prices import RENT_PER_FLOPS, Prices, prices
from settle.machine.described_machine import Machine

# Energy of a device-hour over its design power, with host, network and cooling: OLMo 3 used 624 and 649 W for each H100
# of 700 W; a consumer card under load stays below its limit, its computer takes 50 to 150 W beside.
OF_DESIGN_POWER = Interval(0.93, 0.75, 1.2, FORECAST_LEVEL)
# The same while it serves, which waits for memory: ML.ENERGY's rows of H100 and B200 draw 0.66 of their design power in
# the median, 0.45 to 0.93 in four fifths of them; host, network and cooling take a tenth to two fifths beside.
SERVING_POWER = Interval(0.79, 0.51, 1.14, FORECAST_LEVEL)
# Rent of devices over the whole bill: storage, network and support take the rest (mercatus-ai 2026-05, 0.6 to 0.7).
SHARE_OF_BILL = 0.65
ASKED = "asked"  # the source of a price that the person gave
UNKNOWN_WATTS = 400.0  # of a device whose design power nobody says


@dataclass(frozen=True)
class Cost:
    """energy: kWh. electricity, rent: dollars, rent with nothing beside; bill: rent with storage and network beside.
    rent_source: of the price, with its day."""

    energy: Interval
    electricity: Interval
    rent: Interval
    bill: Interval
    rent_source: str
    electricity_source: str


def cost(
    hours: Interval,
    machine: Machine,
    *,
    per_kwh: float | None = None,
    per_hour: float | None = None,
    table: Prices | None = None,
) -> Cost:
    """Of so many device-hours. per_kwh, per_hour: the person's own prices, which are taken as exact."""
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
        rent, source = (
            RENT_PER_FLOPS.scaled(machine.matrix_flops),
            "no offer at hand: by its arithmetic, as others are",
        )
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
    """Of two positive numbers that err independently: the distances of the ends add up in squares, as logarithms."""
    value = one.value * other.value
    if value <= 0:
        return Interval(value, one.low * other.low, one.high * other.high, one.level)
    down = math.hypot(_log(one.value, one.low), _log(other.value, other.low))
    up = math.hypot(_log(one.high, one.value), _log(other.high, other.value))
    return Interval(value, value * math.exp(-down), value * math.exp(up), one.level)


def total(one: Interval, other: Interval) -> Interval:
    """Of two numbers that err independently."""
    value = one.value + other.value
    down = math.hypot(one.value - one.low, other.value - other.low)
    up = math.hypot(one.high - one.value, other.high - other.value)
    return Interval(value, value - down, value + up, one.level)


def _log(large: float, small: float) -> float:
    return math.log(large / small) if small > 0 else math.inf

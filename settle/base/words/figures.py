"""Forecasts beside actual figures, and settings, as lists for people."""

import re
from collections.abc import Mapping
from typing import Any

from settle.base.events import Listing
from settle.base.files import JsonObject
from settle.base.run.result import ESTIMATED, Figure, energy_is_counted, figures_of
from settle.base.words.amounts import amount, number
from settle.base.words.sentences import WHY_FITS

SMALLEST_COST = 0.01  # of a currency; less is not worth a line
NUMBER = re.compile(r"[-−]?\d|–?$")
BUSY = 0.25  # share of the processor that others take, from which the machine counts as busy
TOO_WIDE = 4.0  # upper ÷ lower end of an interval
INTERVAL_FITS = 84  # columns from which the interval fits beside the actual figure


def comparison(forecast: JsonObject, actual: JsonObject | None, width: int = WHY_FITS) -> Listing:
    """Return the forecast with its 80 % interval, and the actual figures next to it when they are known.

    forecast: name → {"value", "low", "high", "unit"}; a unit that is not given follows from the name. Where both do
    not fit the interval is left out, since a word says whether the actual figure lies in it. An actual figure that is
    an estimate too gets none. A note says so when other programs kept the machine busy.
    """
    has_interval = actual is None or width >= INTERVAL_FITS
    columns = ["forecast", "expected"] + ["80 % interval"] * has_interval + ["actual", ""] * (actual is not None)
    rows = []
    asked = forecast.get("budgeted") or ()
    estimated = () if energy_is_counted(forecast) else ESTIMATED
    for name, figure in figures_of(forecast).items():
        if name == "cost" and figure.high is not None and figure.high < SMALLEST_COST:
            continue
        source = ", estimated" if figure.source.startswith("estimated") else ""
        row = [name.replace("_", " ") + source, amount(figure.value, figure.unit)]
        row += ["as asked" if name in asked else _interval(figure)] * has_interval
        if actual is not None:
            cells = _actual(number(actual.get(name)), figure)
            row += [cells[0], ""] if name in estimated else cells
        rows.append(row)
    return Listing(columns=columns, rows=rows, note=_busy(actual or {}))


def _busy(actual: JsonObject) -> str:
    """Return what other programs took of the processor meanwhile; empty where that was little or is not known."""
    share = number(actual.get("others_share"))
    if share is None or share < BUSY:
        return ""
    return f"other programs took {share:.0%} of the processor meanwhile: time and tokens are those of a busy machine"


def _interval(figure: Figure) -> str:
    """Return low – high, the unit said once when both have the same."""
    if figure.low is None or figure.high is None:
        return ""
    start, end = amount(figure.low, figure.unit), amount(figure.high, figure.unit)
    unit_of_start = start.partition(" ")[2]
    if unit_of_start == end.partition(" ")[2] and not any(map(str.isdigit, unit_of_start)):
        start = start.partition(" ")[0]
    return f"{start} – {end}"


def _actual(value: float | None, figure: Figure) -> list[str]:
    """Return the actual figure, and whether it lies in the interval."""
    if value is None:
        return ["–", ""]
    low, high = figure.low, figure.high
    place = "" if low is None or high is None else place_in_interval(value, low, high)
    off = f" {100 * (value / figure.value - 1):+.0f} %" if figure.value else ""
    return [amount(value, figure.unit), (place + off).strip()]


def place_in_interval(value: float, low: float, high: float) -> str:
    """Say whether a figure lies in its interval, in a word.

    An interval that reaches to several times its lower end holds nearly anything, and that the figure lies in it is no
    success.
    """
    if not low <= value <= high:
        return "outside"
    return "inside" if high <= TOO_WIDE * low else "inside, too wide to say much"


def flat(values: JsonObject, prefix: str = "") -> dict[str, Any]:
    """Nested settings → dotted keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return out


def listed(event: Listing) -> tuple[list[list[str]], list[bool]]:
    """Return the cells of a list as text, and which of its columns hold numbers."""
    rows = [list(map(cell_text, row)) for row in event.rows]
    return rows, [bool(rows) and all(NUMBER.match(row[i]) for row in rows) for i in range(len(event.columns))]


def cell_text(value: object) -> str:
    """Return a cell of a list as text."""
    if isinstance(value, Mapping):
        return amount(value["value"], str(value["unit"]))
    return value if isinstance(value, str) else amount(value)

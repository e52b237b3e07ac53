"""Forecasts beside actual figures, and settings, as lists for people."""

import re
from collections.abc import Mapping

from settle.base.events import Listing
from settle.base.run.result import ESTIMATED, energy_is_counted
from settle.base.words.amounts import UNITS, amount
from settle.base.words.sentences import WHY_FITS

SMALLEST_COST = 0.01  # of a currency; less is not worth a line
NUMBER = re.compile(r"[-−]?\d|–?$")
BUSY = 0.25  # share of the processor that others take, from which the machine counts as busy
TOO_WIDE = 4.0  # upper ÷ lower end of an interval
INTERVAL_FITS = 84  # columns from which the interval fits beside the actual figure


def comparison(forecast: Mapping[str, object], actual: Mapping[str, object] | None, width: int = WHY_FITS) -> Listing:
    """Return the forecast with its 80 % interval, and the actual figures next to it when they are known.

    forecast: name → {"value", "low", "high", "unit"}; a unit that is not given follows from the name. Where both do
    not fit the interval is left out, since a word says whether the actual figure lies in it. An actual figure that is
    an estimate too gets none. A note says so when other programs kept the machine busy.
    """
    has_interval = actual is None or width >= INTERVAL_FITS
    columns = ["forecast", "expected"] + ["80 % interval"] * has_interval + ["actual", ""] * (actual is not None)
    rows = []
    given = forecast.get("budgeted")
    asked = set(given) if isinstance(given, list | tuple) else set()
    estimated = () if energy_is_counted(forecast) else ESTIMATED
    for name, item in forecast.items():
        if not isinstance(item, Mapping) or "value" not in item:
            continue
        unit = str(item.get("unit") or UNITS.get(name, ""))
        if name == "cost" and isinstance(most := item.get("high"), int | float) and most < SMALLEST_COST:
            continue
        source = ", estimated" if str(item.get("source", "")).startswith("estimated") else ""
        row = [name.replace("_", " ") + source, amount(item["value"], unit)]
        interval = "as asked" if name in asked else _interval(item.get("low"), item.get("high"), unit)
        row += [interval] * has_interval
        if actual is not None:
            cells = _actual(actual.get(name), item, unit)
            row += [cells[0], ""] if name in estimated else cells
        rows.append(row)
    return Listing(columns=columns, rows=rows, note=_busy(actual or {}))


def _busy(actual: Mapping[str, object]) -> str:
    """Return what other programs took of the processor meanwhile; empty where that was little or is not known."""
    share = actual.get("others_share")
    if not isinstance(share, int | float) or share < BUSY:
        return ""
    return f"other programs took {share:.0%} of the processor meanwhile: time and tokens are those of a busy machine"


def _interval(low: object, high: object, unit: str) -> str:
    """Return low – high, the unit said once when both have the same."""
    if low is None or high is None:
        return ""
    start, end = amount(low, unit), amount(high, unit)
    unit_of_start = start.partition(" ")[2]
    if unit_of_start == end.partition(" ")[2] and not any(map(str.isdigit, unit_of_start)):
        start = start.partition(" ")[0]
    return f"{start} – {end}"


def _actual(value: object, figure: Mapping[str, object], unit: str) -> list[str]:
    """Return the actual figure, and whether it lies in the interval."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if not isinstance(value, int | float):
        return ["–", ""]
    low, high, expected = figure.get("low"), figure.get("high"), figure["value"]
    has_interval = isinstance(low, int | float) and isinstance(high, int | float)
    place = place_in_interval(value, low, high) if has_interval else ""  # type: ignore[arg-type]
    off = f" {100 * (value / expected - 1):+.0f} %" if isinstance(expected, int | float) and expected else ""
    return [amount(value, unit), (place + off).strip()]


def place_in_interval(value: float, low: float, high: float) -> str:
    """Say whether a figure lies in its interval, in a word.

    An interval that reaches to several times its lower end holds nearly anything, and that the figure lies in it is no
    success.
    """
    if not low <= value <= high:
        return "outside"
    return "inside" if high <= TOO_WIDE * low else "inside, too wide to say much"


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings → dotted keys."""
    out: dict[str, object] = {}
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

"""Intervals and sources as cells of a table and as values of a result."""

import re
from collections.abc import Mapping

from settle.base.events import Listing
from settle.base.statistics import Interval


def forecast_table(title: str, rows: Mapping[str, tuple[Interval, str, str]], note: str = "") -> Listing:
    """rows: name → interval, unit, and where the number is from."""
    cells = [
        [name, {"value": value.value, "unit": unit}, *(_ends(value, unit)), source]
        for name, (value, unit, source) in rows.items()
    ]
    return Listing(title=title, columns=["forecast", "expected", "from", "to", "based on"], rows=cells, note=note)


def _ends(value: Interval, unit: str) -> list[object]:
    if value.low == value.high:
        return ["", ""]
    return [{"value": value.low, "unit": unit}, {"value": value.high, "unit": unit}]


def values(rows: Mapping[str, tuple[Interval, str, str]]) -> dict[str, object]:
    """The same for a result: name → value, low, high, unit, source."""
    return {
        re.sub(r"\W+", "_", name): {
            "value": value.value,
            "low": value.low,
            "high": value.high,
            "unit": unit,
            "source": source,
        }
        for name, (value, unit, source) in rows.items()
    }

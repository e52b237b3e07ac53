"""Forecasts against actual figures, over all finished runs: how reliable forecasts are.

Energy, and the cost that follows from it, are scored only where a counter was read (`energy_is_counted`).
"""

import contextlib
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from settle.base.errors import SettleError, malformed_is_format_error
from settle.base.run import Run
from settle.base.run.result import ESTIMATED, energy_is_counted
from settle.base.statistics import Interval
from settle.plan.forecast_figures import read_figures

AT_HALF = "loss, forecast at half"  # the last forecast of the loss that was made by half of the run
UNITS = {
    AT_HALF: "nats",
    "time": "s",
    "peak_memory": "bytes",
    "energy": "J",
    "cost": "money",
    "loss": "nats",
    "tokens": "tokens",
}


@dataclass(frozen=True)
class LedgerEntry:
    """One figure of one run."""

    run: str
    figure: str  # time, peak_memory, energy, cost, loss or AT_HALF
    forecast: Interval
    actual: float

    @property
    def error(self) -> float:
        """Actual ÷ forecast − 1."""
        return self.actual / self.forecast.value - 1

    @property
    def inside(self) -> bool:
        """Whether the actual figure lies in the interval of the forecast."""
        return self.forecast.contains(self.actual)


@dataclass(frozen=True)
class Score:
    """How forecasts of one figure have been doing."""

    figure: str
    runs: int
    median_error: float  # median of the absolute relative errors
    bias: float  # median of the relative errors with their sign
    coverage: float  # share of runs inside their 80 % interval


def entries(runs: Iterable[Run]) -> list[LedgerEntry]:
    """All figures of finished runs that have a forecast and an actual number."""
    ledger: list[LedgerEntry] = []
    for run in runs:
        # the list of runs says which of them are damaged
        with contextlib.suppress(SettleError), malformed_is_format_error(run.name):
            ledger += _entries_of(run)
    return ledger


def _entries_of(run: Run) -> Iterator[LedgerEntry]:
    result = run.read("result.json")
    if not isinstance(result, dict):
        return
    forecast = result.get("forecast") or run.read("forecast.json") or {}
    actual = result.get("actual") or {}
    estimated = () if energy_is_counted(forecast) else ESTIMATED
    for name, interval in read_figures(forecast, str(run.path / "forecast.json")).items():
        value = actual.get(name)
        if isinstance(value, int | float) and interval.value and name not in estimated:
            yield LedgerEntry(run.name, name, interval, float(value))
    outlook, loss = result.get("outlook"), actual.get("loss")
    if isinstance(outlook, dict) and isinstance(loss, int | float):
        figures = read_figures({AT_HALF: outlook.get("loss")}, str(run.path / "result.json"))
        yield from (LedgerEntry(run.name, name, interval, float(loss)) for name, interval in figures.items())


def scores(ledger: Iterable[LedgerEntry]) -> list[Score]:
    """One score a figure, in the order in which figures first appear."""
    by_figure: dict[str, list[LedgerEntry]] = {}
    for entry in ledger:
        by_figure.setdefault(entry.figure, []).append(entry)
    return [
        Score(
            figure=figure,
            runs=len(mine),
            median_error=statistics.median(abs(e.error) for e in mine),
            bias=statistics.median(e.error for e in mine),
            coverage=sum(e.inside for e in mine) / len(mine),
        )
        for figure, mine in by_figure.items()
    ]

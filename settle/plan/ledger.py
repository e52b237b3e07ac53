"""Forecasts against what came, over all finished runs: how far they can be believed."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from settle.base.run import Run

UNITS = {"time": "s", "peak_memory": "bytes", "energy": "J", "cost": "money", "loss": "nats", "tokens": "tokens"}


@dataclass(frozen=True)
class Entry:
    """One figure of one run."""

    run: str
    figure: str  # time, peak_memory, energy, cost or loss
    expected: float
    low: float
    high: float
    came: float

    @property
    def error(self) -> float:
        """Came ÷ expected − 1."""
        return self.came / self.expected - 1

    @property
    def inside(self) -> bool:
        """Whether what came lies in the 80 % interval."""
        return self.low <= self.came <= self.high


@dataclass(frozen=True)
class Score:
    """How forecasts of one figure have been doing."""

    figure: str
    runs: int
    median_error: float  # of the absolute relative errors
    bias: float  # median of the relative errors with their sign
    coverage: float  # share of runs inside their 80 % interval


def entries(runs: Iterable[Run]) -> list[Entry]:
    """All figures of finished runs that were forecast and that came out as numbers."""
    found = []
    for run in runs:
        result = run.read("result.json")
        if not isinstance(result, dict):
            continue
        expected = result.get("forecast") or run.read("forecast.json") or {}
        actual = result.get("actual") or {}
        for figure, told in expected.items():
            came = actual.get(figure)
            if not isinstance(told, dict) or not isinstance(came, int | float) or not told.get("value"):
                continue
            found.append(Entry(run.name, figure, told["value"], told["low"], told["high"], float(came)))
    return found


def scores(ledger: Iterable[Entry]) -> list[Score]:
    """One score a figure, in the order in which figures first appear."""
    by_figure: dict[str, list[Entry]] = {}
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

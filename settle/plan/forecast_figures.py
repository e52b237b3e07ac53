"""forecast.json: what a run is expected to need and to reach, each figure with its interval. No torch.

The ledger compares forecasts with actual figures over all finished runs: energy, and the cost that follows from it,
are scored only where a counter was read (`energy_is_counted`).
"""

import contextlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from settle.base.errors import RunError, SettleError, malformed_is_format_error
from settle.base.files import JsonObject
from settle.base.run import Run
from settle.base.run.result import ESTIMATED, energy_is_counted
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.base.version import refuse_newer
from settle.base.words.amounts import number

FORECAST_VERSION = 1  # version of forecast.json
BUDGET_SHARE, BUDGET_SECONDS = 0.05, 20.0  # a time budget is kept this well, whichever is more


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to need and to reach.

    Times in seconds, memory in bytes, energy in joules, loss in nats.
    """

    tokens: Interval  # that the run will see
    time: Interval
    peak_memory: Interval
    energy: Interval
    cost: Interval
    loss: Interval
    currency: str  # of the cost
    watts_source: str  # where the power is from: asked, measured or estimated
    budgeted: tuple[str, ...] = ()  # figures that were asked for and not forecast
    phases: Mapping[str, float] = field(default_factory=dict)  # planned seconds by the name of the stage
    curve: Sequence[Sequence[object]] = ()  # what the run's curve is known by, as `CurveStart` has it
    gains: Mapping[str, Interval] = field(default_factory=dict)  # shares of the loss that a doubling would save

    @property
    def figures(self) -> dict[str, Interval]:
        """Each figure by its name."""
        return {name: figure for name, figure in vars(self).items() if isinstance(figure, Interval)}

    def to_json(self) -> JsonObject:
        """Return the form of forecast.json: each figure by its name, the version, (name, seconds) of each phase."""
        figures = {name: figure.to_json() for name, figure in self.figures.items()}
        cost, energy = {"unit": self.currency}, {"source": self.watts_source}
        return {
            "version": FORECAST_VERSION,
            **figures,
            "cost": figures["cost"] | cost,
            "energy": figures["energy"] | energy,
            "budgeted": list(self.budgeted),
            "phases": [[name, seconds] for name, seconds in self.phases.items()],
            "curve": list(self.curve),
            "gains": [[what, share.to_json()] for what, share in self.gains.items()],
        }


def gains_words(gains: Mapping[str, Interval]) -> str:
    """Say what `CurveStart.gains` are."""
    of = {"time": "twice the time", "text": "twice the text", "model": "a model twice as large"}
    each = [
        f"{of[what]} {100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
        for what, share in gains.items()
    ]
    return "what would take more off the loss: " + ", ".join(each)


def budgeted_time(expected: Interval, budget: float) -> Interval:
    """Return the time of a run with `budget` seconds for everything: `expected`, as far as the budget allows."""
    tolerance = max(BUDGET_SHARE * budget, BUDGET_SECONDS)
    value, low = min(expected.value, budget), min(expected.low, budget - tolerance)
    return Interval(value, min(value, max(low, budget / 20)), budget + tolerance, FORECAST_LEVEL)


def read_figures(values: JsonObject, file: str) -> dict[str, Interval]:
    """Read the figures of a forecast by name. Raises RunError for a newer version, and when edited.

    file: that holds it.
    """
    refuse_newer(values, FORECAST_VERSION, file)
    try:
        return {
            name: Interval.from_json(figure, FORECAST_LEVEL)
            for name, figure in values.items()
            if isinstance(figure, Mapping)
        }
    except (KeyError, TypeError, ValueError) as e:
        raise RunError(f"{file} is damaged: {e}", "restore the file") from None


# --- forecasts against actual figures ---

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
        """Return whether the actual figure lies in the interval of the forecast."""
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
    """Return all figures of finished runs that have a forecast and an actual number."""
    ledger: list[LedgerEntry] = []
    for run in runs:
        # the list of runs says which of them are damaged
        with contextlib.suppress(SettleError), malformed_is_format_error(run.name):
            ledger += _entries_of(run)
    return ledger


def _entries_of(run: Run) -> Iterator[LedgerEntry]:
    result = run.read("result.json")
    if result is None:
        return
    forecast = result.get("forecast") or run.read("forecast.json") or {}
    actual = result.get("actual") or {}
    estimated = () if energy_is_counted(forecast) else ESTIMATED
    for name, interval in read_figures(forecast, str(run.path / "forecast.json")).items():
        value = number(actual.get(name))
        if value is not None and interval.value and name not in estimated:
            yield LedgerEntry(run.name, name, interval, float(value))
    outlook, loss = result.get("outlook"), number(actual.get("loss"))
    if outlook and loss is not None:
        figures = read_figures({AT_HALF: outlook.get("loss")}, str(run.path / "result.json"))
        yield from (LedgerEntry(run.name, name, interval, float(loss)) for name, interval in figures.items())


def scores(ledger: Iterable[LedgerEntry]) -> list[Score]:
    """Return one score a figure, in the order in which figures first appear."""
    by_figure: dict[str, list[LedgerEntry]] = {}
    for entry in ledger:
        by_figure.setdefault(entry.figure, []).append(entry)
    found = []
    for figure, mine in by_figure.items():
        errors, inside = [e.error for e in mine], sum(e.inside for e in mine)
        size = statistics.median(map(abs, errors))
        found.append(Score(figure, len(mine), size, statistics.median(errors), inside / len(mine)))
    return found

"""forecast.json: what a run is expected to need and to reach, each figure with its interval. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from settle.base.errors import RunError
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.base.version import refuse_newer

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

    @property
    def figures(self) -> dict[str, Interval]:
        """Each figure by its name."""
        return {name: figure for name, figure in vars(self).items() if isinstance(figure, Interval)}

    def to_json(self) -> dict[str, object]:
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
        }


def budgeted_time(expected: Interval, budget: float) -> Interval:
    """Return the time of a run with `budget` seconds for everything: `expected`, as far as the budget allows."""
    tolerance = max(BUDGET_SHARE * budget, BUDGET_SECONDS)
    value, low = min(expected.value, budget), min(expected.low, budget - tolerance)
    return Interval(value, max(low, budget / 20), budget + tolerance, FORECAST_LEVEL)


def read_figures(values: Mapping[str, object], file: str) -> dict[str, Interval]:
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

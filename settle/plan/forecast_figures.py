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
    """`tokens`: how many the run will see. Times in seconds, memory in bytes, energy in joules, loss in nats.

    currency: of the cost. watts_source: where the power is from: asked, measured or estimated.
    budgeted: the figures that were asked for and not forecast. phases: planned seconds by the name of the stage.
    curve: what the run's curve is known by, as `CurveStart` has it.
    """

    tokens: Interval
    time: Interval
    peak_memory: Interval
    energy: Interval
    cost: Interval
    loss: Interval
    currency: str
    watts_source: str
    budgeted: tuple[str, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Sequence[object]] = ()

    @property
    def figures(self) -> dict[str, Interval]:
        """Each figure by its name."""
        return {name: figure for name, figure in vars(self).items() if isinstance(figure, Interval)}

    def to_json(self) -> dict[str, object]:
        """The form of forecast.json: each figure by its name, the version, and (name, seconds) of each phase."""
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
    """The time of a run with a budget of `budget` seconds for everything: `expected`, as far as the budget allows."""
    tolerance = max(BUDGET_SHARE * budget, BUDGET_SECONDS)
    value, low = min(expected.value, budget), min(expected.low, budget - tolerance)
    return Interval(value, max(low, budget / 20), budget + tolerance, FORECAST_LEVEL)


def read_figures(values: Mapping[str, object], file: str) -> dict[str, Interval]:
    """The figures of a forecast that `file` holds, by name. Raises RunError for a newer version, and when edited."""
    refuse_newer(values, FORECAST_VERSION, file)
    try:
        return {
            name: Interval.from_json(figure, FORECAST_LEVEL)
            for name, figure in values.items()
            if isinstance(figure, Mapping)
        }
    except (KeyError, TypeError, ValueError) as e:
        raise RunError(f"{file} is damaged: {e}", "restore the file") from None

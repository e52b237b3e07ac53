"""forecast.json: what a run is expected to need and to reach, each figure with its interval. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from settle.base.errors import RunError
from settle.base.file_version import refuse_newer
from settle.base.statistics import FORECAST_LEVEL, Interval

FORECAST_VERSION = 1  # version of forecast.json


@dataclass(frozen=True)
class Forecast:
    """`tokens`: how many the run will see. Times in seconds, memory in bytes, energy in joules, loss in nats.

    currency: of the cost. watts_source: where the power is from: asked, measured or estimated.
    """

    tokens: Interval
    time: Interval
    peak_memory: Interval
    energy: Interval
    cost: Interval
    loss: Interval
    currency: str
    watts_source: str

    def to_json(self) -> dict[str, object]:
        """The form of forecast.json: each figure by its name, and the version."""
        figures = {name: figure.to_json() for name, figure in vars(self).items() if isinstance(figure, Interval)}
        cost, energy = {"unit": self.currency}, {"source": self.watts_source}
        return {
            "version": FORECAST_VERSION,
            **figures,
            "cost": figures["cost"] | cost,
            "energy": figures["energy"] | energy,
        }


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

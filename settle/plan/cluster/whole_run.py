"""A whole training run forecast: device-hours, weeks, failures and the chance to finish by a date.

A steady rate is not a run. Published runs got two thirds of the forecast one in the median, four fifths of them between
0.4 and 1.1 of it: failures, evaluation, restarts, longer sequences at the end and passes that nobody reports take the
rest, and the forecast errs. The share and its spread come from those runs
(published_runs.toml), so the forecast says what runs of this kind took, not what a clean one would.
"""

import functools
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.machine.described_machine import Machine
from settle.plan.cluster.failures import Goodput, goodput
from settle.plan.cluster.search import Candidate, best_layouts, usual_batch
from settle.plan.cluster.shape import Shape

HOUR = 3600.0
GROWS = 4.0  # what a batch that nobody asked for may grow by, for many devices
# The ends of the interval, in logarithms, over those of the runs that the shares come from: makers differ by more than
# runs of one maker do (bench/planning_runs.py leaves each maker out).
STRETCH = 1.3


class _Run(BaseModel):
    """log_share: logarithm of its tokens a device-hour over the steady rate's, less what is explained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    log_share: float
    source: str


class PublishedRuns(BaseModel):
    """centre, slope, experts: the logarithm of a run's share of its steady rate, what it gains with the log of the
    active weights over `size`, and where experts are mixed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: str
    centre: float
    slope: float
    experts: float
    size: float = Field(gt=0)
    runs: tuple[_Run, ...] = Field(min_length=20)


@functools.cache
def published_runs() -> PublishedRuns:
    """The runs that come with settle."""
    with Path(__file__).with_name("published_runs.toml").open("rb") as file:
        return PublishedRuns.model_validate(tomllib.load(file))


@dataclass(frozen=True)
class RunForecast:
    """layouts: the fastest that fit, best first. clean_hours: of one device, were there nothing but steady steps.
    device_hours, days: with what published runs took beside; failures: of the whole run at its expected length."""

    layouts: tuple[Candidate, ...]
    tokens: float
    devices: int
    batch_tokens: float
    clean_hours: float
    device_hours: Interval
    days: Interval
    failures: Goodput

    def chance_within(self, days: float) -> float:
        """The share of such runs that have finished after so many days."""
        logs = [run.log_share for run in published_runs().runs]
        needed = math.log(self.device_hours.value / (days * 24 * self.devices))
        return sum(log >= needed for log in logs) / len(logs)


def forecast_run(
    shape: Shape,
    tokens: float,
    machine: Machine,
    *,
    batch_tokens: float | None = None,
    sequence: int = 4096,
    precision: str = "bf16",
    per_device_day: float | None = None,
    by_hand: bool = False,
) -> RunForecast:
    """The forecast of training on so many tokens. Raises ResourceError where no layout fits."""
    batch = batch_tokens or usual_batch(shape.parameters)
    grows = 1.0 if batch_tokens else GROWS
    layouts = best_layouts(shape, machine, batch, sequence, precision, grows=grows)
    batch = layouts[0].layout.tokens_per_step
    clean = tokens / layouts[0].rate.tokens.value / HOUR
    hours = device_hours(shape, clean)
    days = hours.scaled(1 / machine.count / 24)
    failures = goodput(
        shape.parameters, machine.count, clean * HOUR / machine.count, per_device_day=per_device_day, by_hand=by_hand
    )
    return RunForecast(tuple(layouts), tokens, machine.count, batch, clean, hours, days, failures)


def device_hours(shape: Shape, clean: float) -> Interval:
    """What runs took whose steady steps alone would have taken `clean` device-hours."""
    runs = published_runs()
    centre = runs.centre + runs.slope * math.log(shape.active_parameters / runs.size)
    centre += runs.experts if shape.experts else 0.0
    low, high = share_ends(tuple(sorted(run.log_share for run in runs.runs)))
    expected = clean / math.exp(centre)
    return Interval(expected, expected / math.exp(high), expected / math.exp(low), FORECAST_LEVEL)


def share_ends(logs: tuple[float, ...], level: float = FORECAST_LEVEL) -> tuple[float, float]:
    """The interval that a further run of the same kind falls in with probability `level`, from sorted logarithms.

    Source: the order statistics of Vovk et al., Algorithmic Learning in a Random World (2005): of n exchangeable
    values the next lies below the k-th with probability k / (n + 1). Between two of them the line is taken.
    """
    edge = (1 - level) / 2
    return STRETCH * _order(logs, edge), STRETCH * _order(logs, 1 - edge)


def _order(logs: tuple[float, ...], probability: float) -> float:
    place = probability * (len(logs) + 1) - 1
    below = max(0, min(len(logs) - 2, math.floor(place)))
    part = min(1.0, max(0.0, place - below))
    return logs[below] + part * (logs[below + 1] - logs[below])

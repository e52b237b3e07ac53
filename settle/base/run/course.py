"""The course of a run, gathered from its events: the one reader behind the terminal, the picture and `runs show`."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TypeVar

from settle.base.event_log import read_events, tail
from settle.base.events import (
    DecayStarted,
    Eval,
    Event,
    ForecastReady,
    LossForecast,
    PhaseStarted,
    PlanReady,
    Resumed,
    Rollback,
    RunFailed,
    SettledEvidence,
    Step,
)
from settle.base.files import parse_json
from settle.base.run import TAIL_BYTES
from settle.base.run.result import Figure, figures_of
from settle.base.statistics import FORECAST_LEVEL
from settle.base.words.amounts import number

LOOP = "loop"  # the stage that trains
PACE_STEPS = 64  # latest steps that the pace is measured over
SPEED_SMOOTHING = 0.9  # weight of the earlier speed; a smooth number is easier to read
LEAST_SPREAD, MOST_PASSED = 0.01, 1 - 1e-9  # of a forecast's logarithm; the last quantile that is asked for
LATE_SHARE = 0.01  # what is left at the least, of what is done, when a forecast is long passed
ALMOST_DONE = 0.995  # the largest fraction shown while the run still continues

S = TypeVar("S", Step, Eval, SettledEvidence, LossForecast)


@dataclass
class RunCourse:
    """What the events report so far; steps that a rollback or a crash undid are left out. Times in epoch seconds."""

    keep_steps: bool = True  # False keeps only the latest step, for a display of a run with millions of them
    steps: list[Step] = field(default_factory=list)
    evals: list[Eval] = field(default_factory=list)
    judgements: list[SettledEvidence] = field(default_factory=list)
    forecasts: list[LossForecast] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    whole: Eval | None = None  # the best weights, evaluated at the end on more of the held-out text
    decay: DecayStarted | None = None
    failure: RunFailed | None = None  # of the latest session
    started: float | None = None  # time of the first event
    now: float = 0.0  # time of the latest event
    left: "TimeLeft" = field(default_factory=lambda: TimeLeft())

    @classmethod
    def of(cls, events: Iterable[Event]) -> "RunCourse":
        course = cls()
        for event in events:
            course.add(event)
        return course

    @classmethod
    def read(cls, path: Path) -> "RunCourse":
        return cls.of(read_events(path))

    @classmethod
    def latest(cls, path: Path) -> "RunCourse":
        """Read the end of the course, from the first line and the last TAIL_BYTES of events.jsonl; quick for a list."""
        course = cls.of(tail(path, TAIL_BYTES))
        course.started = None
        with contextlib.suppress(OSError, ValueError, AttributeError), path.open("rb") as f:
            course.started = number(parse_json(f.readline()).get("time"))
        return course

    def add(self, event: Event) -> None:
        self.now = event.time
        self.started = self.started if self.started is not None else event.time
        match event:
            case Step():
                self.steps = _continued(self.steps if self.keep_steps else [], event)
            case Eval() if event.whole:
                self.whole = event
            case Eval():
                self.evals = _continued(self.evals, event)
            case SettledEvidence():
                self.judgements = _continued(self.judgements, event)
            case LossForecast():
                self.forecasts = _continued(self.forecasts, event)
            case DecayStarted():
                self.decay = event
            case RunFailed():
                self.failure = event
            case PhaseStarted():
                self.failure = None
            case Rollback():
                self.rollbacks.append(event)
                if self.decay is not None and self.decay.step >= event.to_step:
                    self.decay = None
        self.left.add(event)

    @property
    def step(self) -> Step | None:
        return self.steps[-1] if self.steps else None

    @property
    def state(self) -> str:
        """What the latest judgement says, or "decaying"."""
        if self.decay is not None or self.left.end_step is not None:
            return "decaying"
        return self.judgements[-1].state if self.judgements else ""

    @property
    def nearness(self) -> float | None:
        """How near the run is to settled: tolerance ÷ upper bound of the improvement; 1 is settled."""
        latest = self.judgements[-1] if self.judgements else None
        if latest is None or not math.isfinite(latest.high) or not latest.tolerance:
            return None
        return 1.0 if latest.high <= latest.tolerance else max(0.0, latest.tolerance / latest.high)

    def tokens_at(self, step: int) -> float:
        """Return the tokens seen at a step: those of the nearest event that says so."""
        known: list[Step | Eval] = [*self.steps, *self.evals]
        nearest = min(known, key=lambda e: abs(e.step - step))
        return nearest.tokens * (step / nearest.step) if nearest.step else nearest.tokens


@dataclass
class TimeLeft:
    """When the run will end: by its clock, by its steps once the decay has begun, or by its limits and its forecast.

    What follows the loop is part of it: `after` is how long that was planned to take.
    """

    began: float | None = None  # time of the first step of this session
    earlier: float = 0.0  # seconds of work in earlier sessions
    now: float = 0.0
    expected: float | None = None  # seconds of the whole run, by the forecast
    at_most: float | None = None  # the upper end of that
    tokens_expected: tuple[float, float] | None = None  # of the whole run, and the upper end
    step: int = 0
    tokens: int = 0
    end_step: int | None = None  # known once the decay has begun
    most_steps: int | None = None  # that the user allowed
    by_clock: bool = False  # the user allowed a time
    ends_by_budget: bool = False  # and the forecast is that the run takes all of it
    phase: str = ""  # the stage that is being worked on
    ends_at: float | None = None  # time by which the run ends: by its clock, or as the stage now at work was planned
    after: float = 0.0  # seconds planned for what follows the loop
    ends_by_clock: bool = False  # the decay goes on until the time is spent
    tokens_per_second: float | None = None
    _pace: list[tuple[float, int]] = field(default_factory=list)  # (time, step) of the latest steps

    def add(self, event: Event) -> None:
        self.now = event.time
        match event:
            case Step():
                self.began = self.began if self.began is not None else event.time
                self.step, self.tokens = event.step, event.tokens
                if math.isfinite(event.tokens_per_second) and event.tokens_per_second:
                    before = self.tokens_per_second or event.tokens_per_second
                    self.tokens_per_second = SPEED_SMOOTHING * before + (1 - SPEED_SMOOTHING) * event.tokens_per_second
                self._pace = [*self._pace[1 - PACE_STEPS :], (event.time, event.step)]
            case Eval() if not event.whole:
                self.tokens = event.tokens
            case DecayStarted():
                self.end_step, self.ends_by_clock = event.until, event.why == "time"
            case PhaseStarted():
                self.phase = event.phase
                self.ends_at = None if event.left is None else event.time + event.left
            case PlanReady():
                self.most_steps = int(number(event.values.get("steps")) or 0) or None
                self.by_clock = bool(event.values.get("time") or event.values.get("max_cost"))
            case ForecastReady():
                figures = figures_of(event.forecast)
                self.expected, self.at_most = _median_and_high(figures.get("time")) or (None, None)
                self.tokens_expected = _median_and_high(figures.get("tokens")) or self.tokens_expected
                self.ends_by_budget = "time" in (event.forecast.get("budgeted") or ())
                names = list(event.phases)
                following = names[names.index(LOOP) + 1 :] if LOOP in names else []
                self.after = sum(event.phases[name] for name in following)
            case Resumed():
                self.earlier, self.step, self.end_step = event.seconds, event.step, event.until
                self.most_steps, self.by_clock = event.most_steps, event.by_clock
            case Rollback():
                self._pace.clear()

    def seconds(self) -> tuple[float, str] | None:
        """Return the seconds left and how they are known: "steps", "clock", "plan", "forecast" or "at most".

        None when they are not known.
        """
        by_plan = None if self.ends_at is None else self.ends_at - self.now
        if self.phase not in ("", LOOP):
            return (by_plan, "plan") if by_plan is not None and by_plan > 0 else None
        per_step = self._seconds_per_step()
        known = [(math.inf, "")]
        if self.by_clock and by_plan is not None:
            known.append((max(0.0, by_plan), "clock"))
        if self.end_step is not None and per_step is not None and not self.ends_by_clock:
            known.append((max(0.0, (self.end_step - self.step) * per_step) + self.after, "steps"))
        elif self.end_step is None or not self.by_clock:
            if self.most_steps is not None and per_step is not None:
                known.append((max(0.0, (self.most_steps - self.step) * per_step) + self.after, "at most"))
            known += self._by_forecast(per_step)
        left = min(known)
        return left if left[1] else None

    def _by_forecast(self, per_step: float | None) -> list[tuple[float, str]]:
        """Estimate the time left from the forecast tokens at the present pace, or from seconds before there is a pace.

        A run that is expected to end by its clock has nothing that is forecast.
        """
        if self.by_clock and self.ends_by_budget:
            return []
        if self.tokens_expected and per_step is not None and self.tokens:
            pace = per_step * self.step / self.tokens
            return [(_median_left(self.tokens, *self.tokens_expected) * pace + self.after, "forecast")]
        if self.expected is None or self.at_most is None:
            return []
        return [(_median_left(self.spent(), self.expected, self.at_most), "forecast")]

    def _seconds_per_step(self) -> float | None:
        """Over the latest steps; None before there are two."""
        if len(self._pace) < 2 or self._pace[-1][1] <= self._pace[0][1]:
            return None
        return (self._pace[-1][0] - self._pace[0][0]) / (self._pace[-1][1] - self._pace[0][1])

    def spent(self) -> float:
        return self.earlier + (self.now - self.began if self.began is not None else 0.0)

    def fraction(self) -> float | None:
        """Return the share of the run that is done, in time; never quite 1 while it continues."""
        left = self.seconds()
        if left is None:
            return None
        spent = self.spent()
        return min(ALMOST_DONE, spent / (spent + left[0])) if spent + left[0] > 0 else 0.0


def _continued(events: list[S], event: S) -> list[S]:
    """Return the events with one more; those that it repeats (after a crash or a rollback) are dropped."""
    while events and events[-1].step >= event.step:
        events.pop()
    events.append(event)
    return events


def _median_left(done: float, expected: float, high: float) -> float:
    """Return the median of what is left of a log-normal amount, now that `done` has not been the end.

    The amount is given by its median and the upper end of its interval. What is left shrinks ever more slowly and is
    never gone.
    """
    deviations = NormalDist().inv_cdf((1 + FORECAST_LEVEL) / 2)
    spread = max(math.log(max(high, expected) / expected) / deviations, LEAST_SPREAD)
    amount = NormalDist(math.log(expected), spread)
    passed = amount.cdf(math.log(done)) if done > 0 else 0.0
    median = math.exp(amount.inv_cdf(min((1 + passed) / 2, MOST_PASSED)))
    return max(median - done, LATE_SHARE * done)


def _median_and_high(figure: Figure | None) -> tuple[float, float] | None:
    return None if figure is None or figure.value is None or figure.high is None else (figure.value, figure.high)

"""The forecast of the final loss, made anew as a run goes on, from all that it has evaluated so far."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Self

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from settle.base.event_log import Events
from settle.base.events import DecayStarted, Eval, Event, LossForecast, Resumed, Rollback
from settle.base.statistics import NO_ESTIMATE, Interval, two_sided_z
from settle.plan.loss_curve import NGRAMS, RISE, CurveFacts, Observation, binned, recorded
from settle.plan.loss_law import SHIFT_SHARE
from settle.train.evaluation import Evaluation
from settle.train.settled import DECAY_FRACTION, gain_for

GROWTH = 1.1  # of the tokens seen, from one forecast to the next
FEWEST = 3  # evaluations before the first of them
LEAST_AHEAD = 1 + DECAY_FRACTION  # a run that was expected to have ended is expected to see so many times its tokens
# Of a tuning run's trend, from recorded ones: its spread is multiplied by the first; standard deviations of ln L that
# come on top, always and for every factor e of tokens ahead
TREND_WIDENING, TREND_NOISE, TREND_DRIFT = 1.25, 0.005, 0.02
SHIFT_SPREAD = (0.02, 0.25)  # standard deviation of `CurveStart.shift`: always, and as a share of it
LEAST_LOSS = 1e-6  # nats per token: an evaluation may be exactly 0
SETTLED_DECAY = DECAY_FRACTION / (1 + DECAY_FRACTION)  # share of a settled run's tokens that its decay takes


class _Start:
    """What a run's curve is known by before its first step, as forecast.json keeps it."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    def gains(self, tokens: float) -> dict[str, Interval]:
        """Return what share of the loss after `tokens` a doubling would save, by what is doubled; empty if unknown."""
        return {}

    def to_json(self) -> list[list[object]]:
        """Return (name, value) pairs, the form in forecast.json."""
        return [[name, value] for name, value in asdict(self).items()]  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, pairs: object) -> Self | None:
        """Return None when there is none, as in runs of former versions and of other kinds."""
        try:
            return TypeAdapter(cls).validate_python(dict(pairs))  # type: ignore[call-overload]
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True)
class CurveStart(_Start):
    """The start of a new model."""

    facts: CurveFacts
    probes: Sequence[Observation]
    offset: float  # ln of the probe's loss on the run's own sample ÷ that on the larger one that probes are judged by
    stderr: float  # of the difference between two samples of one text, nats
    since: float  # tokens that the run sees before its evaluations say how it goes on
    decay: float  # share of its tokens in which its rate will fall to zero
    longest: float | None = None  # tokens of that decay at most
    shifts: Sequence[tuple[float, float]] = ((1.0, 0.0),)  # see settle/plan/loss_law.py

    def decay_share(self, tokens: float) -> float:
        """Return the decay's share of a run of `tokens`."""
        return self.decay if self.longest is None else min(self.decay, self.longest / tokens)

    def loss(self, tokens: float) -> Interval:
        """Forecast, before the run, the loss that it ends with after `tokens`."""
        decay = self.decay_share(tokens)
        return self._judged(recorded().after(self.facts, self.probes, tokens, decay, self.stderr), tokens)

    def gains(self, tokens: float) -> dict[str, Interval]:
        """Return what share of the loss a doubling would save, by what is doubled: the time, the text or the model.

        With twice the text or a model twice as large the run sees as many tokens as without. Of more text only that it
        is repeated less counts: what else it changes shows between recorded texts, and not within one.
        """
        facts, end, prior = self.facts, Observation(tokens, 1.0, self.decay_share(tokens)), recorded()
        longer = replace(end, tokens=2 * tokens, decay=self.decay_share(2 * tokens))
        larger, more = replace(facts, parameters=2 * facts.parameters), replace(facts, unique=2 * facts.unique)
        gains = {
            "time": prior.change(facts, self.probes, end, facts, longer),
            "text": prior.change(facts, self.probes, end, more, end, held=(NGRAMS, RISE)),
            "model": prior.change(facts, self.probes, end, larger, end),
        }
        harder = math.exp(self.shift(2 * tokens) - self.shift(tokens))  # what judges, for a model that knows more
        gains["time"] = gains["time"].shifted(-1).scaled(harder).shifted(1)
        return gains

    def loss_under_way(
        self, evaluations: Sequence[tuple[float, float]], tokens: float, decay: float | None = None
    ) -> Interval:
        """Forecast the loss that the run ends with from its probes and its evaluations so far.

        evaluations: at the constant rate, (tokens, loss) each. decay: where it is known to be another.
        """
        decay = self.decay_share(tokens) if decay is None else decay
        seen = self._seen(evaluations)
        return self._judged(recorded().after(self.facts, seen, tokens, decay, self.stderr, under_way=True), tokens)

    def shift(self, tokens: float) -> float:
        """Return ln of the loss on the text that judges ÷ on the text that selects, after so many tokens."""
        counted, found = zip(*self.shifts, strict=True)
        return float(np.interp(math.log(tokens * SHIFT_SHARE), np.log(counted), found))

    def _judged(self, loss: Interval, tokens: float) -> Interval:
        """Return the loss on the text that judges."""
        shift, (least, share) = self.shift(tokens), SHIFT_SPREAD
        return Interval.log_normal(loss.value * math.exp(shift), math.hypot(loss.log_std, least, share * shift))

    def further(self, evaluations: Sequence[tuple[float, float]], ended: Observation, more: float) -> Interval:
        """Return what `more` tokens would have taken off the loss that the run `ended` with, as a share of it.

        Both decayed; losses are those of the run's own sample. NaN beyond what recorded runs reach.
        """
        last, prior, tokens = replace(ended, loss=ended.loss * math.exp(-self.offset)), recorded(), ended.tokens + more
        widening = prior.further_widening(self.facts, ended.tokens, tokens)
        if widening is None:
            return NO_ESTIMATE
        seen = [*self._seen(evaluations), last]
        later = prior.after(self.facts, seen, tokens, ended.decay, under_way=True, widening=widening)
        value, least, most = (1 - loss / last.loss for loss in (later.value, later.high, later.low))
        return Interval(value, least, most, later.level)

    def _seen(self, evaluations: Sequence[tuple[float, float]]) -> list[Observation]:
        return [*self.probes, *binned(evaluations, self.since, self.offset)]


@dataclass(frozen=True)
class TuningStart(_Start):
    """The start of a tuning run: no recorded run is like it, so its end is known by its own evaluations alone."""

    stderr: float  # of the sample that is evaluated ÷ the one that judges the run, as a share of the loss
    since: float  # tokens of the warm-up

    def loss_under_way(
        self, evaluations: Sequence[tuple[float, float]], tokens: float, decay: float | None = None
    ) -> Interval:
        """Forecast the loss after `tokens` as the evaluations at the constant rate go on; NaN while these are too few.

        What the decay brings in tuning is small beside the rest, and part of the spread.
        """
        history = [Evaluation(0, round(at), loss, 0.0, None, ()) for at, loss in evaluations]
        ahead = max(1.0, tokens / history[-1].tokens)
        gain = gain_for(history, (ahead - 1) * history[-1].tokens, round(self.since))
        if not math.isfinite(gain.value):
            return NO_ESTIMATE
        latest = [math.log(max(e.loss, LEAST_LOSS)) for e in history[-FEWEST:]]
        low, value, high = (-math.log1p(-share) for share in (gain.low, gain.value, gain.high))
        of_trend = TREND_WIDENING * (high - low) / 2 / two_sided_z(gain.level)
        spread = math.hypot(of_trend, TREND_NOISE, TREND_DRIFT * math.log(ahead), self.stderr)
        return Interval.log_normal(math.exp(sum(latest) / len(latest) - value), spread)


class Outlook:
    """Listens to a run's evaluations at the constant rate and emits `LossForecast` now and then.

    tokens: that the run is expected to see. tokens_per_step: to know where a decay ends.
    """

    def __init__(self, start: CurveStart | TuningStart, tokens: float, tokens_per_step: int, events: Events) -> None:
        self.start, self.tokens, self.events = start, tokens, events
        self.tokens_per_step = tokens_per_step
        self.latest: LossForecast | None = None
        self.at_half: LossForecast | None = None
        self._evaluations: list[tuple[float, float]] = []
        self._is_decaying, self._decay_step = False, 0

    def resume(self, earlier: Iterable[Event]) -> None:
        """Take over what the events of earlier sessions say."""
        for event in earlier:
            match event:
                case Eval() if not event.whole and event.tokens and not self._is_decaying:
                    self._evaluations = [e for e in self._evaluations if e[0] < event.tokens]
                    self._evaluations.append((float(event.tokens), event.loss))
                case LossForecast():
                    self.latest = event
                    self.at_half = event if 2 * event.tokens <= event.end_tokens else self.at_half
                case _:
                    self._change_course(event)

    def __call__(self, event: Event) -> None:
        self._change_course(event)
        match event:
            case DecayStarted():
                self._forecast(event.step)
            case Eval() if not event.whole and not self._is_decaying and event.tokens:
                self._evaluations.append((float(event.tokens), event.loss))
                if self._is_due(event.tokens):
                    self._forecast(event.step)

    def _change_course(self, event: Event) -> None:
        match event:
            case DecayStarted():
                self._is_decaying, self._decay_step = True, event.step
                self.tokens = float(event.until * self.tokens_per_step)
            case Rollback():
                self._go_back(event.to_step)
            case Resumed():
                self._go_back(event.step)

    @property
    def _decay_share(self) -> float | None:
        """The decay's share of the run's tokens; None until it is known."""
        return 1 - self._decay_step * self.tokens_per_step / self.tokens if self._is_decaying else None

    def further(self, loss: float, more: float) -> Interval | None:
        """Return what `more` tokens would have taken off the `loss` that the run ended with, as a share of it.

        The loss is that of the run's own sample. NaN where that is not known, None where a run's start says nothing of
        it.
        """
        if isinstance(self.start, TuningStart):
            return None
        if self._decay_share is None or not math.isfinite(loss):
            return NO_ESTIMATE
        return self.start.further(self._evaluations, Observation(self.tokens, loss, self._decay_share), more)

    def _go_back(self, step: int) -> None:
        """Forget what came after `step`."""
        tokens = step * self.tokens_per_step
        self._evaluations = [e for e in self._evaluations if e[0] <= tokens]
        self._is_decaying = self._is_decaying and self._decay_step <= step

    def _is_due(self, tokens: float) -> bool:
        later = sum(at > self.start.since for at, _ in self._evaluations)
        return later >= FEWEST and (self.latest is None or tokens >= GROWTH * self.latest.tokens)

    def _forecast(self, step: int) -> None:
        if not self._evaluations or self._evaluations[-1][0] <= self.start.since:
            return
        seen = self._evaluations[-1][0]
        end = self.tokens if self._is_decaying else max(self.tokens, LEAST_AHEAD * seen)
        expected = self.start.loss_under_way(self._evaluations, end, self._decay_share)
        if not math.isfinite(expected.value):
            return
        self.latest = LossForecast(
            step=step,
            tokens=round(seen),
            end_tokens=round(end),
            loss=expected.value,
            low=expected.low,
            high=expected.high,
        )
        if seen <= end / 2:
            self.at_half = self.latest
        self.events.emit(self.latest)

    def figures(self) -> Mapping[str, object] | None:
        """Return the last forecast that was made by half of the run, as result.json has it; None without one."""
        if self.at_half is None:
            return None
        made = self.at_half
        loss = {"value": made.loss, "low": made.low, "high": made.high}
        return {"tokens": made.tokens, "end_tokens": made.end_tokens, "loss": loss}

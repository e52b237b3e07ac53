"""Where a run stands, gathered from its events: what a face needs to draw a bar and to say when it will end."""

import math
from dataclasses import dataclass, field
from typing import Any

from settle.base.events import Event


def number(value: Any) -> float | None:
    """A finite number, or None: a loss can be no number, and in a file that is written as text."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass
class Standing:
    """The state of the run as its events told it so far. Times are the events' own, in epoch seconds."""

    began: float | None = None  # when the first step of this session was told
    earlier: float = 0.0  # seconds of work in the sessions before this one
    now: float = 0.0
    expected: float | None = None  # seconds of the whole run, by the forecast
    at_most: float | None = None  # the upper end of that
    tokens_expected: tuple[float, float] | None = None  # of the whole run, and the upper end
    step: int = 0
    end_step: int | None = None  # known once the decay has begun
    most_steps: int | None = None  # that the person allowed
    by_clock: bool = False  # the person allowed so much time
    tokens: int = 0
    tokens_per_second: float | None = None
    train_loss: float | None = None
    evaluated: Event | None = None  # the latest evaluation
    losses: list[float] = field(default_factory=list)
    gain: float | None = None
    high: float | None = None
    tolerance: float | None = None
    state: str = ""
    why: str = ""  # what the latest judgement said
    _pace: list[tuple[float, int]] = field(default_factory=list)  # (time, step) of the latest steps

    def hear(self, event: Event) -> None:
        self.now = event.get("time", self.now)
        kind = event["kind"]
        if kind == "step":
            self._hear_step(event)
        elif kind == "eval" and not event.get("whole"):
            self.evaluated, self.tokens = event, event["tokens"]
            loss = number(event["loss"])
            self.losses += [loss] if loss is not None else []
        elif kind == "settled":
            self.gain, self.high = number(event.get("gain")), number(event.get("high"))
            self.tolerance, self.state = number(event.get("tolerance")), event.get("state", "")
            self.why = event.get("why", "")
        elif kind == "decay":
            self.end_step, self.state = event.get("until"), "decaying"
        elif kind == "plan":
            values = event.get("values", {})
            steps = number(values.get("steps"))
            self.most_steps, self.by_clock = int(steps) if steps else None, bool(values.get("time"))
        elif kind == "forecast":
            self._hear_forecast(event)
        elif kind == "resumed":
            self.earlier, self.step = event.get("seconds", 0.0), event["step"]
            self.end_step, self.most_steps = event.get("until"), event.get("most_steps")
            self.by_clock = event.get("by_clock", False)
        elif kind == "rollback":
            self._pace.clear()

    def _hear_forecast(self, event: Event) -> None:
        forecast = event.get("forecast") or event
        time, tokens = (forecast.get(name) or {} for name in ("time", "tokens"))
        self.expected, self.at_most = number(time.get("value")), number(time.get("high"))
        if tokens:
            self.tokens_expected = tokens["value"], tokens["high"]

    def _hear_step(self, event: Event) -> None:
        self.began = self.began if self.began is not None else self.now
        self.step, self.tokens, self.train_loss = event["step"], event["tokens"], number(event["loss"])
        speed = number(event.get("tokens_per_second"))
        if speed:
            # a smooth number reads better than a nervous one
            self.tokens_per_second = speed if not self.tokens_per_second else 0.9 * self.tokens_per_second + 0.1 * speed
        self._pace = [*self._pace[-63:], (self.now, self.step)]

    @property
    def nearness(self) -> float | None:
        """How near the run is to settled: tolerance ÷ upper end of the gain still expected; 1 is settled."""
        if self.high is None or not self.tolerance:
            return None
        return 1.0 if self.high <= self.tolerance else max(0.0, self.tolerance / self.high)

    def left(self) -> tuple[float, str] | None:
        """Seconds still to go and how that is known: "steps", "forecast" or "at most"; None when it is not known."""
        per_step = self._seconds_per_step()
        if self.end_step is not None and per_step is not None:
            return max(0.0, (self.end_step - self.step) * per_step), "steps"
        known = [(math.inf, "")]
        if self.most_steps is not None and per_step is not None:
            known.append((max(0.0, (self.most_steps - self.step) * per_step), "at most"))
        known += self._by_forecast(per_step)
        left = min(known)
        return left if left[1] else None

    def _by_forecast(self, per_step: float | None) -> list[tuple[float, str]]:
        """What is left of the tokens that were forecast, at the pace of now; of the seconds before there is one, and
        where a clock ends the run."""
        done, ends, pace = self.spent(), (self.expected, self.at_most), 1.0
        if self.tokens_expected and per_step is not None and self.tokens and not self.by_clock:
            done, ends, pace = self.tokens, self.tokens_expected, per_step * self.step / self.tokens
        for end, how in zip(ends, ("forecast", "at most"), strict=True):
            if end is not None and done < end:
                return [((end - done) * pace, how)]
        return []

    def _seconds_per_step(self) -> float | None:
        """Over the latest steps; None before there are two."""
        if len(self._pace) < 2 or self._pace[-1][1] <= self._pace[0][1]:
            return None
        return (self._pace[-1][0] - self._pace[0][0]) / (self._pace[-1][1] - self._pace[0][1])

    def spent(self) -> float:
        return self.earlier + (self.now - self.began if self.began is not None else 0.0)

    def fraction(self) -> float | None:
        """The share of the run that is done, in time; never quite 1 while it goes on."""
        left = self.left()
        if left is None:
            return None
        spent = self.spent()
        return min(0.995, spent / (spent + left[0])) if spent + left[0] > 0 else 0.0

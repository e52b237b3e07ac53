"""Runs the A/B of a finding: A B B A, each measurement kept on the disk, and the fix tested again on other items.

It stops as soon as it shows the change: after six items where all agree, else after more, and never after more than the
trial has. Each look at what was measured may err, so they share the error of one test (Bonferroni)."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Progress, Say
from settle.base.json_lines import append_lines, read_lines
from settle.base.statistics import VERDICT_P, PairedTest, paired_test
from settle.doctor.findings import State
from settle.doctor.trial import FEWEST_ITEMS, Item, Side, Trial
from settle.jobs.trials.pace import time_text
from settle.machine import memory

MEMORY_SHARE = 0.6  # of what is free, for both sides together
SAID_SECONDS, SAID_TIMES = 10.0, 1.5  # from which, and times as much or as little, a time is said anew
RETESTED = 0.5  # of the effect that counts, that the fix must still show on other items
ERROR = 0.05  # of all looks together, in both directions
FIRST_ERROR = 2 / 2**FEWEST_ITEMS  # of the first: as much as six that all agree need
FEW, MANY = 9, 18  # items: of fewer than so many one look is taken, of fewer than that two, else three
Key = tuple[str, str, int]  # part of the trial, side, item


@dataclass(frozen=True)
class Proof:
    """What an A/B came to. effect: of the change, better is more; of a time, in natural logarithms of the ratio.
    retest: the same on other items, None where the proof did not hold; holds: it shows the change there too. guards:
    what must not get worse, or None; harms: it did. failed: why a side could not be measured, by its name."""

    state: State
    effect: PairedTest | None
    retest: PairedTest | None
    guards: PairedTest | None
    holds: bool
    harms: bool
    seconds: float
    failed: Mapping[str, str]

    @property
    def verified(self) -> bool:
        """The fix helps on other items, and nothing else got worse with it."""
        return self.holds and not self.harms

    def to_json(self) -> dict[str, object]:
        return {
            "state": self.state,
            "verified": self.verified,
            "effect": self.effect and self.effect.to_json(),
            "retest": self.retest and self.retest.to_json(),
            "guards": self.guards and self.guards.to_json(),
            "seconds": round(self.seconds, 3),
            "failed": dict(self.failed),
        }


def expected_seconds(trial: Trial) -> float:
    """What proof and re-test take together, as expected before anything ran, where the first look at each shows it."""
    return trial.preparing + trial.seconds * 2 * _fewest(trial)


def most_seconds(trial: Trial) -> float:
    """The same where it takes all items to show it."""
    return trial.preparing + trial.seconds * 2 * (len(trial.items) + len(trial.others) + len(trial.guards))


def looks(number: int) -> list[tuple[int, float]]:
    """After how many of `number` items it is looked, and the p-value that shows a change then."""
    if number < FEW:
        return [(number, VERDICT_P)]
    later = [number] if number < MANY else [2 * FEWEST_ITEMS, number]
    return [(FEWEST_ITEMS, FIRST_ERROR), *((n, (ERROR - FIRST_ERROR) / len(later)) for n in later)]


def _fewest(trial: Trial) -> int:
    """Items until the first look at the proof and at the re-test, and the guards."""
    return looks(len(trial.items))[0][0] + looks(len(trial.others))[0][0] + len(trial.guards)


def prove(trial: Trial, record: Path, events: Events) -> Proof:
    """Measures both sides and compares them. record: the file of measurements; those in it are not made again. Raises
    ResourceError when the disk is full."""
    started = time.monotonic()
    measurements = _Measurements(trial, record, events)
    try:
        effect = _sequential(trial, measurements, "proof", trial.items, _least(trial))
        state = _state(trial, effect)
        retest = guards = None
        if state == "proven":
            retest = _sequential(trial, measurements, "retest", trial.others, RETESTED * _least(trial))
            if trial.guards:
                before, after = measurements.of("guard", trial.guards, 0)
                guards = paired_test([-v for v in before], [-v for v in after])
        holds = retest is not None and _is_shown(retest, RETESTED * _least(trial))
        harms = guards is not None and is_worse(guards, trial.harm)
        return Proof(state, effect, retest, guards, holds, harms, time.monotonic() - started, {})
    except _Unmeasured as e:
        return Proof("likely", None, None, None, False, False, time.monotonic() - started, {e.side: e.why})
    finally:
        measurements.close()


def _sequential(
    trial: Trial, measurements: "_Measurements", part: str, items: Sequence[Item], least: float
) -> PairedTest:
    """The test of the change after the first look that shows it, or after the last. Its p-value is corrected so that
    the verdict's limit is right whenever it stopped."""
    seen = 0
    for number, enough in looks(len(items)):
        values = measurements.of(part, items[:number], seen)
        test = _compared(trial, *values)
        test = replace(test, adjusted_p=min(1.0, test.p_value / enough * test.limit))
        seen = number
        if _is_shown(test, least):
            break
    return test


def _least(trial: Trial) -> float:
    return math.log1p(trial.least) if trial.timed else trial.least


def is_worse(guards: PairedTest, harm: float) -> bool:
    """Whether what must not get worse did, by as much as counts."""
    return guards.verdict == "worse" and guards.difference.value <= -harm


def _is_shown(test: PairedTest, least: float) -> bool:
    """Whether a change is real, and large enough to count."""
    return test.verdict == "better" and test.difference.value >= least


def _state(trial: Trial, effect: PairedTest) -> State:
    least = _least(trial)
    if _is_shown(effect, least):
        return "proven"
    return "ruled out" if effect.difference.high < least else "likely"


def _compared(trial: Trial, before: Sequence[float], after: Sequence[float]) -> PairedTest:
    """A test of the change; more is better."""
    sign = -1.0 if trial.lower else 1.0
    if trial.timed:
        before, after = [math.log(max(v, 1e-9)) for v in before], [math.log(max(v, 1e-9)) for v in after]
    return paired_test([sign * v for v in before], [sign * v for v in after])


class _Unmeasured(Exception):
    """A side could not be measured."""

    def __init__(self, side: str, why: str) -> None:
        self.side, self.why = side, why
        super().__init__(why)


class _Measurements:
    """What was measured, on the disk, and the two sides while they are open."""

    def __init__(self, trial: Trial, record: Path, events: Events) -> None:
        self._trial, self._record, self._events = trial, record, events
        self._known: dict[Key, float] = dict(_read(record))
        self._open: list[Side] = []
        self._took: dict[str, list[float]] = {}  # seconds of each measurement, by side
        self._has_said = False
        both = trial.before.num_bytes + trial.after.num_bytes
        self._one_at_a_time = trial.apart or both > MEMORY_SHARE * memory().available
        self._total = 2 * _fewest(trial)

    def of(self, part: str, items: Sequence[Item], seen: int) -> tuple[list[float], list[float]]:
        """The values of both sides. seen: items that an earlier look had. Raises _Unmeasured."""
        sides = {"before": self._trial.before, "after": self._trial.after}
        missing = sum((part, name, at) not in self._known for name in sides for at in range(seen, len(items)))
        self._total = max(self._total, len(self._known) + missing)
        for order, group in self._turns(range(seen, len(items))):
            for name in order:
                for at in group:
                    if (part, name, at) not in self._known:
                        self._add((part, name, at), self._measured(sides[name], part, items[at]))
        return (
            [self._known[part, "before", at] for at in range(len(items))],
            [self._known[part, "after", at] for at in range(len(items))],
        )

    def close(self) -> None:
        while self._open:
            self._open.pop().close()

    def _turns(self, places: range) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
        """A B, B A: by single items where times are compared, else by halves, which load a model least often."""
        size = 1 if self._trial.timed else -(-len(places) // 2)
        for number, first in enumerate(range(places.start, places.stop, size)):
            order = ("before", "after") if number % 2 == 0 else ("after", "before")
            yield order, range(first, min(first + size, places.stop))

    def _measured(self, side: Side, part: str, item: Item) -> float:
        try:
            if side not in self._open:
                if self._one_at_a_time:
                    self.close()
                done = len(self._known)
                self._events.emit(Progress(what="making ready", done=done, total=self._total, detail=side.name))
                side.open()
                self._open.append(side)
            began = time.monotonic()
            value = float(side.guard(item) if part == "guard" else side.measure(item))
            self._took.setdefault(side.name, []).append(time.monotonic() - began)
            return value
        except SettleError as e:
            raise _Unmeasured(side.name, str(e)) from None

    def _add(self, key: Key, value: float) -> None:
        self._known[key] = value
        part, side, item = key
        line = {"part": part, "side": side, "item": item, "value": value}
        append_lines(self._record, [line], then="and run the same command again: what was measured is kept")
        done, left = len(self._known), self._seconds_left()
        progress = Progress(what="A/B", done=done, total=self._total, unit="measurements", seconds_left=left)
        self._events.emit(progress)
        if left is not None and not self._has_said:
            self._has_said = True
            expected = self._trial.seconds * (self._total - done)
            if max(left, expected) > SAID_SECONDS and not expected / SAID_TIMES < left < expected * SAID_TIMES:
                self._events.emit(Say(text=f"by the first measurements it is {time_text(left)} more at most"))

    def _seconds_left(self) -> float | None:
        """By what a measurement of each side took; None until both have one."""
        if len(self._took) < 2:
            return None
        means = [sum(seconds) / len(seconds) for seconds in self._took.values()]
        return (self._total - len(self._known)) * sum(means) / 2


def _read(record: Path) -> Iterator[tuple[Key, float]]:
    """Yield what is on the disk."""
    for kept in read_lines(record):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield (str(kept["part"]), str(kept["side"]), int(str(kept["item"]))), float(str(kept["value"]))

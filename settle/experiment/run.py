"""The runner of every experiment: arms are measured in turns, and nothing is measured twice.

A machine that is busy for a while slows all arms down alike, since they take turns forwards and then backwards (A B,
B A, A B …). Where memory is short one arm is loaded at a time. After a Ctrl-C the same call continues where it was.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Self, TypeVar

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Progress, Say, Warn
from settle.base.statistics import Interval, PairedTest
from settle.base.words.amounts import duration
from settle.evaluate.compare.cases import Case
from settle.experiment.arm import Arm, Item, MeasureRecord, ProofRecord, Reply, ReplyRecord, Value, question_key
from settle.experiment.race import Outcome, Race
from settle.experiment.two_arms import (
    RETESTED,
    GuardedArm,
    Measured,
    Proof,
    State,
    TwoArms,
    analyses,
    guard_test,
    is_shown,
)
from settle.machine import memory

MEMORY_SHARE = 0.6  # of what is free, for all arms together
FIRST, NEXT = 8, 4  # rows of a race that everybody answers before the first evaluation, and between two
TURNS = 4  # that each arm has where memory holds one at a time: A B, B A, A B, B A loads each hardly more than twice
# standard deviations of the logarithm of an item's seconds
EXPECTED_SPREAD = 0.35  # of what was expected before anything ran
UNKNOWN_SPREAD = 0.7  # of an arm of which nothing is known but how long the others take
LEAST_SPREAD = 0.08  # of what was measured: other programs come and go

T = TypeVar("T")


def in_turn(arms: Sequence[T], turn: int) -> Sequence[T]:
    """Return the arms in the order of a turn, counted from 0: A B, then B A, then A B."""
    return arms if turn % 2 == 0 else arms[::-1]


# --- how long it takes ---


class ArmPace:
    """The seconds that an item of one arm takes. expected: before anything ran, None where nobody knows."""

    def __init__(self, expected: float | None = None) -> None:
        self._expected = expected
        self._turns: list[tuple[int, float]] = []

    def record(self, items: int, seconds: float) -> None:
        """Note the time that so many items took together."""
        if items and seconds > 0:
            self._turns.append((items, seconds))

    @property
    def estimate(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the logarithm of an item's seconds; None where nothing is known.

        What was expected and what was measured are each weighted by their precision.
        """
        parts = []
        if self._expected:
            parts.append((math.log(self._expected), EXPECTED_SPREAD))
        if self._turns:
            logs = [math.log(s / n) for n, s in self._turns]
            spread = statistics.stdev(logs) if len(logs) > 1 else EXPECTED_SPREAD
            mean = math.log(sum(s for _, s in self._turns) / sum(n for n, _ in self._turns))
            parts.append((mean, max(LEAST_SPREAD, spread / math.sqrt(len(logs)))))
        if not parts:
            return None
        precision = sum(spread**-2 for _, spread in parts)
        return sum(log * spread**-2 for log, spread in parts) / precision, precision**-0.5


def seconds_left(paces: Sequence[ArmPace], items: Sequence[int]) -> Interval | None:
    """Forecast the seconds that so many further items of each arm take; None where nothing is known of any arm.

    A busy machine slows all of them down alike, so their errors add up.
    """
    if not any(items):
        return Interval(0.0, 0.0, 0.0)
    known = [estimate for pace in paces if (estimate := pace.estimate)]
    if not known:
        return None
    others = statistics.fmean(log for log, _ in known), UNKNOWN_SPREAD
    parts = [
        (n * math.exp(log), spread)
        for pace, n in zip(paces, items, strict=True)
        for log, spread in [pace.estimate or others]
    ]
    total = sum(seconds for seconds, _ in parts)
    return Interval.log_normal(total, sum(seconds * spread for seconds, spread in parts) / total)


# --- measuring ---


@dataclass(eq=False)
class Lane(Generic[Item, Value]):
    """An arm in the middle of an experiment."""

    arm: Arm[Item, Value]
    record: MeasureRecord[Value]  # what it measured so far, also before
    pace: ArmPace = field(default_factory=ArmPace)
    items: Sequence[Item] = ()  # as the arm is really asked them
    keys: Sequence[str] = ()  # of the items, in the record
    wanted: Sequence[int] = ()  # places of the items that are still needed as far as is known, for the forecast

    def value(self, place: int) -> Value:
        """Return what was measured of an item."""
        return self.record.known[self.keys[place]]

    def missing(self, places: Iterable[int]) -> list[int]:
        """Return the places of items that are not measured yet, those of one key once."""
        first = {self.keys[place]: place for place in reversed(list(places))}
        return sorted(place for key, place in first.items() if key not in self.record.known)


class ArmFailed(Exception):
    """An arm could not be measured."""

    def __init__(self, arm: str, error: SettleError) -> None:
        self.arm, self.error = arm, error
        super().__init__(error.what)


class Runner(Generic[Item, Value]):
    """Measures the items of lanes; a context manager that unloads every arm at its end, whatever happens.

    Attributes:
        what, unit: of the measurements, shown with their progress.
        apart: an arm is unloaded before another is loaded, since one would change what the other measures.
        made: measurements that were not known before.
    """

    def __init__(
        self,
        lanes: Sequence[Lane[Item, Value]],
        events: Events,
        what: str,
        unit: str = "",
        apart: bool = False,
    ) -> None:
        self.lanes, self.made = list(lanes), 0
        self._events, self._what, self._unit = events, what, unit
        self._loaded: list[Arm[Item, Value]] = []
        num_bytes = {id(lane.arm.engine): lane.arm.num_bytes for lane in lanes}
        is_short = sum(num_bytes.values()) > MEMORY_SHARE * memory().available
        self.one_at_a_time = len(num_bytes) > 1 and (apart or is_short)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for arm in (*self._loaded, *(lane.arm for lane in self.lanes)):
            arm.close()

    def measure(self, lane: Lane[Item, Value], places: Iterable[int]) -> None:
        """Measure what is missing of a lane's items. Raises ArmFailed, and ResourceError when the disk is full."""
        missing, arm = lane.missing(places), lane.arm
        for begin in range(0, len(missing), arm.at_once):
            group = missing[begin : begin + arm.at_once]
            try:
                self._load(arm)
                began = time.monotonic()
                values = arm.measure_all([lane.items[place] for place in group])
                seconds = time.monotonic() - began
            except SettleError as e:
                raise ArmFailed(arm.name, e) from e
            self.made += len(group)
            lane.pace.record(len(group), seconds)
            lane.record.add(dict(zip((lane.keys[place] for place in group), values, strict=True)))
            self._show(arm.name)

    def seconds_left(self) -> Interval | None:
        """Forecast the time that all wanted items take which are not measured yet."""
        return seconds_left([lane.pace for lane in self.lanes], [len(lane.missing(lane.wanted)) for lane in self.lanes])

    def remove(self, lane: Lane[Item, Value]) -> None:
        """Measure a lane no more; unload its arm, unless another lane needs what it loaded."""
        self.lanes = [other for other in self.lanes if other is not lane]
        if all(other.arm.engine is not lane.arm.engine for other in self.lanes):
            self._close(lane.arm)

    def _load(self, arm: Arm[Item, Value]) -> None:
        if any(other.engine is arm.engine for other in self._loaded):
            return
        if self.one_at_a_time:
            for other in list(self._loaded):
                self._close(other)
        self._show(arm.name, "making ready")
        arm.load()
        self._loaded.append(arm)

    def _close(self, arm: Arm[Item, Value]) -> None:
        self._loaded = [other for other in self._loaded if other.engine is not arm.engine]
        arm.close()

    def _show(self, name: str, what: str | None = None) -> None:
        """Emit how far it is, were all that is wanted to be measured."""
        total = sum(len(lane.wanted) for lane in self.lanes)
        left, missing = self.seconds_left(), sum(len(lane.missing(lane.wanted)) for lane in self.lanes)
        self._events.emit(
            Progress(
                what=what or self._what,
                done=total - missing,
                total=total,
                unit=self._unit,
                detail=name,
                seconds_left=left.value if left and not what else None,
            )
        )


# --- a race ---

Score = Callable[[Reply, Case], float]
CaseLane = Lane[Case, Reply]


@dataclass(frozen=True)
class Finished:
    """The end of a race."""

    outcome: Outcome | None  # of the arms that did not fail, in their order; None where all of them did
    replies: Sequence[Mapping[int, Reply]]  # of each of those, by row
    failures: Mapping[str, SettleError]  # of the others, by name
    forecast: Interval | None  # of the seconds, made before any answer, or after the first where nothing was known
    seconds: float  # that it took
    made: int  # answers that were not known before


def run_race(
    arms: Sequence[Arm[Case, Reply]],
    cases: Sequence[Case],
    race: Callable[[Sequence[str]], Race],
    score: Score,
    events: Events,
) -> Finished:
    """Ask arms of different names the same cases until the race is over.

    An arm that fails is reported, and the others continue as if it had never been there. race: made of the names; it
    says who is still asked, and what the scores show. score: of a reply, more is better. Raises KeyboardInterrupt when
    it is stopped: what was answered is kept. Raises ResourceError when the disk is full.
    """
    began = time.monotonic()
    return _RaceRun(arms, cases, race, score, events).finish(began)


class _RaceRun:
    """A race in the middle. lanes: of the arms that have not failed."""

    def __init__(
        self,
        arms: Sequence[Arm[Case, Reply]],
        cases: Sequence[Case],
        race: Callable[[Sequence[str]], Race],
        score: Score,
        events: Events,
    ) -> None:
        records = {arm.key: ReplyRecord(arm.key) for arm in arms}
        self.lanes = [CaseLane(arm, records[arm.key], ArmPace(arm.seconds or records[arm.key].seconds)) for arm in arms]
        self._cases, self._new_race, self._score, self._events = cases, race, score, events
        self._runner = Runner(self.lanes, events, "answers")
        self._scores: dict[tuple[str, int], float] = {}
        self._failures: dict[str, SettleError] = {}
        self._forecast: Interval | None = None

    def finish(self, began: float) -> Finished:
        race = None
        with self._runner:
            self._prepare()
            self._say_forecast()
            while self.lanes and race is None:
                try:
                    race = self._raced(self._new_race([lane.arm.name for lane in self.lanes]))
                except ArmFailed as e:  # the race begins anew without it; what was answered is known
                    self._fail(e.arm, e.error)
        outcome = race.outcome() if race else None
        asked = sum(outcome.asked) if outcome else 0
        self._events.emit(Progress(what="answers", done=asked, total=asked))
        rows = [[row for row in range(len(self._cases)) if (lane.arm.name, row) in self._scores] for lane in self.lanes]
        return Finished(
            outcome=outcome,
            replies=[{row: lane.value(row) for row in of} for lane, of in zip(self.lanes, rows, strict=True)],
            failures=self._failures,
            forecast=self._forecast,
            seconds=time.monotonic() - began,
            made=self._runner.made,
        )

    def _prepare(self) -> None:
        """Make the questions as each arm is asked them; an arm that cannot be asked has failed."""
        for lane in list(self.lanes):
            try:
                lane.items = [lane.arm.asked(case) for case in self._cases]
            except SettleError as e:
                self._fail(lane.arm.name, e)
                continue
            lane.keys, lane.wanted = [question_key(case) for case in lane.items], range(len(self._cases))

    def _raced(self, race: Race) -> Race:
        """Run a race to its end. Raises ArmFailed."""
        self._runner.lanes, turn = list(self.lanes), 0
        while rows := race.next_rows(self._number_of_rows(turn)):
            scores = {}
            for k in in_turn(race.left, turn):
                self._runner.measure(self.lanes[k], rows)
                scores[k] = [self._scored(self.lanes[k], row) for row in rows]
            if self._forecast is None:
                self._say_forecast()
            for worse in race.record(scores):
                self._runner.remove(self.lanes[worse])
                self._events.emit(Say(text=f"{race.names[worse]} is shown to be worse, and is asked no more"))
            turn += 1
        return race

    def _scored(self, lane: CaseLane, row: int) -> float:
        key = lane.arm.name, row
        if key not in self._scores:
            self._scores[key] = self._score(lane.value(row), self._cases[row])
        return self._scores[key]

    def _fail(self, name: str, error: SettleError) -> None:
        (failed,) = (lane for lane in self.lanes if lane.arm.name == name)
        self.lanes.remove(failed)
        self._runner.remove(failed)
        self._failures[name] = error
        self._events.emit(Warn(text=f"{name} failed, and the others go on: {error.what.splitlines()[0]}"))

    def _number_of_rows(self, turn: int) -> int:
        if self._runner.one_at_a_time:
            return max(FIRST, math.ceil(len(self._cases) / TURNS))
        return NEXT if turn else FIRST

    def _say_forecast(self) -> None:
        """Say the time that is needed at most, as soon as anything is known of it."""
        self._forecast = self._runner.seconds_left()
        if self._forecast is not None:
            value, low, high = map(duration, self._forecast.ends)
            known = sum(len(lane.wanted) - len(lane.missing(lane.wanted)) for lane in self.lanes)
            text = f"answering takes {value} at most (80 %: {low} to {high})"
            self._events.emit(Say(text=text + (f"; {known} answers are known already" if known else "")))


# --- two arms ---

SAID_SECONDS, SAID_TIMES = 10.0, 1.5  # from which, and times as much or as little, a time is said anew


class _Guards(Arm[Measured, float]):
    """The guard of an arm, as an arm that shares what it loads."""

    def __init__(self, arm: GuardedArm) -> None:
        self._arm, self.name, self.num_bytes = arm, arm.name, arm.num_bytes

    @property
    def engine(self) -> object:
        return self._arm.engine

    def load(self) -> None:
        self._arm.load()

    def measure(self, item: Measured) -> float:
        return self._arm.guard(item)

    def close(self) -> None:
        self._arm.close()


def prove(design: TwoArms, path: Path, events: Events) -> Proof:
    """Measure both arms and compare them; what the file at `path` holds is not measured again.

    Raises ResourceError when the disk is full.
    """
    began = time.monotonic()
    run = _ProofRun(design, path, events)
    state: State = "likely"
    effect = retest = guards = None
    failed: dict[str, str] = {}
    with run.runner:
        try:
            effect = run.analysed("proof", design.least_effect)
            state = design.state(effect)
            if state == "proven":
                retest = run.analysed("retest", RETESTED * design.least_effect)
                guards = run.guarded() if design.guards else None
        except ArmFailed as e:
            state, effect, retest, failed = "likely", None, None, {e.arm: str(e.error)}
    holds = retest is not None and is_shown(retest, RETESTED * design.least_effect)
    harms = guards is not None and design.is_harm(guards)
    return Proof(state, effect, retest, guards, holds, harms, time.monotonic() - began, failed)


class _ProofRun:
    """The lanes of an A/B: the items of each part, on both sides."""

    def __init__(self, design: TwoArms, path: Path, events: Events) -> None:
        self._design, self._events, self._is_said = design, events, False
        sides = {"before": design.before, "after": design.after}
        paces = {side: ArmPace() for side in sides}  # what was expected is a guess
        guards = {side: _Guards(arm) for side, arm in sides.items()}

        def lanes(
            part: str, items: Sequence[Measured], arms: Mapping[str, Arm[Measured, float]], first: int
        ) -> list[Lane[Measured, float]]:
            keys = [str(place) for place in range(len(items))]
            return [
                Lane(arm, ProofRecord(path, part, side), paces[side], items, keys, range(first))
                for side, arm in arms.items()
            ]

        self.lanes = {
            "proof": lanes("proof", design.items, sides, analyses(len(design.items))[0][0]),
            "retest": lanes("retest", design.others, sides, analyses(len(design.others))[0][0]),
            "guard": lanes("guard", design.guards, guards, len(design.guards)),
        }
        every = [lane for pair in self.lanes.values() for lane in pair]
        self.runner = Runner(every, events, "A/B", "measurements", design.apart)

    def analysed(self, part: str, least: float) -> PairedTest:
        """Return the test of the first analysis that shows the change, or of the last. Raises ArmFailed."""
        seen = 0
        for number, enough in analyses(len(self.lanes[part][0].items)):
            test = self._design.analysed(*self._measured(part, seen, number), enough)
            seen = number
            if is_shown(test, least):
                break
        return test

    def guarded(self) -> PairedTest:
        """Return the test of what must not get worse. Raises ArmFailed."""
        return guard_test(*self._measured("guard", 0, len(self._design.guards)))

    def _measured(self, part: str, seen: int, number: int) -> tuple[list[float], list[float]]:
        """Return the values of both sides, of the first `number` items. seen: those that an earlier analysis had.

        Sides take turns by single items where times are compared, else by halves, which load a model least often.
        """
        lanes = self.lanes[part]
        for lane in lanes:
            lane.wanted = range(max(number, len(lane.wanted)))
        size = 1 if self._design.timed else -(-(number - seen) // 2)
        for turn, first in enumerate(range(seen, number, size)):
            for lane in in_turn(lanes, turn):
                self.runner.measure(lane, range(first, min(first + size, number)))
                self._say_other_forecast()
        before, after = ([lane.value(place) for place in range(number)] for lane in lanes)
        return before, after

    def _say_other_forecast(self) -> None:
        """Say the time anew, once both sides were measured, where it is not what was expected."""
        left = self.runner.seconds_left()
        if self._is_said or left is None or any(lane.pace.estimate is None for lane in self.lanes["proof"]):
            return
        self._is_said = True
        expected = self._design.seconds * sum(len(lane.missing(lane.wanted)) for lane in self.runner.lanes)
        is_other = not expected / SAID_TIMES < left.value < expected * SAID_TIMES
        if max(left.value, expected) > SAID_SECONDS and is_other:
            self._events.emit(Say(text=f"by the first measurements it is {duration(left.value)} more at most"))

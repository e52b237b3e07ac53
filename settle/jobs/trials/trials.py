"""The runner: arms answer the same rows in turns, forwards and then backwards; what was answered is asked no more.

A machine that is busy for a while slows all arms down alike (A B, B A, A B …). An arm that fails is reported, and the
others go on as if it had never been there. After a Ctrl-C the same call continues where it was.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Progress, Say, Warn
from settle.base.statistics import Interval
from settle.evaluate.compare.cases import Case
from settle.evaluate.compare.race import Outcome, Race
from settle.jobs.trials.arm import Arm, Reply, as_reply, digest, question_key
from settle.jobs.trials.pace import Pace, seconds_left, time_text
from settle.jobs.trials.reply_store import ReplyStore
from settle.machine import memory

FIRST, NEXT = 8, 4  # rows that everybody answers before the first look, and between two looks
TURNS = 4  # that each arm has where memory holds one at a time: A B, B A, A B, B A loads each hardly more than twice
MEMORY_SHARE = 0.8  # of what is free, for all arms together
Score = Callable[[Reply, Case], float]


@dataclass(frozen=True)
class Finished:
    """What a trial came to. outcome: of the arms that did not fail, in their order; None where all of them did.
    replies: of each of those, by row. failures: of the others, by name. forecast: of the seconds, told before any
    answer was made (or after the first, where nothing was known). seconds: that it took. made: answers that were not
    known before."""

    outcome: Outcome | None
    replies: Sequence[Mapping[int, Reply]]
    failures: Mapping[str, SettleError]
    forecast: Interval | None
    seconds: float
    made: int


@dataclass
class _Side:
    """An arm in the middle of a trial, the questions as it is really asked them, and what came of them, by row."""

    arm: Arm
    store: ReplyStore
    pace: Pace = field(default_factory=Pace)
    asked: Sequence[Case] = ()
    keys: Sequence[str] = ()
    scores: dict[int, float] = field(default_factory=dict)

    def reply(self, row: int) -> Reply | None:
        return self.store.get(self.keys[row])

    def missing(self, rows: Iterable[int]) -> list[int]:
        return [row for row in rows if self.reply(row) is None]


class _Failed(Exception):
    """An arm could not answer."""


class Trials:
    """Asks arms of different names. race: made of their names; it says who is still asked, and what the scores show.
    score: of a reply, more is better."""

    def __init__(
        self,
        arms: Sequence[Arm],
        cases: Sequence[Case],
        race: Callable[[Sequence[str]], Race],
        score: Score,
        events: Events,
    ) -> None:
        stores = {arm.key: ReplyStore(digest(arm.key)) for arm in arms}
        self._sides = [_Side(arm, stores[arm.key]) for arm in arms]
        for side in self._sides:
            side.pace = Pace(side.arm.seconds or side.store.seconds)
        self._cases, self._new_race, self._score, self._events = cases, race, score, events
        self._failures: dict[str, SettleError] = {}
        self._forecast: Interval | None = None
        self._made = 0
        loaded = {side.arm.engine: side.arm.num_bytes for side in self._sides}
        self._one_at_a_time = len(loaded) > 1 and sum(loaded.values()) > MEMORY_SHARE * memory().available

    def run(self) -> Finished:
        """Asks until the race is over. Raises KeyboardInterrupt when it is stopped: what was answered is kept. Raises
        ResourceError when the disk is full."""
        began = time.monotonic()
        with _unloaded([side.arm for side in self._sides]):
            self._ask_all()
            self._say_forecast()
            race = None
            while self._going and race is None:
                with contextlib.suppress(_Failed):  # the race begins anew without it; what was answered is known
                    race = self._raced(self._new_race([side.arm.name for side in self._going]))
        outcome = race.outcome() if race else None
        asked = sum(outcome.asked) if outcome else 0
        self._events.emit(Progress(what="answers", done=asked, total=asked))
        return Finished(
            outcome=outcome,
            replies=[{row: r for row in side.scores if (r := side.reply(row))} for side in self._going],
            failures=self._failures,
            forecast=self._forecast,
            seconds=time.monotonic() - began,
            made=self._made,
        )

    @property
    def _going(self) -> list[_Side]:
        """Those that have not failed."""
        return [side for side in self._sides if side.arm.name not in self._failures]

    def _ask_all(self) -> None:
        """The questions as each arm is asked them; an arm that cannot be asked has failed."""
        for side in self._sides:
            try:
                side.asked = [side.arm.asked(case) for case in self._cases]
                side.keys = [question_key(case) for case in side.asked]
            except SettleError as e:
                self._fail(side, e)

    def _raced(self, race: Race) -> Race:
        """A race run to its end. Raises _Failed."""
        sides, turn = self._going, 0
        while rows := race.next_rows(self._number_of_rows(turn)):
            left = [sides[k] for k in race.left]
            scores = {}
            for k in race.left if turn % 2 == 0 else race.left[::-1]:
                self._answer(sides[k], rows, left)
                scores[k] = [self._scored(sides[k], row) for row in rows]
            if self._forecast is None:
                self._say_forecast()
            for worse in race.record(scores):
                self._unload(sides[worse], [sides[k] for k in race.left])
                self._events.emit(Say(text=f"{race.names[worse]} is shown to be worse, and is asked no more"))
            turn += 1
        return race

    def _answer(self, side: _Side, rows: Sequence[int], left: Sequence[_Side]) -> None:
        """Makes what is missing of an arm's answers. Raises _Failed."""
        missing = list({side.keys[row]: row for row in side.missing(rows)}.values())
        for begin in range(0, len(missing), side.arm.at_once):
            group = missing[begin : begin + side.arm.at_once]
            try:
                self._load(side)
                started = time.monotonic()
                answers = side.arm.make([side.asked[row] for row in group])
                seconds = time.monotonic() - started
            except SettleError as e:
                self._fail(side, e)
                raise _Failed from e
            self._made += len(group)
            side.pace.record(len(group), seconds)
            replies = [as_reply(answer, seconds / len(group)) for answer in answers]
            side.store.add([side.keys[row] for row in group], replies)
            self._show(side, left)

    def _scored(self, side: _Side, row: int) -> float:
        if row not in side.scores:
            reply = side.reply(row)
            assert reply is not None
            side.scores[row] = self._score(reply, self._cases[row])
        return side.scores[row]

    def _fail(self, side: _Side, error: SettleError) -> None:
        self._failures[side.arm.name] = error
        self._unload(side, self._going)
        text = f"{side.arm.name} failed, and the others go on: {error.what.splitlines()[0]}"
        self._events.emit(Warn(text=text))

    def _load(self, side: _Side) -> None:
        if self._one_at_a_time:
            for other in self._sides:
                if other.arm.engine is not side.arm.engine:
                    other.arm.close()
        side.arm.load()

    def _unload(self, side: _Side, others: Sequence[_Side]) -> None:
        """Unloads an arm, unless another one that is still asked needs what it loaded."""
        if all(other.arm.engine is not side.arm.engine for other in others):
            side.arm.close()

    def _number_of_rows(self, turn: int) -> int:
        if self._one_at_a_time:
            return max(FIRST, math.ceil(len(self._cases) / TURNS))
        return NEXT if turn else FIRST

    def _say_forecast(self) -> None:
        """The time that is needed at most, as soon as anything is known of it."""
        sides, rows = self._going, len(self._cases)
        missing = [len(side.missing(range(rows))) for side in sides]
        self._forecast = seconds_left([side.pace for side in sides], missing)
        if self._forecast is not None:
            value, low, high = map(time_text, self._forecast.ends)
            known = rows * len(sides) - sum(missing)
            text = f"answering takes {value} at most (80 %: {low} to {high})"
            self._events.emit(Say(text=text + (f"; {known} answers are known already" if known else "")))

    def _show(self, side: _Side, left: Sequence[_Side]) -> None:
        """How far it is, were nobody to drop out any more."""
        missing = [len(other.missing(range(len(self._cases)))) for other in left]
        expected = seconds_left([other.pace for other in left], missing)
        total = len(left) * len(self._cases)
        self._events.emit(
            Progress(
                what="answers",
                done=total - sum(missing),
                total=total,
                detail=side.arm.name,
                seconds_left=expected.value if expected else None,
            )
        )


@contextlib.contextmanager
def _unloaded(arms: Sequence[Arm]) -> Iterator[None]:
    """Unloads all of them at the end, whatever happens."""
    try:
        yield
    finally:
        for arm in arms:
            arm.close()

"""The events of a run as they are written: read once for all tabs that watch it, and only what is new."""

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from settle.base import events as kinds
from settle.base.errors import RunError, SettleError
from settle.base.event_log import parse_record, to_event
from settle.base.events import Event
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.words.amounts import number
from settle.base.words.sentences import PHASES, event_lines

MOST_POINTS = 1000  # of a curve: the lowest and the highest of every stretch, so spikes stay
DIGITS = 6  # significant, of what is sent


class Point(NamedTuple):
    """Where on the x axis, by each of its measures, and the value with its interval where there is one."""

    step: int
    tokens: int
    seconds: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class Curve:
    """A curve, whose points are added in the order of their steps.

    One that repeats a step takes back what came after it, as a run does that was rolled back. generation: changes when
    points were taken back that `shown` has given before.
    """

    generation: int = 0
    latest_step: int = -1  # where there is no point
    _closed: list[Point] = field(default_factory=list)
    _open: list[Point] = field(default_factory=list)  # lowest, highest and latest of the stretch that is not full
    _width: int = 1  # points that a stretch stands for
    _count: int = 0

    def add(self, point: Point) -> None:
        """Add a point; a value that is no finite number is not drawn."""
        if not math.isfinite(point.value):
            return
        if self.latest_step >= point.step:
            self._take_back(point.step)
        self.latest_step = point.step
        low, high, _ = self._open or (point, point, point)
        if point.value < low.value:
            low = point
        elif point.value > high.value:
            high = point
        self._open, self._count = [low, high, point], self._count + 1
        if self._count >= self._width:
            self._closed += sorted({low, high})
            self._open, self._count = [], 0
            if len(self._closed) > MOST_POINTS - 3:
                self._halve()

    def shown(self, start: int = 0) -> list[list[float | None]]:
        """Return the points from number `start` on, as JSON has them."""
        points = [*self._closed[start:], *sorted(set(self._open))]
        return [[None if v is None or not math.isfinite(v) else _short(v) for v in point] for point in points]

    @property
    def num_closed(self) -> int:
        """Points that stay as they are while the generation does."""
        return len(self._closed)

    def until(self, step: int) -> Point | None:
        """Return the last point up to a step, of those that are left."""
        return max((point for point in (*self._closed, *self._open) if point.step <= step), default=None)

    def _take_back(self, step: int) -> None:
        self._open, self._count, self.generation = [], 0, self.generation + 1
        while self._closed and self._closed[-1].step >= step:
            self._closed.pop()

    def _halve(self) -> None:
        groups = [self._closed[i : i + 4] for i in range(0, len(self._closed), 4)]
        self._closed = [p for group in groups for p in sorted({min(group, key=_value), max(group, key=_value)})]
        self._width, self.generation = 2 * self._width, self.generation + 1


def _value(point: Point) -> float:
    return point.value


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


PIECE_BYTES = 256 << 10  # read at a time
MOST_LINES, MOST_SAMPLES = 300, 40  # of events in words, and of what the model wrote, that are kept
MOST_JUDGED = 50  # latest evaluations that are kept whole; the curves have all
PACE_LINES = 256  # latest lines whose steps tell the pace
STATUS_SECONDS = 2.0  # between two looks at the lock

USAGE_CURVES = ("memory", "power")
STEP_CURVES = {"training": "loss", "learning rate": "lr", "tokens/s": "tokens_per_second"}  # the field of each


class Line(NamedTuple):
    """An event in words: when it happened, in epoch seconds, and whether it is good or bad news."""

    time: float
    text: str
    tone: str


class RunFeed:
    """What is known of a run from its events so far. Of every tab that watches a run it is the same one.

    version: grows when something was read; anew: how often the file was begun again, since another took its place.
    """

    _open: "WeakValueDictionary[Path, RunFeed]" = WeakValueDictionary()

    def __init__(self, run: Run) -> None:
        self.run, self.anew = run, 0
        self._reading = asyncio.Lock()
        self._status, self._status_at = "", 0.0
        self._begin()

    @classmethod
    def of(cls, run: Run) -> "RunFeed":
        feed = cls._open.get(run.path)
        if feed is None:
            feed = cls._open[run.path] = cls(run)
        feed.run = run  # which may have another name since
        return feed

    async def update(self) -> None:
        """Read what was written since. Raises RunError when a newer settle wrote it, and when the run is gone."""
        async with self._reading:
            while await asyncio.to_thread(self._read_piece):
                pass

    async def status(self) -> str:
        """finished, running, interrupted, or deleted."""
        if time.monotonic() - self._status_at > STATUS_SECONDS or not self._status:
            self._status = await asyncio.to_thread(self._look)
            self._status_at = time.monotonic()
        return self._status

    def look_again(self) -> None:
        """Forget the status: it has changed, most likely."""
        self._status_at = -STATUS_SECONDS

    def _look(self) -> str:
        return self.run.status if self.run.path.is_dir() else "deleted"

    def _begin(self) -> None:
        self.version = self._offset = self._inode = 0
        self.curves = {name: Curve() for name in ("held-out", "bits per byte", "forecast", *STEP_CURVES, *USAGE_CURVES)}
        self.course = RunCourse(keep_steps=False)
        self.lines: deque[Line] = deque(maxlen=MOST_LINES)
        self.samples: list[kinds.Sample] = []
        self.data: kinds.TextSummary | kinds.RowSummary | None = None
        self.usage: kinds.Usage | None = None  # the latest
        self.last_time: float | None = None
        self.seconds = 0.0  # of work, in all sessions
        self._expected = self._forecast()

    def _forecast(self) -> tuple[float, float, float] | None:
        """Return the loss at the end and its interval, as the run was planned; None where that was not said."""
        try:
            loss = (self.run.read("forecast.json") or {})["loss"]
            value, low, high = (number(loss[key]) for key in ("value", "low", "high"))
        except (SettleError, KeyError, TypeError):
            return None
        return None if value is None or low is None or high is None else (value, low, high)

    def _read_piece(self) -> bool:
        """Read the next piece, and return whether there may be more."""
        try:
            with self.run.events.open("rb") as f:
                self._begin_again_if_replaced(f.fileno())
                f.seek(self._offset)
                piece = f.read(PIECE_BYTES)
        except FileNotFoundError:
            return False
        end = piece.rfind(b"\n") + 1  # what follows is still being written
        lines = piece[:end].splitlines()
        for place, line in enumerate(lines):
            self._add(line, len(lines) - place <= PACE_LINES)
        self._offset += end
        self.version += bool(lines)
        return len(piece) == PIECE_BYTES and end > 0

    def _begin_again_if_replaced(self, fd: int) -> None:
        state = os.fstat(fd)
        if self._offset and (state.st_size < self._offset or state.st_ino != self._inode):
            self._begin()
            self.anew += 1
        self._inode = state.st_ino

    def _add(self, line: bytes, is_late: bool) -> None:
        record = parse_record(line)
        if record is None:
            return
        self._note_time(record)
        if record["kind"] == "step":
            self._add_step(record)
            if not is_late:
                return  # a run may have many, and only the latest tell its pace
        event = to_event(record)
        if event is None:
            return
        self.course.add(event)
        for latest in (self.course.evals, self.course.judgements, self.course.forecasts):
            del latest[:-MOST_JUDGED]
        match event:
            case kinds.Opened() if event.version > kinds.VERSION:
                raise RunError(f"settle {event.settle} wrote {self.run.name}", "pip install --upgrade settle-lm")
            case kinds.Eval() if not event.whole:
                error = event.stderr if math.isfinite(event.stderr) else 0.0
                self._point("held-out", event.step, event.tokens, event.loss, event.loss - error, event.loss + error)
                if event.bits_per_byte is not None and event.loss:
                    bits, error = event.bits_per_byte, error * event.bits_per_byte / event.loss
                    self._point("bits per byte", event.step, event.tokens, bits, bits - error, bits + error)
                if self._expected is not None:
                    self._point("forecast", event.step, event.tokens, *self._expected)
            case kinds.LossForecast():
                self._expected = event.loss, event.low, event.high
                self._point("forecast", event.step, event.tokens, *self._expected)
            case kinds.Usage():
                self.usage = event
                self._point("memory", event.step, event.tokens, event.memory / 1e9)
                if event.watts is not None:
                    self._point("power", event.step, event.tokens, event.watts)
            case kinds.Sample():
                self.samples = [*self.samples[-MOST_SAMPLES + 1 :], event]
            case kinds.TextSummary() | kinds.RowSummary():
                self.data = event
        for text, tone in _lines(event):
            self.lines.append(Line(event.time, text, tone))

    def _note_time(self, record: Mapping[str, object]) -> None:
        """Seconds of work: the pause before a session is none."""
        at = number(record.get("time"))
        if at is not None and self.last_time is not None and record["kind"] != "opened":
            self.seconds += max(0.0, at - self.last_time)
        self.last_time = at if at is not None else self.last_time

    def _add_step(self, record: Mapping[str, object]) -> None:
        step, tokens = number(record.get("step")), number(record.get("tokens"))
        if step is None or tokens is None:
            return
        for name, key in STEP_CURVES.items():
            if (value := number(record.get(key))) is not None:
                self._point(name, int(step), int(tokens), value)

    def _point(self, name: str, step: int, tokens: int, value: float, *interval: float) -> None:
        self.curves[name].add(Point(step, tokens, self.seconds, value, *interval))


def _lines(event: Event) -> Iterator[tuple[str, str]]:
    """(text, tone) of what is said of an event; figures and curves show the rest."""
    match event:
        case kinds.PhaseStarted() if event.phase in PHASES:
            yield f"stage: {PHASES[event.phase]}", "dim"
        case kinds.RunFailed():
            yield f"{event.what} → {event.fix}" if event.fix else event.what, "bad"
        case kinds.ProofCheck() | kinds.GateCheck():
            detail = f" – {event.detail}" if event.detail else ""
            yield f"{event.kind}: {event.check}{detail}", "good" if event.passed else "bad"
        case _:
            yield from event_lines(event)

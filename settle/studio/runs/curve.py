"""A curve of any length as at most a thousand points: the lowest and the highest of every stretch, so spikes stay."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

MOST_POINTS = 1000
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

"""The size at which a figure that falls with the size reaches what is wanted, in few measurements.

Both a file's loss of quality and its speed fall as it grows, so either budget is one search.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BEYOND = 0.9  # minimum distance between two measurements, as a share of the tolerance


@dataclass(frozen=True)
class Size:
    """A file that was measured. value: what was measured of it, above 0."""

    num_bytes: int
    value: float


@dataclass(frozen=True)
class SizeRange:
    """What was measured, by size; the largest file whose value is above what is wanted, and the smallest at or below
    it. One of them is None where no size is on that side."""

    points: tuple[Size, ...]
    above: Size | None
    within: Size | None


def find_size(
    measure: Callable[[int], Size],
    smallest: int,
    largest: int,
    wanted: float,
    guess: int | None = None,
    tolerance: float = 0.01,
    most: int = 8,
) -> SizeRange:
    """Where the value passes `wanted` between two sizes in bytes.

    measure: size → the file that comes nearest to it, and its value; it may be larger or smaller than asked. guess: a
    size to begin with. Ends when both sides of the crossing are within `tolerance` of each other, relative, when
    nothing new comes of a measurement, or after `most` of them.
    """
    points: dict[int, Size] = {}
    size = min(max(guess or round(math.sqrt(smallest * largest)), smallest), largest)
    for _ in range(most):
        point = measure(size)
        is_new = point.num_bytes not in points
        points[point.num_bytes] = point
        sides = _sides(points, wanted)
        if sides.above and sides.within:
            low, high = sides.above.num_bytes, sides.within.num_bytes
            if high <= low * (1 + tolerance):
                break
            before, size = size, _between(sides.above, sides.within, wanted, tolerance) if is_new else (low + high) // 2
        else:  # all on one side: the other end decides whether there is a crossing at all
            before, size = size, smallest if sides.within else largest
        if size == before:
            break
    return _sides(points, wanted)


def _sides(points: dict[int, Size], wanted: float) -> SizeRange:
    ordered = tuple(sorted(points.values(), key=lambda p: p.num_bytes))
    within = _first(ordered, wanted)
    below = [p for p in ordered if p.value > wanted and (within is None or p.num_bytes < within.num_bytes)]
    return SizeRange(ordered, below[-1] if below else None, within)


def _first(ordered: Sequence[Size], wanted: float) -> Size | None:
    """The smallest file at or below `wanted` whose larger ones are all so too: noise must not make a small one pass."""
    first = None
    for point in reversed(ordered):
        if point.value > wanted:
            break
        first = point
    return first


def _between(above: Size, within: Size, wanted: float, tolerance: float) -> int:
    """Where the logarithm of the value, a straight line between the two, is that of `wanted`. Near an end it is a
    little beyond, so that the two come to lie on both sides of the crossing."""
    start, end = above.num_bytes, within.num_bytes
    high, low = (math.log(max(value, 1e-12)) for value in (above.value, within.value))
    share = (high - math.log(max(wanted, 1e-12))) / (high - low) if high > low else 0.5
    step = max(1.0, BEYOND * tolerance * start)
    size = min(max(start + share * (end - start), start + step), end - step)
    return round(size) if start < size < end else (start + end) // 2

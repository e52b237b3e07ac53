"""From a budget to a file: candidates are made, measured and compared until one is the best within it.

A budget is a size, a speed or a loss. The quantizer chooses a type for every tensor; llama.cpp's own mixes are the
rivals, since a choice that is not measured against them is only a claim.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from settle.base.errors import ResourceError
from settle.base.words.amounts import amount
from settle.shrink.candidates import Candidates, ShrinkCandidate, ThroughputModel
from settle.shrink.types.mixes import QUANTIZED_MIXES

MOST_MEASURED = 8  # files of one search
SIZE_TOLERANCE = 0.01  # relative difference below which a search takes two sizes as equal
SMALLEST_LOSS_SHARE = 1e-6  # used for a loss of 0, as searches work with logarithms


BEYOND = 0.9  # minimum distance between two measurements, as a share of the tolerance


@dataclass(frozen=True)
class SearchedSize:
    """A file that was measured. value: what was measured of it, above 0."""

    num_bytes: int
    value: float


@dataclass(frozen=True)
class SizeRange:
    """What was measured, by size.

    The largest file whose value is above what is wanted, and the smallest at or below it. One of them is None where no
    size is on that side.
    """

    points: tuple[SearchedSize, ...]
    above: SearchedSize | None
    within: SearchedSize | None


def find_size(
    measure: Callable[[int], SearchedSize],
    smallest: int,
    largest: int,
    wanted: float,
    guess: int | None = None,
    tolerance: float = 0.01,
    most: int = 8,
) -> SizeRange:
    """Find where the value passes `wanted` between two sizes in bytes, in few measurements.

    Both a file's loss of quality and its speed fall as it grows, so either budget is one search.

    measure: size → the file that comes nearest to it, and its value; it may be larger or smaller than asked. guess: a
    size to begin with. Ends when both sides of the crossing are within `tolerance` of each other, relative, when
    nothing new comes of a measurement, or after `most` of them.
    """
    points: dict[int, SearchedSize] = {}
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


def _sides(points: dict[int, SearchedSize], wanted: float) -> SizeRange:
    ordered = tuple(sorted(points.values(), key=lambda p: p.num_bytes))
    within = _first(ordered, wanted)
    below = [p for p in ordered if p.value > wanted and (within is None or p.num_bytes < within.num_bytes)]
    return SizeRange(ordered, below[-1] if below else None, within)


def _first(ordered: Sequence[SearchedSize], wanted: float) -> SearchedSize | None:
    """Return the smallest file at or below `wanted` whose larger ones are too: noise must not make a small one pass."""
    first = None
    for point in reversed(ordered):
        if point.value > wanted:
            break
        first = point
    return first


def _between(above: SearchedSize, within: SearchedSize, wanted: float, tolerance: float) -> int:
    """Return the size where the logarithm of the value, a straight line between the two, is that of `wanted`.

    Near an end it is a little beyond, so that the two come to lie on both sides of the crossing.
    """
    start, end = above.num_bytes, within.num_bytes
    high, low = (math.log(max(value, 1e-12)) for value in (above.value, within.value))
    share = (high - math.log(max(wanted, 1e-12))) / (high - low) if high > low else 0.5
    step = max(1.0, BEYOND * tolerance * start)
    size = min(max(start + share * (end - start), start + step), end - step)
    return round(size) if start < size < end else (start + end) // 2


def best_within_size(candidates: Candidates, num_bytes: int) -> ShrinkCandidate:
    """Return the best file of at most `num_bytes`. Raises ResourceError, naming the nearest, when there is none."""
    if num_bytes < candidates.smallest:
        raise ResourceError(
            f"no file of {candidates.session.model.source.name} is as small as {amount(num_bytes, 'bytes')}: the "
            f"nearest is {amount(candidates.smallest, 'bytes')}",
            f"--to {math.ceil(candidates.smallest / 1e6)}MB, or prune the model first: `settle distill --help`",
        )
    mixes = [c for c in map(candidates.of_mix, QUANTIZED_MIXES) if c.num_bytes <= num_bytes]
    rival = min(mixes, key=lambda c: c.predicted or 0.0, default=None)
    tried = [candidates.measure(c) for c in (candidates.of_size(num_bytes), rival) if c is not None]
    return min(tried, key=lambda candidate: candidate.measured.kl.value)


def smallest_within_loss(candidates: Candidates, share: float) -> ShrinkCandidate:
    """Return the smallest file that loses at most `share`; see `ShrinkCandidate.loss_share`.

    Raises ResourceError, naming the nearest, when there is none.
    """
    tried: dict[int, ShrinkCandidate] = {}

    def loss_at(num_bytes: int) -> SearchedSize:
        candidate = candidates.measure(candidates.of_size(num_bytes))
        tried[candidate.num_bytes] = candidate
        return SearchedSize(candidate.num_bytes, max(candidate.loss_share, SMALLEST_LOSS_SHARE))

    logprobs = candidates.session.model.likelihoods.came_logprobs
    nats = -share * float(logprobs.mean(dtype=float))
    guess = _crossing(candidates, lambda size: (candidates.of_size(size).predicted or 0.0) > nats)
    result = find_size(loss_at, candidates.smallest, candidates.largest, share, guess, SIZE_TOLERANCE, MOST_MEASURED)
    if result.within is None:
        nearest = tried[max(tried)]
        raise ResourceError(
            f"every file of {candidates.session.model.source.name} loses more than {share:.2%}: the nearest is "
            f"{nearest.name}, {nearest.loss_share:.2%} at worst",
            f"--lose {100 * nearest.loss_share * 1.01:.2g}%, or judge it by more text: the interval becomes narrower",
        )
    return tried[result.within.num_bytes]


def best_at_speed(candidates: Candidates, tokens_per_second: float) -> ShrinkCandidate:
    """Return the best file that writes at least that fast here. Raises ResourceError, naming the nearest."""
    tried: dict[int, ShrinkCandidate] = {}

    def speed_at(num_bytes: int) -> SearchedSize:
        candidate = candidates.time(candidates.of_size(num_bytes))
        assert candidate.footprint is not None
        tried[candidate.num_bytes] = candidate
        return SearchedSize(candidate.num_bytes, candidate.footprint.speed.median)

    first = speed_at((candidates.smallest + candidates.largest) // 2)
    throughput = ThroughputModel.fit([(candidates.bytes_read(tried[first.num_bytes]), first.value)])
    most_bytes = throughput.most_bytes(tokens_per_second)
    guess = _crossing(candidates, lambda size: candidates.bytes_read(candidates.of_size(size)) < most_bytes)
    result = find_size(
        speed_at, candidates.smallest, candidates.largest, tokens_per_second, guess, SIZE_TOLERANCE, MOST_MEASURED
    )
    if result.above is None:
        fastest = max(result.points, key=lambda p: p.value)
        raise ResourceError(
            f"no file of {candidates.session.model.source.name} writes {tokens_per_second:g} tokens a second here: the "
            f"fastest is {tried[fastest.num_bytes].name} with {fastest.value:.1f}",
            f"--speed {math.floor(fastest.value)}, or prune the model first: `settle distill --help`",
        )
    return candidates.measure(tried[_best_of_fast(result.points, result.above, tried)])


def routes(candidates: Candidates) -> list[ShrinkCandidate]:
    """Return every mix, and the quantizer's choice at the size of each, largest first.

    A file comes once, and of choices that differ by less than a percent in size only the smallest.
    """
    mixes = [candidates.of_mix(mix) for mix in QUANTIZED_MIXES]
    sizes = sorted({c.num_bytes for c in mixes})
    own = {name: tensor.dtype for name, tensor in candidates.session.model.file.tensors.items()}
    different: dict[frozenset[tuple[str, str]], ShrinkCandidate] = {}
    choices: list[ShrinkCandidate] = []
    for choice in map(candidates.of_size, sizes):
        if not choices or choice.num_bytes > choices[-1].num_bytes * (1 + SIZE_TOLERANCE):
            choices.append(choice)
    for candidate in [*mixes, *choices]:
        different.setdefault(frozenset((own | dict(candidate.kinds)).items()), candidate)
    return sorted(different.values(), key=lambda c: -c.num_bytes)


def predicted_speeds(
    candidates: Candidates, of: Sequence[ShrinkCandidate], throughput: ThroughputModel
) -> dict[str, float]:
    """Tokens a second of each, by the bytes that a token reads."""
    return {c.name: throughput.tokens_per_second(candidates.bytes_read(c)) for c in of}


def _best_of_fast(points: Sequence[SearchedSize], slowest: SearchedSize, tried: Mapping[int, ShrinkCandidate]) -> int:
    """Return the size of the file that is predicted to lose least among those that are fast enough."""
    fast = [p.num_bytes for p in points if p.value >= slowest.value or p.num_bytes <= slowest.num_bytes]
    return min(fast, key=lambda size: tried[size].predicted or 0.0)


def _crossing(candidates: Candidates, is_small: Callable[[int], bool], steps: int = 12) -> int:
    """Return the size at which `is_small` turns from true to false, by halving."""
    low, high = candidates.smallest, candidates.largest
    for _ in range(steps):
        middle = (low + high) // 2
        low, high = (middle, high) if is_small(middle) else (low, middle)
    return high

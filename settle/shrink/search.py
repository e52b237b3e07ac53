"""From a budget to a file: candidates are made, measured and compared until one is the best within it.

A budget is a type, a size, a speed or a loss. `auto` chooses a type for every tensor by what it costs; llama.cpp's own
mixes are the competitors, since a plan that is not measured against them is only a claim.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from settle.base.errors import ResourceError
from settle.base.events import Say
from settle.evaluate.divergence import Divergence
from settle.evaluate.footprint import Footprint, footprints
from settle.shrink.pareto import Point
from settle.shrink.quantizers import types_of
from settle.shrink.quantizers.auto import Auto
from settle.shrink.quantizers.mixed import Mixed
from settle.shrink.session import Workbench
from settle.shrink.size_search import Found, Size, find_size
from settle.shrink.throughput_model import Pace, bytes_read
from settle.shrink.types.mixes import QUANTIZED_MIXES

MOST_MEASURED = 8  # files of one search
SIZES_APART = 0.01  # of two sizes that a search does not tell apart


@dataclass(frozen=True)
class Candidate:
    """kinds: tensor → type. recipe: llama.cpp's name of the mix, None for `auto`. predicted: nats a token."""

    name: str
    kinds: Mapping[str, str]
    num_bytes: int
    recipe: str | None = None
    predicted: float | None = None
    divergence: Divergence | None = None
    footprint: Footprint | None = None

    def point(self, expected_speed: float | None = None, chosen: bool = False) -> Point:
        """For table and picture: as measured, or as predicted while it is not."""
        d, f = self.divergence, self.footprint
        speed = f.speed.median if f else expected_speed if d is None else None
        return Point(
            name=self.name,
            num_bytes=self.num_bytes,
            kl=max(d.kl.value, 0.0) if d else self.predicted or 0.0,
            low=d.kl.low if d and d.kl.is_bounded else None,
            high=d.kl.high if d and d.kl.is_bounded else None,
            speed=speed,
            same_top=d.same_top.value if d else None,
            rise=d.rise.value if d else None,
            peak_bytes=f.peak_bytes if f else None,
            predicted=d is None and bool(self.predicted),
            chosen=chosen,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.num_bytes,
            "recipe": self.recipe,
            "predicted_kl": self.predicted,
            "divergence": self.divergence and self.divergence.to_json(),
            "footprint": self.footprint and self.footprint.to_json(),
        }


@dataclass
class Shrinking:
    """The search on one workbench. seen: every candidate that was measured, by name."""

    bench: Workbench
    seen: dict[str, Candidate] = field(default_factory=dict)

    # --- candidates ---

    def of_mix(self, recipe: str) -> Candidate:
        """One of llama.cpp's mixes."""
        kinds = types_of(Mixed(recipe=recipe).kinds(self.bench.file, self.bench.importance))
        return self._candidate(recipe, kinds, recipe)

    def of_size(self, num_bytes: int) -> Candidate:
        """`auto`: the types that cost least in a file of at most so many bytes. Raises UsageError when none is so
        small."""
        auto = Auto(table=str(self.bench.table), size=num_bytes)
        return self._candidate("", types_of(auto.kinds(self.bench.file, self.bench.importance)), None)

    def as_it_is(self) -> Candidate:
        """No tensor in another type."""
        return Candidate("as it is", {}, self.bench.file_bytes({}))

    @property
    def smallest(self) -> int:
        """Bytes of the smallest file that `auto` can make."""
        return self._around + sum(min(sizes.values()) for sizes in self.bench.sensitivity.num_bytes.values())

    @property
    def largest(self) -> int:
        return self._around + sum(max(sizes.values()) for sizes in self.bench.sensitivity.num_bytes.values())

    @cached_property
    def _around(self) -> int:
        """Bytes of a file beside the tensors that have a choice."""
        sizes = self.bench.sensitivity.num_bytes
        kinds = {name: min(of, key=of.__getitem__) for name, of in sizes.items()}
        return self.bench.file_bytes(kinds) - sum(min(of.values()) for of in sizes.values())

    def _candidate(self, name: str, kinds: Mapping[str, str], recipe: str | None) -> Candidate:
        size = self.bench.file_bytes(kinds)
        predicted = self.bench.sensitivity.predicted(kinds)
        return Candidate(name or f"auto {size / 1e6:.1f} MB", kinds, size, recipe, predicted)

    # --- measuring ---

    def measured(self, candidate: Candidate) -> Candidate:
        """The candidate with its divergence."""
        if candidate.name not in self.seen:
            with self.bench.candidate(candidate.kinds, "candidate") as path:
                self.seen[candidate.name] = replace(candidate, divergence=self.bench.measure(path))
            self._tell(self.seen[candidate.name])
        return self.seen[candidate.name]

    def timed(self, candidate: Candidate) -> Candidate:
        """The candidate with its footprint."""
        known = self.seen.get(candidate.name, candidate)
        if known.footprint is None:
            with self.bench.candidate(candidate.kinds, "candidate") as path:
                known = replace(known, footprint=footprints([path], threads=self.bench.threads)[0])
        self.seen[candidate.name] = known
        return known

    def _tell(self, candidate: Candidate) -> None:
        d = candidate.divergence
        assert d is not None
        text = f"{candidate.name}: {candidate.num_bytes / 1e6:.1f} MB, KL {d.kl.value:.3g} nats per token"
        self.bench.events.emit(Say(text=f"{text}, the loss changes by {d.rise.value:+.2%}"))

    # --- budgets ---

    def within_size(self, num_bytes: int) -> Candidate:
        """The best file of at most so many bytes. Raises ResourceError, naming the nearest, when there is none."""
        if num_bytes < self.smallest:
            raise ResourceError(
                f"nothing of {self.bench.source.name} is as small as {num_bytes / 1e6:.1f} MB: the nearest is "
                f"{self.smallest / 1e6:.1f} MB",
                f"--to {math.ceil(self.smallest / 1e6)}MB, or prune the model first: `settle distill --help`",
            )
        mixes = [c for c in map(self.of_mix, QUANTIZED_MIXES) if c.num_bytes <= num_bytes]
        rival = min(mixes, key=lambda c: c.predicted or 0.0, default=None)
        return self._best([self.of_size(num_bytes), *([rival] if rival else [])])

    def within_loss(self, share: float) -> Candidate:
        """The smallest file that loses at most `share` (see `lost`). Raises ResourceError, naming the nearest, when
        there is none."""
        tried: dict[int, Candidate] = {}

        def rise(num_bytes: int) -> Size:
            candidate = self.measured(self.of_size(num_bytes))
            tried[candidate.num_bytes] = candidate
            return Size(candidate.num_bytes, max(lost(candidate), 1e-6))

        guess = self._size_of_loss(share * self._reference_loss())
        found = find_size(rise, self.smallest, self.largest, share, guess, SIZES_APART, MOST_MEASURED)
        if found.within is None:
            nearest = tried[max(tried)]
            raise ResourceError(
                f"every file of {self.bench.source.name} loses more than {share:.2%}: the nearest is {nearest.name}, "
                f"{lost(nearest):.2%} at worst",
                f"--lose {100 * lost(nearest) * 1.01:.2g}%, or judge it by more text: the interval becomes narrower",
            )
        return tried[found.within.num_bytes]

    def at_speed(self, tokens_per_second: float) -> Candidate:
        """The best file that writes at least that fast here. Raises ResourceError, naming the nearest."""
        tried: dict[int, Candidate] = {}

        def speed(num_bytes: int) -> Size:
            candidate = self.timed(self.of_size(num_bytes))
            assert candidate.footprint is not None
            tried[candidate.num_bytes] = candidate
            return Size(candidate.num_bytes, candidate.footprint.speed.median)

        first = speed((self.smallest + self.largest) // 2)
        pace = Pace.of([(self.read(tried[first.num_bytes]), first.value)])
        guess = self._size_of_read(pace.most_bytes(tokens_per_second))
        found = find_size(speed, self.smallest, self.largest, tokens_per_second, guess, SIZES_APART, MOST_MEASURED)
        if found.above is None:
            fastest = max(found.points, key=lambda p: p.value)
            raise ResourceError(
                f"no file of {self.bench.source.name} writes {tokens_per_second:g} tokens a second here: the fastest "
                f"is {tried[fastest.num_bytes].name} with {fastest.value:.1f}",
                f"--speed {math.floor(fastest.value)}, or prune the model first: `settle distill --help`",
            )
        return self.measured(tried[_best_at_speed(found, tried)])

    def routes(self) -> list[Candidate]:
        """Every mix, and `auto` at the size of each, largest first; what would be the same file comes once."""
        mixes = [self.of_mix(recipe) for recipe in QUANTIZED_MIXES]
        sizes = sorted({c.num_bytes for c in mixes})
        found: dict[frozenset[tuple[str, str]], Candidate] = {}
        for candidate in [*mixes, *map(self.of_size, sizes)]:
            kinds = {name: tensor.dtype for name, tensor in self.bench.file.tensors.items()} | dict(candidate.kinds)
            found.setdefault(frozenset(kinds.items()), candidate)
        return sorted(found.values(), key=lambda c: -c.num_bytes)

    def read(self, candidate: Candidate) -> int:
        """Bytes that a token reads of it."""
        return bytes_read(self.bench.file, candidate.kinds)

    def _best(self, candidates: Iterable[Candidate]) -> Candidate:
        return min((self.measured(c) for c in candidates), key=_kl)

    def _reference_loss(self) -> float:
        came = self.bench.likelihoods.came_logprobs
        return -float(came.mean(dtype=float))

    def _size_of_loss(self, nats: float) -> int:
        """The size at which `auto` is predicted to cost that much."""
        return _crossing(self.smallest, self.largest, lambda size: (self.of_size(size).predicted or 0.0) > nats)

    def _size_of_read(self, num_bytes: int) -> int:
        return _crossing(self.smallest, self.largest, lambda size: self.read(self.of_size(size)) < num_bytes)


def lost(candidate: Candidate) -> float:
    """What a file loses, as a share of the loss before, at worst within its interval: on the held-out text, or on text
    as the model itself writes it, where a file's loss is larger by the divergence. The second also shows what a model
    loses on a text that it never was good at."""
    d = candidate.divergence
    assert d is not None
    on_text, of_its_own = (f.high if f.is_bounded else f.value for f in (d.rise, d.kl))
    return max(on_text, of_its_own / d.reference_loss, 0.0)


def reference(bench: Workbench, footprint: Footprint | None = None) -> Candidate:
    """The file that all others are compared with."""
    size = Path(bench.whole.source.path).stat().st_size
    most = max(bench.whole.kinds, key=bench.whole.kinds.__getitem__)
    return Candidate(f"{most}, whole" if bench.before else most, {}, size, predicted=0.0, footprint=footprint)


def _best_at_speed(found: Found, tried: Mapping[int, Candidate]) -> int:
    """Of the files that are fast enough, the one that is predicted to lose least."""
    assert found.above is not None
    fast = [p.num_bytes for p in found.points if p.value >= found.above.value or p.num_bytes <= found.above.num_bytes]
    return min(fast, key=lambda size: tried[size].predicted or 0.0)


def _kl(candidate: Candidate) -> float:
    assert candidate.divergence is not None
    return candidate.divergence.kl.value


def _crossing(low: int, high: int, is_small: Callable[[int], bool], steps: int = 12) -> int:
    """Where `is_small` turns from true to false, by halving."""
    for _ in range(steps):
        middle = (low + high) // 2
        low, high = (middle, high) if is_small(middle) else (low, middle)
    return high


def predicted_speeds(shrinking: Shrinking, candidates: Sequence[Candidate], pace: Pace) -> dict[str, float]:
    """Tokens a second of each, by what it reads."""
    return {c.name: pace.tokens_per_second(shrinking.read(c)) for c in candidates}

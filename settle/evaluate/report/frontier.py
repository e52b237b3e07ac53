"""The frontier: what is left of several things when those that another one beats are taken away."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def frontier(things: Sequence[T], figures: Callable[[T], Sequence[float | None]]) -> list[T]:
    """Those that no other one beats, in their order: none is at least as good in every figure, and better in one.

    figures: of one of them, each the better the larger. Where one is None it decides nothing.
    """
    known = [figures(thing) for thing in things]
    return [thing for thing, own in zip(things, known, strict=True) if not any(_beats(other, own) for other in known)]


def _beats(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

"""Which way is enough: the cheapest that is not behind the best by more than a margin, or that nobody can tell yet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from settle.base.statistics import Interval
from settle.evaluate.compare.race import Outcome
from settle.jobs.choose.ways import Measured

ERROR = 0.05  # chance of any false "better" among all pairs of ways


@dataclass(frozen=True)
class Verdict:
    """chosen: the way to take, by its place. is_shown: all cheaper ones are shown to be worse than it, and no dearer
    one is measured to be ahead by more than the margin. more: test questions more that would decide it, None where it
    is decided or where hardly any number would. sentence, notes: for people."""

    chosen: int
    is_shown: bool
    sentence: str
    notes: Sequence[str]
    more: int | None = None


def decide(measured: Sequence[Measured], outcome: Outcome, margin: float, is_share: bool) -> Verdict:
    """The verdict on ways in the order of their cost, the cheapest first. margin: as a share of 1, or of the best score
    where scores are no shares."""
    best = max(outcome.left, key=lambda k: outcome.means[k])
    allowed = margin * (1.0 if is_share else abs(outcome.means[best]))
    near = [k for k in outcome.left if outcome.means[best] - outcome.means[k] <= allowed]
    chosen = min(near)
    if not any(outcome.means):
        return Verdict(0, False, "no way got any of the test questions right", ["look at the answers and the score"])
    open_ = [k for k in range(chosen) if k in outcome.left]
    name, value = measured[chosen].name, _value(outcome.means[chosen], is_share)
    notes = [_note(measured, outcome, chosen, k, is_share) for k in outcome.left if k > chosen]
    if open_:
        pairs = [outcome.pair(chosen, k) for k in open_]
        known = [p.more for p in pairs if p.more is not None]
        more = max(known) if len(known) == len(pairs) else None
        rest = f"about {more} more test questions would decide it" if more else "more rows would hardly decide it"
        names = " and ".join(measured[k].name for k in open_)
        sentence = (
            f"cannot tell whether {names} would be enough: {name} scored {value}, ahead by "
            f"{_range(pairs[-1].difference, is_share)}; {rest}"
        )
        return Verdict(chosen, False, sentence, notes, more)
    if chosen == 0:
        sentence = f"take {name}: it scores {value}, and nothing dearer is shown to be better"
    else:
        nearest = max(range(chosen), key=lambda k: outcome.means[k])
        ahead = _range(outcome.pair(chosen, nearest).difference, is_share)
        sentence = f"take {name}: it scores {value}, ahead of {measured[nearest].name} by {ahead}"
        sentence += ", and nothing dearer is shown to be better" if chosen < len(measured) - 1 else ""
    return Verdict(chosen, True, sentence, notes)


def _note(measured: Sequence[Measured], outcome: Outcome, chosen: int, other: int, is_share: bool) -> str:
    """What a dearer way may still be ahead by."""
    difference = outcome.pair(other, chosen).difference
    text = (
        f"{measured[other].name} costs more and may be ahead by {_points(max(0.0, difference.high), is_share)} at most"
    )
    return f"{text} ({_points(difference.value, is_share)} measured)"


def _range(difference: Interval, is_share: bool) -> str:
    value, low, high = difference.ends
    return f"{_points(value, is_share)} (95 %: {_points(low, is_share)} to {_points(high, is_share)})"


def _points(value: float, is_share: bool) -> str:
    return f"{100 * value:.0f} points" if is_share else f"{value:.3f}"


def _value(value: float, is_share: bool) -> str:
    if math.isnan(value):
        return "–"
    return f"{100 * value:.0f} %" if is_share else f"{value:.3f}"

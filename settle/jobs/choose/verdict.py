"""Which way is enough: the cheapest that no dearer one is ahead of by more than chance, or that nobody can tell.

Three cases for a dearer way that scored higher. It is shown to be better, corrected for all pairs: the cheaper one is
out. Not even a test by itself shows it: what was measured is chance as likely as not, and the cheaper one is taken. In
between nobody can tell, and more rows would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from settle.base.statistics import Interval, paired_test
from settle.evaluate.compare.sample_size import next_step
from settle.experiment.race import Outcome
from settle.jobs.choose.ways import Measured

ERROR = 0.05  # chance of any false "better" among all pairs of ways
LITTLE = 0.5  # score of the best way, below which the question is another one: whether any way is good enough
ALONE = 0.05  # one-sided error of a pair by itself, from which on a lead is no chance as likely as not


@dataclass(frozen=True)
class Verdict:
    """chosen: the way to take, by its place. is_shown: all cheaper ones are shown to be worse than some other, and no
    dearer one is ahead by more than the margin and chance. more: test questions more that would decide it, None where
    it is decided or where hardly any number would. sentence, notes: for people."""

    chosen: int
    is_shown: bool
    sentence: str
    notes: Sequence[str]
    more: int | None = None


def decide(
    measured: Sequence[Measured], outcome: Outcome, families: Sequence[int], margin: float, is_share: bool
) -> Verdict:
    """The verdict on ways in the order of their cost, the cheapest first. families: the same number for questions that
    belong together. margin: as a share of 1, or of the best score where scores are no shares."""
    if not any(outcome.means):
        return Verdict(0, False, "no way got any of the test questions right", ["look at the answers and the score"])
    chosen = min(outcome.left)
    allowed = margin * (1.0 if is_share else abs(max(outcome.means)))
    dearer = [k for k in outcome.left if k > chosen]
    leads = [
        k
        for k in dearer
        if outcome.means[k] - outcome.means[chosen] > allowed
        and paired_test(measured[chosen].scores, measured[k].scores, families).p_value <= 2 * ALONE
    ]
    name, value = measured[chosen].name, _value(outcome.means[chosen], is_share)
    most = max(outcome.means)
    little = [f"no way is good: the best scores {_value(most, True)}; a larger model may do better, see `settle pick`"]
    weak = little if is_share and most < LITTLE else []
    if leads:
        best = max(leads, key=lambda k: outcome.means[k])
        pair = outcome.pair(best, chosen)
        rest = f"about {pair.more} more test questions would decide it" if pair.more else "more would hardly decide it"
        sentence = (
            f"cannot tell whether {name} is enough: it scored {value}, and {measured[best].name} was ahead by "
            f"{_range(pair.difference, is_share)}; {rest}"
        )
        notes = [_note(measured, outcome, chosen, k, is_share) for k in dearer if k != best]
        return Verdict(chosen, False, sentence, weak + notes, pair.more)
    if chosen == 0:
        sentence = f"take {name}: it scores {value}, and nothing dearer is shown to be better"
        sentence += _may_be_ahead(measured, outcome, chosen, dearer, is_share)
    else:
        nearest = max(range(chosen), key=lambda k: outcome.means[k])
        ahead = _range(outcome.pair(chosen, nearest).difference, is_share)
        sentence = f"take {name}: it scores {value}, ahead of {measured[nearest].name} by {ahead}"
        if chosen < len(measured) - 1:
            sentence += ", and nothing dearer is shown to be better"
            sentence += _may_be_ahead(measured, outcome, chosen, dearer, is_share)
    return Verdict(chosen, True, sentence, weak + [_note(measured, outcome, chosen, k, is_share) for k in dearer])


def _may_be_ahead(
    measured: Sequence[Measured], outcome: Outcome, chosen: int, dearer: Sequence[int], is_share: bool
) -> str:
    """The most that a dearer way may still be ahead by, and the cheapest next step that would settle it; empty where
    each is shown to be worse than another."""
    if not dearer:
        return ""
    nearest = max(dearer, key=lambda k: outcome.pair(k, chosen).difference.high)
    pair = outcome.pair(nearest, chosen)
    step = next_step(pair.difference, pair.rows, is_share, "test questions", ERROR / len(outcome.pairs))
    ahead = _points(max(0.0, pair.difference.high), is_share)
    return f", but {measured[nearest].name} may be up to {ahead} ahead; {step}"


def _note(measured: Sequence[Measured], outcome: Outcome, chosen: int, other: int, is_share: bool) -> str:
    """What a dearer way may still be ahead by."""
    pair = outcome.pair(other, chosen)
    text = f"{measured[other].name} costs more and may be ahead by {_points(max(0.0, pair.difference.high), is_share)}"
    text += f" at most ({_points(pair.difference.value, is_share)} measured)"
    if pair.difference.value > 0 and pair.more:
        text += f"; about {pair.more} more test questions would show as much"
    return text


def _range(difference: Interval, is_share: bool) -> str:
    value, low, high = difference.ends
    return f"{_points(value, is_share)} (95 %: {_points(low, is_share)} to {_points(high, is_share)})"


def _points(value: float, is_share: bool) -> str:
    return f"{round(100 * value)} points" if is_share else f"{value:.3f}"


def _value(value: float, is_share: bool) -> str:
    if math.isnan(value):
        return "–"
    return f"{100 * value:.0f} %" if is_share else f"{value:.3f}"

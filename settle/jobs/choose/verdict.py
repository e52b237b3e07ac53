"""Which way is enough: the cheapest that no dearer one is ahead of by more than chance, or that nobody can tell.

Three cases for a dearer way that scored higher. It is shown to be better, corrected for all pairs: the cheaper one is
out. Not even a test by itself shows it: what was measured is chance as likely as not, and the cheaper one is taken. In
between nobody can tell, and more rows would.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from settle.experiment.race import Outcome
from settle.experiment.report import difference_text, may_be_ahead, range_text, value_text

LITTLE = 0.5  # score of the best way, below which the question is another one: whether any way is good enough


@dataclass(frozen=True)
class Verdict:
    """The way to take.

    Attributes:
        is_shown: all cheaper ones are shown to be worse than some other, and no dearer one is ahead by more than the
            margin and chance.
        more: test questions more that would decide it, None where it is decided or where hardly any number would.
    """

    chosen: int  # by its place
    is_shown: bool
    sentence: str  # for the user, as are `notes`
    notes: Sequence[str]
    more: int | None = None


def decide(outcome: Outcome, margin: float, is_share: bool) -> Verdict:
    """Decide on ways in the order of their cost, the cheapest first.

    margin: as a share of 1, or of the best score where scores are no shares.
    """
    names, means, most = outcome.names, outcome.means, max(outcome.means)
    if not any(means):
        return Verdict(0, False, "no way got any of the test questions right", ["look at the answers and the score"])
    chosen = min(outcome.left)
    dearer = [k for k in outcome.left if k > chosen]
    leads = outcome.leads(chosen, margin * (1.0 if is_share else abs(most)))
    name, value = names[chosen], value_text(means[chosen], is_share)
    little = (
        f"no way is good: the best scores {value_text(most, True)}; a larger model may do better, see `settle pick`"
    )
    weak = [little] if is_share and most < LITTLE else []
    if leads:
        best = max(leads, key=lambda k: means[k])
        pair = outcome.pair(best, chosen)
        rest = f"about {pair.more} more test questions would decide it" if pair.more else "more would hardly decide it"
        sentence = (
            f"cannot tell whether {name} is enough: it scored {value}, and {names[best]} was ahead by "
            f"{range_text(pair.difference, is_share)}; {rest}"
        )
        notes = [_note(outcome, chosen, k, is_share) for k in dearer if k != best]
        return Verdict(chosen, False, sentence, weak + notes, pair.more)
    sentence = f"take {name}: it scores {value}"
    if chosen:
        nearest = max(range(chosen), key=lambda k: means[k])
        ahead = range_text(outcome.pair(chosen, nearest).difference, is_share)
        sentence += f", ahead of {names[nearest]} by {ahead}"
    if not chosen or chosen < len(names) - 1:
        sentence += ", and nothing dearer is shown to be better"
        if dearer:
            sentence += f", but {may_be_ahead(outcome, chosen, dearer, is_share, 'test questions')}"
    return Verdict(chosen, True, sentence, weak + [_note(outcome, chosen, k, is_share) for k in dearer])


def _note(outcome: Outcome, chosen: int, other: int, is_share: bool) -> str:
    """Say what a dearer way may still be ahead by."""
    pair = outcome.pair(other, chosen)
    high, value = max(0.0, pair.difference.high), pair.difference.value
    text = f"{outcome.names[other]} costs more and may be ahead by {difference_text(high, is_share)}"
    text += f" at most ({difference_text(value, is_share)} measured)"
    if value > 0 and pair.more:
        text += f"; about {pair.more} more test questions would show as much"
    return text

"""What the measurements say: which model to take, in one sentence, how sure that is, and what would change it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from settle.experiment.race import ComparedPair, Outcome
from settle.experiment.report import difference_text, may_be_ahead, range_text, value_text
from settle.jobs.pick.candidates import Candidate
from settle.jobs.pick.exam import Taken

MARGIN = 0.05  # of a share, or of another score's value: a smaller model that scores this much less is as good


@dataclass(frozen=True)
class Measured:
    """A candidate with what was measured of it.

    Attributes:
        score: on the `asked` prompts that it was asked; None where nothing says what a right answer is.
    """

    candidate: Candidate
    taken: Taken  # time, speed and memory
    score: float | None = None
    asked: int = 0
    cut: int = 0  # answers that were stopped for their length

    @property
    def name(self) -> str:
        return self.candidate.name


@dataclass(frozen=True)
class Verdict:
    """The model to take.

    Attributes:
        is_better: it is shown to be better than all others that were asked; otherwise it is the smallest of those that
            score within MARGIN of the best and that none was shown to be better than.
    """

    chosen: Measured | None  # if any
    is_better: bool
    sentence: str  # for the user
    notes: Sequence[str] = field(default_factory=list)  # how sure, and what would change it


def decide(measured: Sequence[Measured], outcome: Outcome | None, measure: str, is_share: bool) -> Verdict:
    """Decide on candidates in the outcome's order.

    outcome: None where nothing says what a right answer is: then none is recommended.
    """
    if not measured:
        return Verdict(None, False, "no model is left that could be measured")
    if outcome is None:
        fastest = max(measured, key=lambda m: m.taken.speed.median)
        sentence = (
            "no model is recommended: no right answers were given, so how well they answer was not measured; "
            f"{fastest.name} is the fastest"
        )
        return Verdict(None, False, sentence, ["give the wanted answers beside the prompts, or --score FILE.py"])
    best = outcome.means[outcome.leader]
    near = [k for k in outcome.left if best - outcome.means[k] <= MARGIN * (1.0 if is_share else abs(best))]
    chosen = min(near, key=lambda k: (measured[k].taken.peak_bytes, -measured[k].taken.speed.median))
    if len(measured) > 1 and not any(outcome.means):
        sentence = f"none of the {len(measured)} models got any of the prompts right, so nothing tells them apart"
        return Verdict(None, False, sentence, ["look at the wanted answers, or choose another score with --score"])
    if len(outcome.left) == 1:
        sentence = _best(measured, outcome, chosen, measure, is_share)
        return Verdict(measured[chosen], len(measured) > 1, sentence)
    sentence, notes = _undecided(outcome, chosen, near, measure, is_share)
    return Verdict(measured[chosen], False, sentence, notes)


def _best(measured: Sequence[Measured], outcome: Outcome, chosen: int, measure: str, is_share: bool) -> str:
    value = value_text(outcome.means[chosen], is_share)
    if len(measured) == 1:
        return f"{measured[0].name} is the only one that could be measured: {measure} {value}"
    nearest = max((k for k in range(len(measured)) if k != chosen), key=lambda k: outcome.means[k])
    ahead = range_text(outcome.pair(chosen, nearest).difference, is_share)
    return (
        f"take {measured[chosen].name}: {measure} {value} on {outcome.asked[chosen]} prompts, better than all others; "
        f"than {measured[nearest].name} by {ahead}"
    )


def _undecided(
    outcome: Outcome, chosen: int, near: Sequence[int], measure: str, is_share: bool
) -> tuple[str, list[str]]:
    names, means = outcome.names, outcome.means
    others = [k for k in outcome.left if k != chosen]
    rivals, scores = " and ".join(names[k] for k in others), ", ".join(value_text(means[k], is_share) for k in others)
    beside = f"{measure} {value_text(means[chosen], is_share)}, beside {rivals} with {scores}"
    if len(near) > 1:
        sentence = f"take {names[chosen]}, the smallest of {len(near)} that are not shown to differ: {beside}"
    else:
        sentence = f"take {names[chosen]} for now, though nothing is decided: {beside}"
    sentence += f"; {may_be_ahead(outcome, chosen, others, is_share, 'prompts')}"
    by_score = sorted(others, key=lambda k: -means[k])
    notes = [
        _maybe_ahead(names[k], outcome.pair(k, chosen), is_share)
        if k in near
        else _behind(names[k], outcome.pair(chosen, k), is_share)
        for k in by_score
    ]
    return sentence, notes


def _maybe_ahead(name: str, pair: ComparedPair, is_share: bool) -> str:
    """Say how far one that is about as good may be ahead."""
    value, high = pair.difference.value, pair.difference.high
    ahead = f"{name} may be ahead by {difference_text(high, is_share)} at most"
    if high <= 0:
        return f"{name} is rather behind: by {range_text(pair.difference, is_share)}"
    if value <= 0:
        return f"{ahead}; on these prompts it was not"
    if pair.more is None:
        return f"{ahead}; more prompts would hardly decide it"
    return (
        f"{ahead} ({difference_text(value, is_share)} measured): about {pair.more} more prompts would decide, were the "
        "difference as large as it looks"
    )


def _behind(name: str, pair: ComparedPair, is_share: bool) -> str:
    """Say how far one is behind that is not shown to be worse."""
    text = f"{name} is not shown to be worse: {range_text(pair.difference, is_share)} less was measured"
    return f"{text}; about {pair.more} more prompts would decide it" if pair.more else text

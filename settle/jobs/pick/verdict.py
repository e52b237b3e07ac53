"""What the measurements say: which model to take, in one sentence, how sure that is, and what would change it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from settle.base.statistics import Interval
from settle.evaluate.compare.sample_size import next_step
from settle.experiment.race import ERROR, ComparedPair, Outcome
from settle.jobs.pick.candidates import Candidate
from settle.jobs.pick.measure import Taken

MARGIN = 0.05  # of a share, or of another score's value: a smaller model that scores this much less is as good


@dataclass(frozen=True)
class Measured:
    """A candidate with what was measured of it. taken: time, speed and memory. score: on the prompts it was asked,
    `asked` of them; None where nothing says what a right answer is. cut: answers that were stopped for their length."""

    candidate: Candidate
    taken: Taken
    score: float | None = None
    asked: int = 0
    cut: int = 0

    @property
    def name(self) -> str:
        return self.candidate.name


@dataclass(frozen=True)
class Verdict:
    """chosen: the model to take. is_better: it is shown to be better than all others that were asked; otherwise it is
    the smallest of those that score within MARGIN of the best and that none was shown to be better than. sentence: for
    people. notes: how sure, what would change it."""

    chosen: Measured | None
    is_better: bool
    sentence: str
    notes: Sequence[str] = field(default_factory=list)


def decide(measured: Sequence[Measured], outcome: Outcome | None, measure: str, is_share: bool) -> Verdict:
    """The verdict. measured: in the order of the outcome's candidates. outcome: None where nothing says what a right
    answer is: then none is recommended."""
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
    sentence, notes = _undecided(measured, outcome, chosen, near, measure, is_share)
    return Verdict(measured[chosen], False, sentence, notes)


def _best(measured: Sequence[Measured], outcome: Outcome, chosen: int, measure: str, is_share: bool) -> str:
    value = _value(outcome.means[chosen], is_share)
    if len(measured) == 1:
        return f"{measured[0].name} is the only one that could be measured: {measure} {value}"
    rivals = [k for k in range(len(measured)) if k != chosen]
    nearest = max(rivals, key=lambda k: outcome.means[k])
    pair = outcome.pair(chosen, nearest)
    return (
        f"take {measured[chosen].name}: {measure} {value} on {outcome.asked[chosen]} prompts, better than all others; "
        f"than {measured[nearest].name} by {_range(pair.difference, is_share)}"
    )


def _undecided(
    measured: Sequence[Measured], outcome: Outcome, chosen: int, near: Sequence[int], measure: str, is_share: bool
) -> tuple[str, list[str]]:
    others = [k for k in outcome.left if k != chosen]
    names = " and ".join(measured[k].name for k in others)
    value = _value(outcome.means[chosen], is_share)
    beside = f"{measure} {value}, beside {names} with {', '.join(_value(outcome.means[k], is_share) for k in others)}"
    if len(near) > 1:
        sentence = f"take {measured[chosen].name}, the smallest of {len(near)} that are not shown to differ: {beside}"
    else:
        sentence = f"take {measured[chosen].name} for now, though nothing is decided: {beside}"
    nearest = max(others, key=lambda k: outcome.pair(k, chosen).difference.high)
    pair = outcome.pair(nearest, chosen)
    ahead = _signed(max(0.0, pair.difference.high), is_share)
    step = next_step(pair.difference, pair.rows, is_share, "prompts", ERROR / len(outcome.pairs))
    sentence += f"; {measured[nearest].name} may be up to {ahead} ahead, and {step}"
    notes = []
    for k in sorted(others, key=lambda k: -outcome.means[k]):
        pair = outcome.pair(k, chosen)
        if k not in near:
            notes.append(_behind(measured[k].name, outcome.pair(chosen, k), is_share))
            continue
        ahead = f"{measured[k].name} may be ahead by {_signed(pair.difference.high, is_share)} at most"
        if pair.difference.high <= 0:
            notes.append(f"{measured[k].name} is rather behind: by {_range(pair.difference, is_share)}")
        elif pair.difference.value <= 0:
            notes.append(f"{ahead}; on these prompts it was not")
        elif pair.more is None:
            notes.append(f"{ahead}; more prompts would hardly decide it")
        else:
            notes.append(
                f"{ahead} ({_signed(pair.difference.value, is_share)} measured): about {pair.more} more prompts would "
                f"decide, were the difference as large as it looks"
            )
    return sentence, notes


def _behind(name: str, pair: ComparedPair, is_share: bool) -> str:
    """Of one that scored less and is not shown to be worse."""
    text = f"{name} is not shown to be worse: {_range(pair.difference, is_share)} less was measured"
    return f"{text}; about {pair.more} more prompts would decide it" if pair.more else text


def _value(value: float, is_share: bool) -> str:
    if math.isnan(value):
        return "–"
    return f"{100 * value:.0f} %" if is_share else f"{value:.3f}"


def _signed(value: float, is_share: bool) -> str:
    return f"{100 * value:.0f} points" if is_share else f"{value:.3f}"


def _range(difference: Interval, is_share: bool) -> str:
    value, low, high = (f"{100 * end:.0f}" if is_share else f"{end:.3f}" for end in difference.ends)
    return f"{value}{' points' if is_share else ''} (95 %: {low} to {high})"

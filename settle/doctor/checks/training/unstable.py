"""Training went wrong: a loss that is no number, a spike, a run that went back until it gave up."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.errors import UsageError
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.likelihood import NATS
from settle.doctor.subject import TrainingRun
from settle.doctor.training.facts import TrainingFacts, facts_of, known
from settle.doctor.training.retrain import most_steps, recipe_fix, retrained, training_seconds, usual_rate, with_rate
from settle.doctor.training.rows import LossReader, RowSide, Served, rows_of
from settle.doctor.trial import FEWEST_ITEMS, Trial
from settle.library.facts import read_facts

LEAST_NATS = 0.15  # per token, that the rows must be likelier for without the cause
JUMP_NATS, JUMP_SHARE = 0.7, 0.15  # per token; of the first loss: a rise of the held-out loss by less is no jump
HIGH_RATE = 3.0  # times the usual one
LOOKED = 3  # rows that are read with what a run with such a rate made
CHANCE_SHARE, ENOUGH_STEPS = 0.98, 6  # of the nats of a token drawn from the vocabulary; steps that show no learning
LOWER = 10.0  # as many times as small is a rate that nothing usual is known of


class Rate(Details):
    """The learning rate of the run."""

    rate: float


class Unstable(Check[TrainingRun, Rate]):
    """A run should need no return to an earlier checkpoint."""

    number: ClassVar[int] = 21
    symptom: ClassVar[str] = "the loss is no number, or jumps, in training"
    seconds: ClassVar[float] = 0.5

    def detect(self, subject: TrainingRun) -> Iterator[Finding[Rate]]:
        facts = facts_of(subject.run)
        if facts is None:
            return
        bad = sum(not math.isfinite(loss) for loss in facts.losses)
        jump = _jump(facts) or _no_better_than_chance(facts) or _no_likelihood(facts)
        if not (facts.rollbacks or bad or jump or facts.verdict == "diverged"):
            return
        evidence = [f"it went back to an earlier checkpoint {facts.rollbacks} times"] if facts.rollbacks else []
        evidence += [f"the loss of {bad} steps is no number"] if bad else []
        evidence += [jump] if jump else []
        ended = bool(jump) or facts.verdict == "diverged" or facts.rollbacks > 1
        what = f"training was unstable: a learning rate of {facts.rate:.2g} is too high"
        if not ended and not _is_high(facts):
            what = "a batch of rows made the loss jump; the run left it out"
        yield self.finding(what, *evidence, strength=0.98 if ended else 0.5, details=Rate(rate=facts.rate))

    def trial(self, finding: Finding[Rate], subject: TrainingRun, folder: Path) -> Trial | None:
        facts = known(facts_of(subject.run), subject.run)
        rows = rows_of(facts)
        half = min(12, len(rows.places) // 2)
        if half < FEWEST_ITEMS:
            return None
        steps = min(most_steps(facts), max(facts.steps, 2 * FEWEST_ITEMS))
        recipe = with_rate(facts.recipe, _lower(facts))
        return Trial(
            knob=f"learning rate {_lower(facts):.2g} instead of {facts.rate:.2g}",
            before=RowSide("as it was", rows, retrained(facts, facts.recipe, steps, folder / "before")),
            after=RowSide("trained again", rows, retrained(facts, recipe, steps, folder / "after")),
            measure="loss of its training rows",
            unit=NATS,
            items=rows.items(0, half),
            others=rows.items(half, half),
            least=LEAST_NATS,
            seconds=0.2,
            preparing=2 * training_seconds(facts, steps),
        )

    def fix(self, finding: Finding[Rate], subject: TrainingRun) -> Fix:
        facts = known(facts_of(subject.run), subject.run)
        recipe = with_rate(facts.recipe, _lower(facts))
        return recipe_fix(facts.run, recipe, f"train with a learning rate of {_lower(facts):.2g}")


def _jump(facts: TrainingFacts) -> str:
    """Return how the held-out loss jumped while that of training was above its first, which overfitting lowers.

    Empty where it did not jump.
    """
    if not facts.evaluations or not facts.losses:
        return ""
    start = facts.evaluations[0][1]
    lowest, least = start, max(JUMP_NATS, JUMP_SHARE * start)
    for step, loss in facts.evaluations:
        around = sorted(facts.losses[max(0, step - 2) : step + 1])
        if loss > lowest + least and around and around[len(around) // 2] > facts.losses[0]:
            return f"the held-out loss jumped from {lowest:.2f} to {loss:.2f} by step {step:,}"
        lowest = min(lowest, loss)
    return ""


def _no_better_than_chance(facts: TrainingFacts) -> str:
    """Return how a run with a high rate ended where guessing would; empty where it did not.

    Its weights went so far that nothing of its base is left, which need not show as a jump in a model that is no better
    at the start.
    """
    last = sorted(facts.losses[len(facts.losses) // 2 :])
    if facts.base is None or not _is_high(facts) or len(last) < ENOUGH_STEPS:
        return ""
    guessing, middle = math.log(read_facts(facts.base).num_vocab), last[len(last) // 2]
    if middle < CHANCE_SHARE * guessing:
        return ""
    return f"the loss ended at {middle:.2f}, and to guess at random costs {guessing:.2f}"


def _no_likelihood(facts: TrainingFacts) -> str:
    """Return how the file that a run with a high rate made cannot read what it was trained on; empty where it can.

    Weights that went too far overflow in the file's type, which the run's own losses need not show.
    """
    served = Served.of_run(facts.run) if _is_high(facts) else None
    if served is None:
        return ""
    try:
        rows = rows_of(facts)
        with LossReader(served, rows) as reader:
            lost = [reader.nats(item) >= reader.worst for item in rows.items(0, LOOKED)]
    except UsageError:
        return ""  # its rows were deleted
    return "what it made finds its training rows impossible, or gives no number" if lost and all(lost) else ""


def _is_high(facts: TrainingFacts) -> bool:
    return facts.base is not None and facts.rate > HIGH_RATE * usual_rate(facts)


def _lower(facts: TrainingFacts) -> float:
    """Return the rate that is tried instead."""
    return usual_rate(facts) if _is_high(facts) else facts.rate / LOWER

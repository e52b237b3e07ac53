"""A tuned model lost what its base knew: the rate was too high, or it saw its rows too often."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE
from settle.doctor.likelihood import NATS
from settle.doctor.subject import TrainingRun
from settle.doctor.training.facts import Recipe, TunedFacts, known, tuned_facts
from settle.doctor.training.retrain import (
    most_steps,
    recipe_fix,
    retrained,
    served_by,
    training_seconds,
    usual_rate,
    with_rate,
)
from settle.doctor.training.rows import RowSide, RunRows, Served, losses_of, rows_of
from settle.doctor.trial import Item, Trial
from settle.infer.engine import Engine
from settle.library.facts import read_facts

LOOKED, PROVED = 8, 10  # texts
LEAST_NATS = 0.5  # per token, that general text became less likely: perplexity is 1.6 times what it was
HIGH_RATE = 3.0  # times the usual one: above that, the rate is to blame and not the steps
FEWER = 4  # as many steps are left of those that were too many, as a divisor
KNOWN_SHARE = 0.6  # of the nats of a token drawn from the vocabulary: a base that knows general text gives it less
CONTEXT = 512  # tokens of general text
KEPT_SHARE = 0.05  # of the base's loss on its rows, that the model should still be better by


class Excess(Details):
    """What there was too much of."""

    cause: Literal["rate", "steps"]


class Forgot(Check[TrainingRun, Excess]):
    """A tuned model should find general text about as likely as its base does."""

    number: ClassVar[int] = 20
    symptom: ClassVar[str] = "the tuned model forgot what its base knew"
    seconds: ClassVar[float] = 5.0

    def detect(self, subject: TrainingRun) -> Iterator[Finding[Excess]]:
        facts = tuned_facts(subject.run)
        served = Served.of_run(facts.run) if facts is not None else None
        if facts is None or served is None:
            return
        before, rise = _lost(facts.base, served, general_texts(facts)[:LOOKED])
        # who finds general text hardly likelier than chance has nothing of it to forget
        if rise < LEAST_NATS or before > KNOWN_SHARE * math.log(read_facts(facts.base).num_vocab):
            return
        cause: Literal["rate", "steps"] = "rate" if facts.rate > HIGH_RATE * usual_rate(facts) else "steps"
        what = {
            "rate": f"the model forgot what its base knew: a learning rate of {facts.rate:.2g} is too high",
            "steps": f"the model forgot what its base knew: {facts.steps:,} steps on these rows are too many",
        }[cause]
        evidence = f"general text is {rise:.2f} nats per token less likely than to its base ({before:.2f})"
        yield self.finding(what, evidence, strength=min(0.95, 0.6 + rise / 4), details=Excess(cause=cause))

    def trial(self, finding: Finding[Excess], subject: TrainingRun, folder: Path) -> Trial:
        facts, cause = known(tuned_facts(subject.run), subject.run), finding.details.cause
        served = served_by(facts.run)
        rows, texts, most = rows_of(facts), general_texts(facts), most_steps(facts)
        recipe, steps = _changed(cause, facts)
        knob = f"{steps:,} steps instead of {facts.steps:,}"
        if cause == "rate":
            knob = f"learning rate {usual_rate(facts):g} instead of {facts.rate:.2g}"
        before = RowSide("as it is", rows, lambda: served)
        preparing = training_seconds(facts, min(steps, most))
        if cause == "rate" and steps > most:  # both as short, so that only the rate differs
            before = RowSide("as it is", rows, retrained(facts, facts.recipe, most, folder / "before"))
            preparing *= 2
        return Trial(
            knob=knob,
            before=before,
            after=RowSide("trained again", rows, retrained(facts, recipe, min(steps, most), folder / "after")),
            measure="loss of general text",
            unit=NATS,
            items=texts[LOOKED : LOOKED + PROVED],
            others=texts[LOOKED + PROVED : LOOKED + 2 * PROVED],
            least=LEAST_NATS / 2,
            guards=_should(facts, rows),
            seconds=0.2,
            preparing=preparing,
        )

    def fix(self, finding: Finding[Excess], subject: TrainingRun) -> Fix:
        facts = known(tuned_facts(subject.run), subject.run)
        recipe, steps = _changed(finding.details.cause, facts)
        if finding.details.cause == "rate":
            return recipe_fix(facts.run, recipe, f"train with a learning rate of {usual_rate(facts):g}")
        return recipe_fix(facts.run, {**recipe, "steps": steps}, f"train for {steps:,} steps")


def general_texts(facts: TunedFacts) -> list[Item]:
    """Return known answers and prose in turns, each the ids that its base makes of it. Raises SettleError."""
    items: list[Item] = []
    with Engine(facts.base, CONTEXT) as engine:
        for known, prose in zip(KNOWN_ANSWERS, PROSE, strict=False):
            if engine.takes_turns:
                prompt = engine.turns([{"role": "user", "content": known.question}])
            else:
                prompt = engine.plain(f"Question: {known.question}\nAnswer: ")
            items.append({"ids": [*prompt, *engine.tokenize(known.answer)], "first": max(1, len(prompt))})
            items.append({"ids": list(engine.tokenize(prose, opening=True)), "first": 2})
    return items


def _changed(cause: str, facts: TunedFacts) -> tuple[Recipe, int]:
    """Return the recipe and the steps of the fix."""
    if cause == "rate":
        return with_rate(facts.recipe, usual_rate(facts)), facts.steps
    return facts.recipe, max(1, facts.steps // FEWER)


def _lost(base: Path, served: Served, texts: Sequence[Item]) -> tuple[float, float]:
    """Return nats per token of some texts to the base, and how many more they are to the tuned model."""
    none = RunRows.without_rows()
    before, after = (fmean(losses_of(side, none, texts)) for side in (Served(base), served))
    return before, after - before


def _should(facts: TunedFacts, rows: RunRows) -> list[Item]:
    """Return training rows, each with how likely it should still be: a little more than to the base."""
    items = rows.items(0, 6)
    losses = losses_of(Served(facts.base), rows, items)
    return [
        {**dict(item), "should": (1 - KEPT_SHARE) * loss}  # type: ignore[arg-type]  # a mapping
        for item, loss in zip(items, losses, strict=True)
    ]

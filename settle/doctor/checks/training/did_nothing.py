"""A tuned model answers as its base does: the rate was too low, or the steps too few, to learn anything; or what it
learned is not in the file, or lies over another base; or the answers were left out of what it learned."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.training.facts import TrainingFacts, tuned_facts
from settle.doctor.training.left_out import left_out, with_all_answers
from settle.doctor.training.lost_adapter import find_base, has_learned, wanted_base
from settle.doctor.training.retrain import (
    FEWEST_STEPS,
    exported_again,
    keeps_adapter,
    most_steps,
    recipe_fix,
    retrained,
    training_seconds,
    usual_rate,
    with_rate,
)
from settle.doctor.training.rows import RowSide, RunRows, Served, losses_of, rows_of
from settle.doctor.trial import FEWEST_ITEMS, Trial

LOOKED = 4  # rows that a look reads
LEAST_SHARE, LEAST_NATS = 0.04, 0.04  # of the base's loss; per token: less than both together is nothing
KNOWN_NATS = 0.1  # per token: rows that the base finds likelier than that teach nothing
LOW_RATE = 0.2  # of the usual one: below that, the rate is to blame and not the steps


class DidNothing(Check):
    """A tuned model should find the rows that it learned from likelier than its base does."""

    number: ClassVar[int] = 19
    symptom: ClassVar[str] = "the tuned model answers as its base does"
    about: ClassVar[tuple[str, ...]] = ("run",)
    seconds: ClassVar[float] = 4.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        facts = tuned_facts(subject)
        if facts is None or facts.rollbacks:  # a run that was unstable learned nothing for that reason
            return
        assert facts.base is not None
        served = Served.of_run(facts.run)
        if served is None:
            if facts.verdict == "broken":
                seen = f"after {facts.steps:,} steps it was no better than its base, so no model was made"
                yield self._finding(facts, _little(facts), (seen,), 0.9)
            return
        rows = rows_of(facts)
        items = rows.items(0, LOOKED)
        before, after = (losses_of(side, rows, items) for side in (Served(facts.base), served))
        base, gain = float(np.mean(before)), float(np.mean(before) - np.mean(after))
        if base < KNOWN_NATS or gain >= _least(base):
            yield from self._left_out(facts, served)
            return
        sha256 = wanted_base(served)
        if sha256 is not None:
            yield self._over_another(served, sha256, gain, base)
        if sha256 is not None or gain < -_least(base):
            return
        seen = f"its training rows are {gain:.3f} nats per token likelier than to its base, which gives them {base:.2f}"
        if served.adapter is not None and has_learned(facts):
            learned = f"its training loss fell from {facts.losses[0]:.2f} to {facts.losses[-1]:.2f}"
            yield self._finding(facts, "export", (seen, learned), 0.95, base)
            return
        yield self._finding(facts, _little(facts), (seen,), 0.9, base)

    def _left_out(self, facts: TrainingFacts, served: Served) -> Iterator[Finding]:
        """The run learned what it was given, and most answers were no part of that."""
        assert facts.base is not None
        out = left_out(facts)
        if out is None or len(out.items) < LOOKED:
            return
        rows, items = RunRows.without_rows(), out.items[:LOOKED]
        before, after = (losses_of(side, rows, items) for side in (Served(facts.base), served))
        base, gain = float(np.mean(before)), float(np.mean(before) - np.mean(after))
        if base < KNOWN_NATS or gain >= _least(base):
            return
        yield Finding(
            self.part_name(),
            f"the model learned other answers than most: {out.share:.0%} of their text was left out of what it learns",
            (
                f"they are {gain:.3f} nats per token likelier than to its base, which gives them {base:.2f}",
                "the rows mark them so" if out.marked else "`--rows.supervise` leaves them out",
            ),
            0.85,
            {"cause": "mask", "base": base, "marked": out.marked},
        )

    def _over_another(self, served: Served, sha256: str, gain: float, base: float) -> Finding:
        other = find_base(sha256, served.weights)
        seen = f"it was trained on a base with sha256 {sha256[:12]}…, and lies over {served.weights.name}"
        worse = f"its training rows cost {base - gain:.2f} nats per token, and {base:.2f} without it"
        details = {"cause": "base", "base": base, "other": str(other) if other else None}
        return Finding(
            self.part_name(), "the adapter lies over another base than its own", (seen, worse), 0.95, details
        )

    def _finding(
        self, facts: TrainingFacts, cause: str, evidence: tuple[str, ...], strength: float, base: float = 1.0
    ) -> Finding:
        what = {
            "rate": f"the model learned next to nothing: a learning rate of {facts.rate:.2g} is too low",
            "steps": f"the model learned next to nothing in {facts.steps:,} steps",
            "export": "the run learned, and the adapter that it exported has nothing of it",
        }[cause]
        details = {"cause": cause, "base": base}
        return Finding(self.part_name(), what, (*evidence, f"learning rate {facts.rate:.2g}"), strength, details)

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        facts = tuned_facts(subject)
        assert facts is not None and facts.base is not None
        served, cause = Served.of_run(facts.run) or Served(facts.base), finding.details["cause"]
        out = left_out(facts) if cause == "mask" else None
        rows = RunRows.without_rows() if out else rows_of(facts)
        pieces = out.items if out else rows.items(0, len(rows.places))
        half = min(12, (len(pieces) - LOOKED) // 2)
        if half < FEWEST_ITEMS:
            return None
        steps, preparing = self._steps(finding, facts), 0.0
        if cause == "base":
            other = finding.details["other"]
            if other is None:
                return None
            after = RowSide("over its own base", rows, lambda: Served(Path(str(other)), served.adapter))
        elif cause == "export":
            if not keeps_adapter(facts.run):
                return None
            after = RowSide("exported again", rows, exported_again(facts, folder / "again-lora.gguf"))
        else:
            recipe = with_all_answers(facts, folder, out.marked) if out else self._recipe(finding, facts)
            preparing = training_seconds(facts, steps)
            after = RowSide("trained again", rows, retrained(facts, recipe, steps, folder / "after"))
        return Trial(
            knob=self._knob(finding, facts, steps),
            before=RowSide("as it is", rows, lambda: served),
            after=after,
            measure="loss of the answers that were left out" if out else "loss of its training rows",
            unit="nats per token",
            items=pieces[LOOKED : LOOKED + half],
            others=pieces[LOOKED + half : LOOKED + 2 * half],
            least=_least(float(str(finding.details["base"]))),
            seconds=0.2,
            preparing=preparing,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        facts = tuned_facts(subject)
        assert facts is not None
        recipe, other = self._recipe(finding, facts), finding.details.get("other")
        if finding.details["cause"] == "base":
            name = shlex.quote(str(other)) if other else "FILE"
            command = f"settle export {facts.run.name} --base {name}"
            return Fix("use it over the base that it was trained on, or merged into that", command)
        if finding.details["cause"] == "export":
            out = next(facts.run.out.glob("*-lora.gguf"), facts.run.out / f"{facts.run.name}-lora.gguf")
            command = f"settle export {facts.run.name} --to lora-gguf --out {shlex.quote(str(out))} --force"
            return Fix("export it again", command)
        if finding.details["cause"] == "rate":
            return recipe_fix(facts.run, recipe, f"train with a learning rate of {usual_rate(facts):g}")
        if finding.details["cause"] == "mask":
            if finding.details["marked"]:
                what = 'leave out `"weight": 0` and `"train": false` at the answers of the rows, and train again'
                return Fix(
                    what, f"settle {facts.run.command} --recipe {shlex.quote(str(facts.run.path / 'recipe.toml'))}"
                )
            return recipe_fix(
                facts.run, with_all_answers(facts, facts.run.path, False), "learn all answers of the rows"
            )
        longer = {key: value for key, value in recipe.items() if key not in ("steps", "tokens", "epochs", "time")}
        return recipe_fix(facts.run, longer, "train until the model has settled, without a limit")

    def _steps(self, finding: Finding, facts: TrainingFacts) -> int:
        if finding.details["cause"] in ("rate", "mask"):
            return min(most_steps(facts), max(facts.steps, FEWEST_STEPS))
        return most_steps(facts)

    def _recipe(self, finding: Finding, facts: TrainingFacts) -> Mapping[str, object]:
        return with_rate(facts.recipe, usual_rate(facts)) if finding.details["cause"] == "rate" else facts.recipe

    def _knob(self, finding: Finding, facts: TrainingFacts, steps: int) -> str:
        if finding.details["cause"] == "base":
            return f"{finding.details['other']} below the adapter"
        if finding.details["cause"] == "export":
            return "the adapter exported again from the weights that the run keeps"
        if finding.details["cause"] == "mask":
            return "all answers of the rows are learned"
        if finding.details["cause"] == "rate":
            return f"learning rate {usual_rate(facts):g} instead of {facts.rate:.2g}"
        return f"{steps:,} steps instead of {facts.steps:,}"


def _least(base: float) -> float:
    """Nats per token that count, where the base's loss is `base`."""
    return LEAST_NATS + LEAST_SHARE * base


def _little(facts: TrainingFacts) -> str:
    return "rate" if facts.rate < LOW_RATE * usual_rate(facts) else "steps"

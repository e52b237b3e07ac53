"""A tuned model answers as its base does.

The rate was too low, or the steps too few, to learn anything; or what it learned is not in the file, or lies over
another base; or the answers were left out of what it learned.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal

from settle.base.python_command import shell_line
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.likelihood import NATS
from settle.doctor.model_files import other_files
from settle.doctor.subject import TrainingRun
from settle.doctor.training.facts import Recipe, TunedFacts, known, tuned_facts
from settle.doctor.training.left_out import left_out, with_all_answers
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
from settle.doctor.trial import FEWEST_ITEMS, Item, Trial
from settle.formats.gguf import read_gguf
from settle.formats.gguf.metadata import text
from settle.formats.lora_gguf import BASE_SHA256
from settle.library.resolve import all_refs
from settle.model.source import hash_of

LOOKED = 4  # rows that a look reads
LEAST_SHARE, LEAST_NATS = 0.04, 0.04  # of the base's loss; per token: less than both together is nothing
KNOWN_NATS = 0.1  # per token: rows that the base finds likelier than that teach nothing
LOW_RATE = 0.2  # of the usual one: below that, the rate is to blame and not the steps
MOST_HASHED = 4 << 30  # bytes of a base that a look reads
LEARNED_NATS, LEARNED_SHARE = 0.5, 0.15  # per token; of the first: training loss that fell by more, learned something
PART = 4  # of the steps, at the beginning and at the end, whose losses are compared
Cause = Literal["rate", "steps", "export", "base", "mask"]


class Unlearned(Details):
    """Why the model learned nothing, and nats per token of its rows to its base."""

    cause: Cause
    base: float
    other: str | None = None  # the file that the adapter was trained on, where that is found
    marked: bool = False  # whether the rows themselves leave answers out


class DidNothing(Check[TrainingRun, Unlearned]):
    """A tuned model should find the rows that it learned from likelier than its base does."""

    number: ClassVar[int] = 19
    symptom: ClassVar[str] = "the tuned model answers as its base does"
    seconds: ClassVar[float] = 4.0

    def detect(self, subject: TrainingRun) -> Iterator[Finding[Unlearned]]:
        facts = tuned_facts(subject.run)
        if facts is None or facts.rollbacks:  # a run that was unstable learned nothing for that reason
            return
        served = Served.of_run(facts.run)
        if served is None:
            if facts.verdict == "broken":
                seen = f"after {facts.steps:,} steps it was no better than its base, so no model was made"
                yield self._found(facts, _little(facts), (seen,), 0.9)
            return
        rows = rows_of(facts)
        base, gain = _gain(facts, served, rows, rows.items(0, LOOKED))
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
            yield self._found(facts, "export", (seen, learned), 0.95, base)
            return
        yield self._found(facts, _little(facts), (seen,), 0.9, base)

    def _left_out(self, facts: TunedFacts, served: Served) -> Iterator[Finding[Unlearned]]:
        """Yield that the run learned what it was given, and most answers were no part of that."""
        out = left_out(facts)
        if out is None or len(out.items) < LOOKED:
            return
        base, gain = _gain(facts, served, RunRows.without_rows(), out.items[:LOOKED])
        if base < KNOWN_NATS or gain >= _least(base):
            return
        yield self.finding(
            f"the model learned other answers than most: {out.share:.0%} of their text was left out of what it learns",
            f"they are {gain:.3f} nats per token likelier than to its base, which gives them {base:.2f}",
            "the rows mark them so" if out.marked else "`--rows.supervise` leaves them out",
            strength=0.85,
            details=Unlearned(cause="mask", base=base, marked=out.marked),
        )

    def _over_another(self, served: Served, sha256: str, gain: float, base: float) -> Finding[Unlearned]:
        other = find_base(sha256, served.weights)
        return self.finding(
            "the adapter lies over another base than its own",
            f"it was trained on a base with sha256 {sha256[:12]}…, and lies over {served.weights.name}",
            f"its training rows cost {base - gain:.2f} nats per token, and {base:.2f} without it",
            strength=0.95,
            details=Unlearned(cause="base", base=base, other=str(other) if other else None),
        )

    def _found(
        self, facts: TunedFacts, cause: Cause, evidence: tuple[str, ...], strength: float, base: float = 1.0
    ) -> Finding[Unlearned]:
        what = {
            "rate": f"the model learned next to nothing: a learning rate of {facts.rate:.2g} is too low",
            "steps": f"the model learned next to nothing in {facts.steps:,} steps",
            "export": "the run learned, and the adapter that it exported has nothing of it",
        }[cause]
        seen = (*evidence, f"learning rate {facts.rate:.2g}")
        return self.finding(what, *seen, strength=strength, details=Unlearned(cause=cause, base=base))

    def trial(self, finding: Finding[Unlearned], subject: TrainingRun, folder: Path) -> Trial | None:
        facts, found = known(tuned_facts(subject.run), subject.run), finding.details
        served, cause = Served.of_run(facts.run) or Served(facts.base), found.cause
        out = left_out(facts) if cause == "mask" else None
        rows = RunRows.without_rows() if out else rows_of(facts)
        pieces = out.items if out else rows.items(0, len(rows.places))
        half = min(12, (len(pieces) - LOOKED) // 2)
        if half < FEWEST_ITEMS:
            return None
        steps, preparing = most_steps(facts), 0.0
        if cause in ("rate", "mask"):
            steps = min(steps, max(facts.steps, FEWEST_STEPS))
        if cause == "base":
            if found.other is None:
                return None
            own = Served(Path(found.other), served.adapter)
            after = RowSide("over its own base", rows, lambda: own)
        elif cause == "export":
            if not keeps_adapter(facts.run):
                return None
            after = RowSide("exported again", rows, exported_again(facts, folder / "again-lora.gguf"))
        else:
            recipe = with_all_answers(facts, folder, out.marked) if out else _recipe(cause, facts)
            preparing = training_seconds(facts, steps)
            after = RowSide("trained again", rows, retrained(facts, recipe, steps, folder / "after"))
        return Trial(
            knob=_knob(found, facts, steps),
            before=RowSide("as it is", rows, lambda: served),
            after=after,
            measure="loss of the answers that were left out" if out else "loss of its training rows",
            unit=NATS,
            items=pieces[LOOKED : LOOKED + half],
            others=pieces[LOOKED + half : LOOKED + 2 * half],
            least=_least(found.base),
            seconds=0.2,
            preparing=preparing,
        )

    def fix(self, finding: Finding[Unlearned], subject: TrainingRun) -> Fix:
        facts, found = known(tuned_facts(subject.run), subject.run), finding.details
        run, recipe = facts.run, _recipe(found.cause, facts)
        if found.cause == "base":
            name = shell_line(found.other) if found.other else "FILE"
            what = "use it over the base that it was trained on, or merged into that"
            return Fix(what, f"settle export {run.name} --base {name}")
        if found.cause == "export":
            out = next(run.out.glob("*-lora.gguf"), run.out / f"{run.name}-lora.gguf")
            return Fix(
                "export it again", f"settle export {run.name} --to lora-gguf --out {shell_line(str(out))} --force"
            )
        if found.cause == "rate":
            return recipe_fix(run, recipe, f"train with a learning rate of {usual_rate(facts):g}")
        if found.cause == "mask" and found.marked:
            what = 'leave out `"weight": 0` and `"train": false` at the answers of the rows, and train again'
            return Fix(what, f"settle {run.command} --recipe {shell_line(str(run.path / 'recipe.toml'))}")
        if found.cause == "mask":
            return recipe_fix(run, with_all_answers(facts, run.path, False), "learn all answers of the rows")
        longer = {key: value for key, value in recipe.items() if key not in ("steps", "tokens", "epochs", "time")}
        return recipe_fix(run, longer, "train until the model has settled, without a limit")


def wanted_base(served: Served) -> str | None:
    """Return the sha256 of the base that an adapter was trained on, where it lies over another file."""
    wanted = text(read_gguf(served.adapter).metadata, BASE_SHA256) if served.adapter else None
    if not wanted or served.weights.stat().st_size > MOST_HASHED:
        return None
    return wanted if hash_of(served.weights) != wanted else None


def find_base(sha256: str, beside: Path) -> Path | None:
    """Return the file with that hash, in the store or among the files of the same model; None where it is not here."""
    models = (ref for ref in all_refs() if ref.kind == "model" and ref.source.kind == "gguf")
    stored = (ref.path for ref in models if ref.source.recorded == sha256)
    candidates = itertools.chain(stored, other_files(beside, read_gguf(beside)))
    return next((path for path in candidates if hash_of(path) == sha256), None)


def has_learned(facts: TunedFacts) -> bool:
    """Return whether the training loss fell by more than the batches differ."""
    number = len(facts.losses) // PART
    if not number:
        return False
    first, last = fmean(facts.losses[:number]), fmean(facts.losses[-number:])
    return first - last > max(LEARNED_NATS, LEARNED_SHARE * first)


def _gain(facts: TunedFacts, served: Served, rows: RunRows, items: list[Item]) -> tuple[float, float]:
    """Return nats per token of some rows to the base, and how much likelier they are to the tuned model."""
    before, after = (fmean(losses_of(side, rows, items)) for side in (Served(facts.base), served))
    return before, before - after


def _least(base: float) -> float:
    """Return the nats per token that count, where the base's loss is `base`."""
    return LEAST_NATS + LEAST_SHARE * base


def _little(facts: TunedFacts) -> Cause:
    return "rate" if facts.rate < LOW_RATE * usual_rate(facts) else "steps"


def _recipe(cause: Cause, facts: TunedFacts) -> Recipe:
    return with_rate(facts.recipe, usual_rate(facts)) if cause == "rate" else facts.recipe


def _knob(found: Unlearned, facts: TunedFacts, steps: int) -> str:
    return {
        "base": f"{found.other} below the adapter",
        "export": "the adapter exported again from the weights that the run keeps",
        "mask": "all answers of the rows are learned",
        "rate": f"learning rate {usual_rate(facts):g} instead of {facts.rate:.2g}",
        "steps": f"{steps:,} steps instead of {facts.steps:,}",
    }[found.cause]

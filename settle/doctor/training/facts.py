"""What is known of a run that trained, from its plan, its recipe and its events."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from settle.base.errors import SettleError, UsageError
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.settings import read_recipe

COMMANDS = ("train", "tune")  # whose runs can be trained again in short


@dataclass(frozen=True)
class TrainingFacts:
    """Figures of a run."""

    run: Run
    corpus: str  # fingerprint of the tokens that it learned from
    recipe: Mapping[str, object]  # what was asked
    base: Path | None  # file that it was tuned from, None for a model from scratch
    rate: float  # learning rate
    rate_is_asked: bool
    whole: bool  # all weights are trained, and not an adapter
    steps: int  # that were taken
    step_seconds: float | None  # of one
    losses: list[float]  # of training, a step each, with infinity for one that is no number
    evaluations: list[tuple[int, float]]  # step and loss of the held-out text
    rollbacks: int
    verdict: str


@dataclass(frozen=True)
class TunedFacts(TrainingFacts):
    """Figures of a run that tuned a GGUF file."""

    base: Path


F = TypeVar("F", bound=TrainingFacts)


def facts_of(run: Run) -> TrainingFacts | None:
    """Return the facts of a run of `settle train` or `settle tune`; None for another, and for one that has not begun.

    Raises RunError for files that are damaged.
    """
    if run.command not in COMMANDS:
        return None
    plan, result = run.read("plan.json"), run.read("result.json")
    if not isinstance(plan, dict) or not isinstance(plan.get("loop"), dict):
        return None
    course = RunCourse.read(run.events)
    tuning = plan.get("tuning") or {}
    speeds = [s.tokens_per_second for s in course.steps if s.tokens_per_second > 0 and math.isfinite(s.loss)]
    tokens = plan["loop"].get("tokens_per_step") or 0
    base = Path(tuning["base"]) if tuning.get("base") else None
    facts = TrainingFacts(
        run=run,
        corpus=str(plan.get("corpus")),
        recipe=_recipe(run, plan),
        base=base,
        rate=float((plan.get("optimizer") or {}).get("lr") or 0.0),
        rate_is_asked=(plan.get("origin") or {}).get("optimizer.lr", "default") != "default",
        whole=tuning.get("adapter_name") == "full",
        steps=course.steps[-1].step if course.steps else 0,
        step_seconds=tokens / sorted(speeds)[len(speeds) // 2] if speeds and tokens else None,
        losses=[s.loss if math.isfinite(s.loss) else math.inf for s in course.steps],
        evaluations=[(e.step, e.loss) for e in course.evals],
        rollbacks=len(course.rollbacks),
        verdict=str(result.get("verdict") or "") if isinstance(result, dict) else "",
    )
    return TunedFacts(**vars(facts)) if base is not None and base.suffix == ".gguf" else facts


def tuned_facts(run: Run) -> TunedFacts | None:
    """Return the facts of a run that tuned a GGUF file; None for another."""
    facts = facts_of(run)
    return facts if isinstance(facts, TunedFacts) else None


def known_facts(run: Run) -> TrainingFacts:
    """Return the facts of a run that was found to have some. Raises UsageError where they are gone since."""
    return _known(facts_of(run), run)


def known_tuned_facts(run: Run) -> TunedFacts:
    """Return the facts of a run that was found to have tuned a GGUF file. Raises UsageError where they are gone."""
    return _known(tuned_facts(run), run)


def _known(facts: F | None, run: Run) -> F:
    if facts is None:
        raise UsageError(f"{run.name} has no record of its training any more", "run it again")
    return facts


def _recipe(run: Run, plan: Mapping[str, object]) -> dict[str, object]:
    try:
        return read_recipe(run.path / "recipe.toml")
    except SettleError:
        asked = plan.get("asked")
        return dict(asked) if isinstance(asked, dict) else {}

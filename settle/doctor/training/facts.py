"""What is known of a run that trained, from its plan, its recipe and its events."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import SettleError
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.settings import read_recipe
from settle.doctor.subject import Subject

COMMANDS = ("train", "tune")  # whose runs can be trained again in short


@dataclass(frozen=True)
class TrainingFacts:
    """plan: of plan.json. recipe: what was asked. base: the file that it was tuned from, None for a model from scratch.
    rate: learning rate. steps: that were taken. step_seconds: of one, or None. losses: of training, a step each, with
    infinity for one that is no number; evaluations: (step, loss) of the held-out text."""

    run: Run
    plan: Mapping[str, object]
    recipe: Mapping[str, object]
    base: Path | None
    base_sha256: str
    rate: float
    rate_is_asked: bool
    whole: bool
    steps: int
    step_seconds: float | None
    losses: list[float]
    evaluations: list[tuple[int, float]]
    rollbacks: int
    verdict: str


def facts_of(run: Run) -> TrainingFacts | None:
    """The facts of a run of `settle train` or `settle tune`; None for another, and for one that has not begun. Raises
    RunError for files that are damaged."""
    if run.command not in COMMANDS:
        return None
    plan, result = run.read("plan.json"), run.read("result.json")
    if not isinstance(plan, dict) or not isinstance(plan.get("loop"), dict):
        return None
    course = RunCourse.read(run.events)
    tuning = plan.get("tuning") or {}
    speeds = [s.tokens_per_second for s in course.steps if s.tokens_per_second > 0 and math.isfinite(s.loss)]
    tokens = plan["loop"].get("tokens_per_step") or 0
    return TrainingFacts(
        run=run,
        plan=plan,
        recipe=_recipe(run, plan),
        base=Path(tuning["base"]) if tuning.get("base") else None,
        base_sha256=str(tuning.get("base_sha256") or ""),
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


def tuned_facts(subject: Subject) -> TrainingFacts | None:
    """The facts of a run that tuned a GGUF file; None for another."""
    facts = facts_of(subject.run) if subject.run is not None else None
    return facts if facts is not None and facts.base is not None and facts.base.suffix == ".gguf" else None


def _recipe(run: Run, plan: Mapping[str, object]) -> dict[str, object]:
    try:
        return read_recipe(run.path / "recipe.toml")
    except SettleError:
        asked = plan.get("asked")
        return dict(asked) if isinstance(asked, dict) else {}

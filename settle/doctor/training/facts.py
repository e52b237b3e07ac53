"""What is known of a run that trained, from its plan, its recipe and its events."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from settle.base.errors import RunError, SettleError, UsageError
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.settings import read_recipe

Recipe = Mapping[str, object]  # values of settings by name, as recipe.toml holds them
COMMANDS = ("train", "tune")  # whose runs can be trained again in short


class Recorded(BaseModel):
    """A part of a JSON file of a run: what the doctor reads of it. Values that are null are left at their defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: object) -> object:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, Mapping) else values


class LoopRecord(Recorded):
    """The loop of plan.json."""

    tokens_per_step: int = 0
    max_steps: int | None = None
    micro_batches: int | None = None


class TuningRecord(Recorded):
    """What plan.json says of tuning."""

    base: Path | None = None
    adapter_name: str = ""
    rows: int = 0  # that go through the model at once
    recompute: int | None = None


class OptimizerRecord(Recorded):
    """The optimizer of plan.json."""

    lr: float = 0.0


class MemoryRecord(Recorded):
    """The machine's memory when a run had its plan."""

    available: int | None = None


class MachineRecord(Recorded):
    """The machine of plan.json."""

    memory: MemoryRecord = MemoryRecord()


class PlanRecord(Recorded):
    """A run's plan.json."""

    loop: LoopRecord | None = None
    tuning: TuningRecord = TuningRecord()
    optimizer: OptimizerRecord = OptimizerRecord()
    machine: MachineRecord = MachineRecord()
    origin: dict[str, str] = {}  # of settings
    asked: dict[str, object] = {}
    versions: dict[str, str] = {}  # of packages
    corpus: str = ""

    @classmethod
    def of(cls, run: Run) -> "PlanRecord":
        """Return the plan of a run, empty where it has none. Raises RunError for a file that is damaged."""
        try:
            return cls.model_validate(run.read("plan.json") or {})
        except ValidationError as e:
            place = ".".join(map(str, e.errors()[0]["loc"]))
            raise RunError(f"{run.path / 'plan.json'} is damaged at {place}", "run it again") from None


@dataclass(frozen=True)
class TrainingFacts:
    """Figures of a run."""

    run: Run
    corpus: str  # fingerprint of the tokens that it learned from
    recipe: Recipe  # what was asked
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
    plan, result = PlanRecord.of(run), run.read("result.json")
    if plan.loop is None:
        return None
    course, base = RunCourse.read(run.events), plan.tuning.base
    speeds = [s.tokens_per_second for s in course.steps if s.tokens_per_second > 0 and math.isfinite(s.loss)]
    tokens = plan.loop.tokens_per_step
    facts = TrainingFacts(
        run=run,
        corpus=plan.corpus,
        recipe=_recipe(run, plan),
        base=base,
        rate=plan.optimizer.lr,
        rate_is_asked=plan.origin.get("optimizer.lr", "default") != "default",
        whole=plan.tuning.adapter_name == "full",
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


def _recipe(run: Run, plan: PlanRecord) -> Recipe:
    try:
        return read_recipe(run.path / "recipe.toml")
    except SettleError:
        return plan.asked

"""What is known of a run that trained, from its plan, its recipe and its events."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from settle.base.errors import RunError, SettleError, UsageError
from settle.base.event_log import tail
from settle.base.events import Event, Opened
from settle.base.run import TAIL_BYTES, Run
from settle.base.run.course import RunCourse
from settle.base.settings import read_recipe

Recipe = Mapping[str, object]  # values of settings by name, as recipe.toml holds them
COMMANDS = ("train", "tune")  # whose runs can be trained again in short
F = TypeVar("F")


class Recorded(BaseModel):
    """A part of a JSON file of a run: what the doctor reads of it. Values that are null are left at their defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    file: ClassVar[str]  # of a whole one

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: object) -> object:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return what the file of a run says; defaults where it has none. Raises RunError for one that is damaged."""
        try:
            return cls.model_validate(run.read(cls.file) or {})
        except ValidationError as e:
            place = ".".join(map(str, e.errors()[0]["loc"]))
            raise RunError(f"{run.path / cls.file} is damaged at {place}", "run it again") from None


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
    lr: float = 0.0


class MemoryRecord(Recorded):
    available: int | None = None


class MachineRecord(Recorded):
    memory: MemoryRecord = MemoryRecord()


class PlanRecord(Recorded):
    """A run's plan.json."""

    file: ClassVar[str] = "plan.json"
    loop: LoopRecord | None = None
    tuning: TuningRecord = TuningRecord()
    optimizer: OptimizerRecord = OptimizerRecord()
    machine: MachineRecord = MachineRecord()
    origin: dict[str, str] = {}  # of settings
    asked: Recipe = {}
    versions: dict[str, str] = {}  # of packages
    corpus: str = ""


class KeptAnswer(Recorded):
    """What the exported file answered, as ids."""

    prompt: list[int] = []
    answer: list[int] = []


class GateRecord(Recorded):
    answers: list[KeptAnswer] = []


class ResultRecord(Recorded):
    """A run's result.json."""

    file: ClassVar[str] = "result.json"
    verdict: str = ""
    gate: GateRecord = GateRecord()


class Estimate(Recorded):
    value: float | None = None


class Forecast(Recorded):
    """A run's forecast.json."""

    file: ClassVar[str] = "forecast.json"
    peak_memory: Estimate = Estimate()


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


def facts_of(run: Run) -> TrainingFacts | None:
    """Return the facts of a run of `settle train` or `settle tune`; None for another, and for one that has not begun.

    Raises RunError for files that are damaged.
    """
    if run.command not in COMMANDS:
        return None
    plan = PlanRecord.of(run)
    if plan.loop is None:
        return None
    try:
        recipe: Recipe = read_recipe(run.path / "recipe.toml")
    except SettleError:
        recipe = plan.asked
    course, base = RunCourse.read(run.events), plan.tuning.base
    speeds = [s.tokens_per_second for s in course.steps if s.tokens_per_second > 0 and math.isfinite(s.loss)]
    tokens = plan.loop.tokens_per_step
    facts = TrainingFacts(
        run=run,
        corpus=plan.corpus,
        recipe=recipe,
        base=base,
        rate=plan.optimizer.lr,
        rate_is_asked=plan.origin.get("optimizer.lr", "default") != "default",
        whole=plan.tuning.adapter_name == "full",
        steps=course.steps[-1].step if course.steps else 0,
        step_seconds=tokens / sorted(speeds)[len(speeds) // 2] if speeds and tokens else None,
        losses=[s.loss if math.isfinite(s.loss) else math.inf for s in course.steps],
        evaluations=[(e.step, e.loss) for e in course.evals],
        rollbacks=len(course.rollbacks),
        verdict=ResultRecord.of(run).verdict,
    )
    return TunedFacts(**vars(facts)) if base is not None and base.suffix == ".gguf" else facts


def tuned_facts(run: Run) -> TunedFacts | None:
    """Return the facts of a run that tuned a GGUF file; None for another."""
    facts = facts_of(run)
    return facts if isinstance(facts, TunedFacts) else None


def known(facts: F | None, run: Run) -> F:
    """Return the facts of a run that was found to have some. Raises UsageError where they are gone since."""
    if facts is None:
        raise UsageError(f"{run.name} has no record of its training any more", "run it again")
    return facts


def latest_session(run: Run) -> list[Event]:
    """Return the events since a run was started or resumed the last time. Raises SettleError."""
    try:
        events = tail(run.events, TAIL_BYTES)
    except OSError as e:
        raise SettleError(f"{run.events} cannot be read: {e.strerror}", "fix its permissions") from None
    return events[max((at for at, event in enumerate(events) if isinstance(event, Opened)), default=0) :]

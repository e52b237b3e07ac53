"""What plan.json holds of a run that trains: every number, and where it came from. `settle/plan` makes it."""

from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace

from pydantic.dataclasses import dataclass

from settle.base.version import refuse_newer
from settle.model.families import of_plan
from settle.train.state import LoopPlan

PLAN_VERSION = 1  # version of plan.json


@dataclass(frozen=True)
class Tuning:
    """How a pretrained model is trained on.

    base: where its files are. adapter_name: a part of model/adapters, or "full" for every weight. quantize: how frozen
    weights are kept. rows: of one micro-batch. recompute: see `Decoder`. float32_scores: the layers whose attention
    scores are not rounded to a half type.
    """

    base: str
    base_name: str
    base_sha256: str
    adapter_name: str
    adapter: Mapping[str, object]
    quantize: str | None
    rows: int
    recompute: int
    float32_scores: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """All that plan.json holds about what will be done; `why` gives the reason for each derived number."""

    architecture: Mapping[str, object]
    architecture_name: str
    objective: str
    optimizer_name: str
    optimizer: Mapping[str, object]
    loop: LoopPlan
    device: str
    dtype: str
    held_out_tokens: int
    origin: Mapping[str, str]
    why: Mapping[str, str]
    objective_settings: Mapping[str, object] = field(default_factory=dict)
    tuning: Tuning | None = None

    @property
    def num_parameters(self) -> int:
        """What the model really has: the shape whose size comes nearest to what was asked for."""
        return of_plan(self.architecture_name, self.architecture).num_parameters

    def with_loop(self, **changes: object) -> "TrainingPlan":
        """Return the plan with other numbers of the loop."""
        return replace(self, loop=self.loop.model_copy(update=changes))

    def with_threads(self, threads: int, why: str) -> "TrainingPlan":
        """Return the plan with a number of threads that was measured."""
        plan = self.with_loop(threads=threads)
        return replace(plan, origin={**self.origin, "threads": "measured"}, why={**self.why, "threads": why})

    def to_json(self) -> dict[str, object]:
        return {"version": PLAN_VERSION, **asdict(self), "loop": self.loop.model_dump()}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "TrainingPlan":
        """Read the plan in a plan.json, which holds more. Raises RunError for a newer version, else ValueError."""
        refuse_newer(values, PLAN_VERSION, "plan.json")
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})  # type: ignore[arg-type]  # checked

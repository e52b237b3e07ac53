"""What the training loop reads and what it keeps: its plan, its state, and how it ended."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from pydantic import Field, TypeAdapter

from settle.base.settings import Settings
from settle.train.checkpoint import Weights
from settle.train.evaluation import Evaluation
from settle.train.settled import EVALUATION_COST, Evidence


@dataclass(frozen=True)
class Schedule:
    """The learning-rate multiplier as a pure function of the step: warm-up, then constant, then down to zero (WSD).

    No step count has to be known beforehand (Hu et al. 2024, MiniCPM, arXiv 2404.06395; Hägele et al. 2024, arXiv
    2405.18392).

    `decay_start` is None while it is unknown when the run will end. A run that ends by the clock plans the rest of its
    decay again and again (`replanned`): it then falls from `level` at `replanned_at` to zero over `decay_steps`.
    """

    warmup_steps: int
    decay_start: int | None = None
    decay_steps: int = 1
    replanned_at: int | None = None
    level: float = 1.0

    def multiplier(self, step: int) -> float:
        """In (0, 1]: what the base learning rate of step `step` (0 is the first) is multiplied with."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1)) * self._decay(step)

    @property
    def end(self) -> int | None:
        """The step count after which the run is over, once decay has begun."""
        return None if self._planned_at is None else self._planned_at + self.decay_steps

    def decay_from(self, step: int, steps: int) -> "Schedule":
        """Return the schedule with the decay fixed to `steps` steps from `step`."""
        return Schedule(self.warmup_steps, step, max(1, steps))

    def replanned(self, step: int, steps: int) -> "Schedule":
        """Return the schedule with `steps` steps left of its decay at `step`, from the level that it has reached."""
        return replace(self, replanned_at=step, decay_steps=max(1, steps), level=self._decay(step - 1))

    @property
    def _planned_at(self) -> int | None:
        return self.decay_start if self.replanned_at is None else self.replanned_at

    def _decay(self, step: int) -> float:
        """Return what is left of the learning rate, warm-up aside."""
        if self.end is None or self.decay_start is None or step < self.decay_start:
            return 1.0
        return self.level * max(self.end - step, 1) / (self.decay_steps + 1)


class LoopPlan(Settings):
    """Every number the loop reads. All of it matters to a resume: a run is resumed only under the same plan."""

    tokens_per_step: int = Field(description="tokens of one optimizer step, over all micro-batches")
    micro_batches: int = Field(1, description="micro-batches accumulated into one step")
    sequence_length: int = Field(description="longest piece of a document that attention sees, tokens")
    warmup_steps: int = Field(description="steps of rising learning rate")
    max_steps: int | None = Field(None, description="stop after this many steps at the latest")
    seconds: float | None = Field(None, description="time budget of the whole run, seconds of work")
    seconds_after: float = Field(
        0.0, description="what follows the loop: the last evaluations, export and gate, in seconds at the probe's pace"
    )
    seconds_judging: float = Field(0.0, description="of seconds_after, the last evaluations")
    seconds_comparing: float = Field(0.0, description="kept for the comparison, which fits itself into its time")
    step_seconds: float = Field(0.0, description="the probe's pace, seconds per step")
    waiting: float = Field(1.0, description="times longer than alone the probe's steps took, for other programs' sake")
    decay_fraction: float = Field(description="share of a budgeted run in which the learning rate falls to zero")
    longest_decay: int | None = Field(None, description="steps of the decay at most: longer ones memorize the text")
    average: float = Field(
        0.0, description="share of the steps that the averaged weights reach back over; 0: weights are not averaged"
    )
    bigram_loss: float | None = Field(None, description="held-out loss of counting pairs of tokens, nats per token")
    trigram_loss: float | None = Field(None, description="the same of triples")
    tolerance: float = Field(0.005, description="the relative improvement for 10 % more tokens that still matters")
    most_passes: float | None = Field(
        None, description="passes over the rows that a run without a budget makes at most, and 200 steps at least"
    )
    until_settled: bool = Field(True, description="stop by the verdict; false: only by the budget")
    is_refit: bool = Field(
        False,
        description="no text chooses weights or judges them, as in a refit, which has none left, and in a probe; the "
        "last weights are kept, or their average",
    )
    evaluation_cost: float = Field(EVALUATION_COST, description="share of the computing time of evaluations, early on")
    is_sharded: bool = Field(
        False, description="on many ranks, each holds its rows of weights and optimizer state alone"
    )
    is_hybrid: bool = Field(False, description="each host holds all rows, shared out among its ranks")
    offloads: bool = Field(False, description="the rows of weights and optimizer state lie in the host's memory")
    clip: float = Field(1.0, description="largest norm of the gradient")
    checkpoint_steps: int = Field(description="steps from one checkpoint to the next")
    seed: int = Field(0, description="order of the data and first weights")
    threads: int = Field(1, description="CPU threads; the order of sums depends on it")


@dataclass(frozen=True)
class NamedRow:
    """A row of a batch: tokens `start` to `stop` of a document, where that comes from, and how it begins."""

    document: int
    source: str
    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class NamedBatch:
    """A batch and its first rows."""

    position: int
    num_rows: int
    rows: list[NamedRow]


@dataclass(frozen=True)
class RollbackNote:
    """A step that went wrong, and the batches that are left out since."""

    step: int
    loss: str
    grad_norm: str
    to_step: int
    batches: list[NamedBatch]


@dataclass
class LoopState:
    """What a checkpoint keeps beside tensors. `position` counts micro-batches drawn from the data.

    `spent`: seconds, joules and peak bytes of all sessions until this checkpoint.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    schedule: Schedule = field(default_factory=lambda: Schedule(0))
    history: list[Evaluation] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    rollbacks: list[RollbackNote] = field(default_factory=list)
    best_step: int = 0
    averaged: Evaluation | None = (
        None  # of the average of the weights until `best_step`, where that is kept as the best
    )
    is_past_half: bool = False  # whether the sample in the middle of the run was taken
    last_step: int | None = None  # by which the decay ends, where a number of steps decides it and not the clock
    stop: str = ""  # why the end was decided: settled | learned | overfitting | passes | budget | diverged | broken
    judgement: Evidence = field(default_factory=dict)  # `Judgement.to_json`
    spent: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "LoopState":
        """Read what `to_json` wrote. Raises ValueError when it was not this version's."""
        if unknown := values.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"unknown state {min(unknown)!r}")
        return _STATE.validate_python(values)

    def draw(self) -> int:
        """Take the next micro-batch; return its position."""
        while self.position in self.skipped:
            self.position += 1
        self.position += 1
        return self.position - 1

    def last_drawn(self, count: int) -> list[int]:
        """Return the `count` positions drawn last, in order."""
        drawn: list[int] = []
        position = self.position
        while len(drawn) < count and position > 0:
            position -= 1
            if position not in self.skipped:
                drawn.append(position)
        return drawn[::-1]

    @property
    def best(self) -> Evaluation:
        """The evaluation whose weights are kept as the best."""
        return self.averaged or next(e for e in self.history if e.step == self.best_step)

    @property
    def best_loss(self) -> float:
        return self.best.loss

    @property
    def is_over(self) -> bool:
        return self.stop in ("diverged", "broken") or self.step == self.schedule.end


_STATE = TypeAdapter(LoopState)


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: its state and the best weights, on the CPU in float32."""

    state: LoopState
    best: Weights
    interrupted: bool

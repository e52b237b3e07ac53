"""The one training loop. It reads only its plan; position in the data, step and history are its whole state.

Legend: N tokens of a packed micro-batch, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field

from settle.base.errors import CheckpointError
from settle.base.events import Events
from settle.base.run import Run
from settle.base.settings import Settings
from settle.data.batches import Batch, Batches
from settle.model.architectures import Decoder
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint, Weights
from settle.train.evaluation import Evaluation, evaluate
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.schedule import Schedule
from settle.train.settled import Judgement, Settled, decay_tokens, frequency_loss, next_evaluation, steps_astray

MAX_ROLLBACKS = 5  # within one run: after that the recipe itself is at fault
FLOOR_TOKENS = 1 << 20
KEPT_LOSSES = 127  # training losses that a spike is told by


class LoopPlan(Settings):
    """Every number the loop reads. All of it matters to a resume: a run goes on only under the same plan."""

    tokens_per_step: int = Field(description="tokens of one optimizer step, over all micro-batches")
    micro_batches: int = Field(1, description="micro-batches accumulated into one step")
    sequence_length: int = Field(description="longest piece of a document that attention sees, tokens")
    warmup_steps: int = Field(description="steps of rising learning rate")
    max_steps: int | None = Field(None, description="stop after this many steps at the latest")
    seconds: float | None = Field(None, description="time budget of the loop, seconds of work")
    decay_fraction: float = Field(description="share of a budgeted run that the learning rate falls to zero in")
    tolerance: float = Field(0.005, description="the relative improvement for 10 % more tokens that still matters")
    until_settled: bool = Field(True, description="stop by the verdict; false: only by the budget")
    clip: float = Field(1.0, description="largest norm of the gradient")
    checkpoint_steps: int = Field(description="steps from one checkpoint to the next")
    seed: int = Field(0, description="order of the data and first weights")
    threads: int = Field(1, description="CPU threads; the order of sums depends on it")


@dataclass
class State:
    """What a checkpoint keeps beside tensors. `position` counts micro-batches drawn from the data."""

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    schedule: Schedule = field(default_factory=lambda: Schedule(0))
    history: list[Evaluation] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    stop: str = ""  # why the end was decided: settled | overfitting | budget | diverged | broken
    judgement: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "State":
        values = dict(values)
        values["schedule"] = Schedule(**values["schedule"])
        values["history"] = [Evaluation(**{**e, "blocks": tuple(e["blocks"])}) for e in values["history"]]
        return cls(**values)


@dataclass(frozen=True)
class Outcome:
    """What the loop hands over: the state at its end and the best weights, on the CPU in float32."""

    state: State
    best: Weights
    interrupted: bool


class Loop:
    """Trains `model` until it has settled or its budget is spent."""

    def __init__(
        self,
        plan: LoopPlan,
        model: Decoder,
        objective: Objective,
        optimizer: Optimizer,
        batches: Batches,
        held_out: Sequence[Batch],
        byte_length: np.ndarray,
        run: Run,
        events: Events,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan, self.model, self.objective = plan, model, objective
        self.base_lr, self.stepper = optimizer.lr, optimizer.bind(model)
        self.batches, self.held_out, self.byte_length = batches, held_out, byte_length
        self.run, self.events, self.stopping = run, events, stopping
        self.sample_tokens = sum(len(b.targets) for b in held_out)
        self.settled = Settled(plan.tolerance, plan.warmup_steps * plan.tokens_per_step, self._floor())
        self.state = State(schedule=Schedule(plan.warmup_steps))
        self.best: Weights = {}

    def train(self) -> Outcome:
        """Run to the end, or until `stopping()`; a checkpoint exists at every return."""
        torch.set_num_threads(self.plan.threads)
        self._restore_or_begin()
        state = self.state
        while not self._over():
            started = time.perf_counter()
            self._decide_end()
            loss, grad_norm = self._step(state.schedule.multiplier(state.step))
            astray = steps_astray(state.train_losses, loss) if math.isfinite(grad_norm) else 1
            if astray:
                self._roll_back(loss, grad_norm, astray)
                state = self.state
                continue
            state.step += 1
            state.train_losses = [*state.train_losses[-KEPT_LOSSES:], loss]
            self._tell_step(loss, grad_norm, time.perf_counter() - started)
            if self._evaluation_is_due():
                self._evaluate()
            state.seconds += time.perf_counter() - started
            if state.step % self.plan.checkpoint_steps == 0:
                self._save()
            if self.stopping() and not self._over():
                self._save()
                return Outcome(state, self.best, interrupted=True)
        self._save()
        return Outcome(state, self.best, interrupted=False)

    # --- one step ---

    def _step(self, multiplier: float) -> tuple[float, float]:
        """Forward, backward, clip, update. Returns the mean loss, nats per token, and the gradient's norm.

        The loss is sum ÷ count over the whole step: the count of all micro-batches is known before the first.
        """
        batches = [self.batches.at(self._next_position()) for _ in range(self.plan.micro_batches)]
        count = sum(int((b.targets >= 0).sum()) for b in batches)
        loss = 0.0
        self.model.zero_grad(set_to_none=True)
        for batch in batches:
            total, _ = self.objective.batch_loss(self.model, batch)
            (total / count).backward()
            loss += float(total.detach()) / count
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip))
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.stepper.step(multiplier)
        return loss, grad_norm

    def _next_position(self) -> int:
        while self.state.position in self.state.skipped:
            self.state.position += 1
        self.state.position += 1
        return self.state.position - 1

    # --- when it ends ---

    def _over(self) -> bool:
        return self.state.stop in ("diverged", "broken") or self.state.step == self.state.schedule.end

    def _decide_end(self) -> None:
        """Fix the decay when the budget asks for it: in steps when known beforehand, else by the clock."""
        state, plan = self.state, self.plan
        if state.schedule.decay_start is not None:
            return
        if plan.max_steps is not None:
            steps = max(1, round(plan.max_steps * plan.decay_fraction))
            if state.step >= plan.max_steps - steps:
                self._begin_decay("budget", plan.max_steps - state.step)
        if plan.seconds is not None and state.step > 0 and state.schedule.decay_start is None:
            per_step = state.seconds / state.step
            if state.seconds >= plan.seconds * (1 - plan.decay_fraction):
                self._begin_decay("budget", max(1, round((plan.seconds - state.seconds) / per_step)))

    def _begin_decay(self, why: str, steps: int) -> None:
        state = self.state
        state.stop = why
        state.schedule = state.schedule.decay_from(state.step, steps)
        self.events.emit("decay", step=state.step, until=state.schedule.end, why=why)

    # --- looking ---

    def _evaluation_is_due(self) -> bool:
        state = self.state
        if state.step == state.schedule.end:
            return True
        last = state.history[-1].tokens
        return self._tokens() >= next_evaluation(last, self.sample_tokens)

    def _evaluate(self) -> None:
        """Look at the held-out data, keep the best weights, and ask whether the run has settled."""
        state = self.state
        seen = evaluate(self.model, self.objective, self.held_out, self.byte_length, state.step, self._tokens())
        state.history.append(seen)
        if not self.best or seen.loss < self._best_loss():
            state.best_step = seen.step
            self.best = self._weights()
        self.events.emit(
            "eval",
            step=seen.step,
            tokens=seen.tokens,
            loss=seen.loss,
            stderr=seen.stderr,
            bits_per_byte=seen.bits_per_byte,
        )
        if state.schedule.decay_start is None:
            judgement = self.settled.judge(state.history)
            state.judgement = asdict(judgement)
            self.events.emit("settled", step=state.step, tolerance=self.plan.tolerance, **asdict(judgement))
            if self.plan.until_settled:
                self._act_on(judgement)

    def _act_on(self, judgement: Judgement) -> None:
        if judgement.state in ("settled", "overfitting"):
            steps = round(decay_tokens(self._tokens()) / self.plan.tokens_per_step)
            if self.plan.max_steps is not None:
                steps = min(steps, self.plan.max_steps - self.state.step)
            self._begin_decay(judgement.state, max(1, steps))
        elif judgement.state == "broken":
            self.state.stop = "broken"

    def _best_loss(self) -> float:
        return next(e.loss for e in self.state.history if e.step == self.state.best_step)

    def _floor(self) -> float:
        """The loss that knowing only token frequencies would give, from a bounded part of the training text."""
        size = len(self.byte_length)
        train = np.bincount(self.batches.store.tokens[:FLOOR_TOKENS], minlength=size)
        held_out = sum(np.bincount(b.targets[b.targets >= 0], minlength=size) for b in self.held_out)
        return frequency_loss(train, np.asarray(held_out))

    def _tokens(self) -> int:
        return self.state.step * self.plan.tokens_per_step

    def _tell_step(self, loss: float, grad_norm: float, elapsed: float) -> None:
        self.events.emit(
            "step",
            step=self.state.step,
            tokens=self._tokens(),
            loss=loss,
            lr=self.base_lr * self.state.schedule.multiplier(self.state.step - 1),
            grad_norm=grad_norm,
            tokens_per_second=self.plan.tokens_per_step / elapsed,
        )

    # --- when it goes wrong ---

    def _roll_back(self, loss: float, grad_norm: float, steps: int) -> None:
        """Go back to the last checkpoint and never draw the last `steps` steps' batches again; their rows are named."""
        bad = self.state
        positions = list(range(bad.position - steps * self.plan.micro_batches, bad.position))
        rows = [self.batches.rows_of(p) for p in positions]
        found = checkpoints.load_newest(self.run.checkpoints, self.events)
        if found is None:
            raise CheckpointError("the run went wrong before its first checkpoint", "start it again")
        self._restore(found)
        state = self.state
        note = {"step": bad.step, "loss": str(loss), "grad_norm": str(grad_norm), "rows": rows, "to_step": state.step}
        state.rollbacks = [*bad.rollbacks, note]
        state.skipped = sorted({*bad.skipped, *positions})
        state.seconds = bad.seconds
        self.events.emit("rollback", **note)
        if len(state.rollbacks) > MAX_ROLLBACKS:
            state.stop = "diverged"

    # --- nothing lost ---

    def _weights(self) -> Weights:
        """A copy of the weights on the CPU."""
        return {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}

    def _save(self) -> None:
        state = self.state
        made = Checkpoint(
            step=state.step,
            model=self._weights(),
            optimizer={k: v.detach().to("cpu", copy=True) for k, v in self.stepper.state().items()},
            best=self.best if state.best_step != state.step else None,
            state={"plan": self.plan.model_dump(), **state.to_json()},
        )
        checkpoints.save_or_wait(self.run.checkpoints, made, self.events, self.stopping)
        self.events.emit("checkpoint", step=state.step)

    def _restore(self, found: Checkpoint) -> None:
        state = dict(found.state)
        state.pop("plan")
        self.state = State.from_json(state)
        self.model.load_state_dict(found.model)
        self.stepper.restore(found.optimizer)
        self.best = found.best if found.best is not None else found.model

    def _restore_or_begin(self) -> None:
        found = checkpoints.load_newest(self.run.checkpoints, self.events)
        if found is None:
            self._evaluate()
            self._save()
            return
        for key, was in found.state["plan"].items():
            now = self.plan.model_dump().get(key)
            if now != was:
                raise CheckpointError(
                    f"plan.json was changed since the checkpoint: {key} is {now!r}, it was {was!r}",
                    "put it back, or start a new run",
                )
        self._restore(found)
        self.events.emit("say", text=f"going on from step {self.state.step}")

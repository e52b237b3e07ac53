"""The one training loop. It reads only its plan; position in the data, step and history are its whole state.

Legend: N tokens of a packed micro-batch, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field

from settle.base.errors import CheckpointError
from settle.base.event_log import Events
from settle.base.events import CheckpointSaved, DecayStarted, Eval, Resumed, Rollback, SettledEvidence, Step
from settle.base.run import Run
from settle.base.settings import Settings
from settle.data.batches import Batch, Batches
from settle.machine import FreedMemory
from settle.model.decoder import Decoder
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint, Weights
from settle.train.evaluation import Evaluation, evaluate
from settle.train.gradient import backward
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.schedule import Schedule
from settle.train.settled import (
    EVALUATION_COST,
    Judgement,
    Settled,
    decay_tokens,
    frequency_loss,
    next_evaluation,
    steps_astray,
)

MAX_ROLLBACKS = 5  # within one run: after that the recipe itself is at fault
FLOOR_TOKENS = 1 << 20
KEPT_LOSSES = 127  # training losses that a spike is told by
NAMED_ROWS, SHOWN = 16, 80  # rows of a bad batch that are told, and characters of each


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
    evaluation_cost: float = Field(EVALUATION_COST, description="share of the computing time for looks, early in a run")
    clip: float = Field(1.0, description="largest norm of the gradient")
    checkpoint_steps: int = Field(description="steps from one checkpoint to the next")
    seed: int = Field(0, description="order of the data and first weights")
    threads: int = Field(1, description="CPU threads; the order of sums depends on it")


@dataclass
class State:
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
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    stop: str = ""  # why the end was decided: settled | overfitting | budget | diverged | broken
    judgement: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

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
    """Trains `model` until it has settled or its budget is spent.

    identity: what else a resume must find unchanged, kept in each checkpoint. spending: this session's share of
    `State.spent` so far. decode: ids → text, to show the rows of a bad batch.
    """

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
        identity: Mapping[str, Any] | None = None,
        spending: Callable[[], dict[str, float]] = dict,
        decode: Callable[[np.ndarray], str] = lambda ids: str(ids.tolist()),
    ) -> None:
        self.plan, self.model, self.objective = plan, model, objective
        self.base_lr, self.stepper = optimizer.lr, optimizer.bind(model)
        self.batches, self.held_out, self.byte_length = batches, held_out, byte_length
        self.run, self.events, self.stopping = run, events, stopping
        self.identity, self.spending, self.decode = identity, spending, decode
        self.sample_tokens = sum(len(b.targets) for b in held_out)
        self.settled = Settled(plan.tolerance, plan.warmup_steps * plan.tokens_per_step, self._floor())
        self.state = State(schedule=Schedule(plan.warmup_steps))
        self.freed = FreedMemory()
        self.best: Weights = {}
        self.earlier: dict[str, float] = {}  # spent by the sessions before this one
        self.saved_step = -1  # of the newest checkpoint, when it holds the state as it is

    def train(self) -> Outcome:
        """Run to the end, or until `stopping()`; a checkpoint exists at every return."""
        torch.set_num_threads(self.plan.threads)
        self._restore_or_begin()
        while not self._over():
            started = time.perf_counter()
            self._decide_end()
            loss, grad_norm = self.take_step(self.state.schedule.multiplier(self.state.step))
            blamed = self._blamed(loss, grad_norm)
            if blamed:
                self._roll_back(loss, grad_norm, blamed)
                continue
            state = self.state
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
                return Outcome(self.state, self.best, interrupted=True)
        interrupted = not self._save()
        self.state.spent = self.spent()
        return Outcome(self.state, self.best, interrupted)

    # --- one step ---

    def take_step(self, multiplier: float) -> tuple[float, float]:
        """Forward, backward, clip, update. Returns the mean loss, nats per token, and the gradient's norm."""
        batches = [self.batches.at(self._next_position()) for _ in range(self.plan.micro_batches)]
        torch.manual_seed(self.plan.seed + self.state.position)  # of dropout: the same after a resume
        self.model.zero_grad(set_to_none=True)
        loss = backward(self.model, self.objective, batches)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip))
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.stepper.step(multiplier)
        self.freed.after_step()
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
        is_open = plan.seconds is not None and state.step > 0 and state.schedule.decay_start is None
        if is_open and state.seconds >= plan.seconds * (1 - plan.decay_fraction):
            self._begin_decay("budget", self._most_steps())

    def _most_steps(self) -> int:
        """How many further steps the budget has room for, at the speed so far; at least one."""
        state, plan = self.state, self.plan
        left = math.inf if plan.max_steps is None else plan.max_steps - state.step
        if plan.seconds is not None:
            left = min(left, (plan.seconds - state.seconds) / max(state.seconds / state.step, 1e-9))
        return max(1, round(min(left, 1e9)))

    def _begin_decay(self, why: str, steps: int) -> None:
        state = self.state
        state.stop = why
        state.schedule = state.schedule.decay_from(state.step, steps)
        self.events.emit(DecayStarted(step=state.step, until=state.schedule.end, why=why))

    # --- looking ---

    def _evaluation_is_due(self) -> bool:
        state = self.state
        if state.step == state.schedule.end:
            return True
        last = state.history[-1].tokens
        return self._tokens() >= next_evaluation(last, self.sample_tokens, self.plan.evaluation_cost)

    def _evaluate(self) -> None:
        """Look at the held-out data, keep the best weights, and ask whether the run has settled."""
        state = self.state
        seen = evaluate(self.model, self.objective, self.held_out, self.byte_length, state.step, self._tokens())
        if not math.isfinite(seen.loss):
            return  # the next step cannot be finite either, and rolls back
        state.history.append(seen)
        if not self.best or seen.loss < self._best_loss():
            state.best_step = seen.step
            self.best = self._weights()
        self.events.emit(
            Eval(
                step=seen.step,
                tokens=seen.tokens,
                loss=seen.loss,
                stderr=seen.stderr,
                bits_per_byte=seen.bits_per_byte,
            )
        )
        if state.schedule.decay_start is None:
            judgement = self.settled.judge(state.history)
            state.judgement = judgement.to_json()
            self.events.emit(SettledEvidence(step=state.step, tolerance=self.plan.tolerance, **judgement.to_json()))
            if self.plan.until_settled:
                self._act_on(judgement)

    def _act_on(self, judgement: Judgement) -> None:
        if judgement.state in ("settled", "overfitting"):
            steps = max(1, round(decay_tokens(self._tokens()) / self.plan.tokens_per_step))
            self._begin_decay(judgement.state, min(steps, self._most_steps()))
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
            Step(
                step=self.state.step,
                tokens=self._tokens(),
                loss=loss,
                lr=self.base_lr * self.state.schedule.multiplier(self.state.step - 1),
                grad_norm=grad_norm,
                tokens_per_second=self.plan.tokens_per_step / elapsed,
            )
        )

    # --- when it goes wrong ---

    def _blamed(self, loss: float, grad_norm: float) -> int:
        """How many of the last steps, this one included, went wrong or may have caused it; 0 when all is well.

        Weights are looked at when they are about to be kept, so that no checkpoint holds a broken one.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return 1 if self._weights_are_finite() else 2
        astray = steps_astray(self.state.train_losses, loss)
        if astray:
            return astray + 1  # the update before the first bad loss is what led there
        kept = (self.state.step + 1) % self.plan.checkpoint_steps == 0 or self.state.step + 1 == self.state.schedule.end
        return 1 if kept and not self._weights_are_finite() else 0

    def _weights_are_finite(self) -> bool:
        trained = list(self.model.trainable().values())
        return bool(torch.isfinite(torch.stack(torch._foreach_norm(trained))).all())

    def _roll_back(self, loss: float, grad_norm: float, blamed: int) -> None:
        """Go back before the last `blamed` steps and never draw their batches again; their rows are named.

        Only to a regular checkpoint: where one of an interruption lies must not change what comes of the run.
        """
        bad = self.state
        first = max(0, bad.step + 1 - blamed)
        positions = self._last_positions(min(blamed, bad.step + 1) * self.plan.micro_batches)
        found = checkpoints.load_newest(self.run.checkpoints, self.events, first, self.plan.checkpoint_steps)
        if found is None:
            raise CheckpointError(f"step {bad.step} went wrong and no checkpoint before it is left", "start again")
        self._restore(found)
        checkpoints.drop_after(self.run.checkpoints, found.step)
        state = self.state
        note = {
            "step": bad.step,
            "loss": str(loss),
            "grad_norm": str(grad_norm),
            "to_step": state.step,
            "batches": [self._named(p) for p in positions],
        }
        state.rollbacks = [*bad.rollbacks, note]
        state.skipped = sorted({*bad.skipped, *positions})
        state.seconds = bad.seconds
        self.saved_step = -1
        self.events.emit(Rollback.model_validate(note))
        if len(state.rollbacks) > MAX_ROLLBACKS:
            state.stop = "diverged"

    def _last_positions(self, count: int) -> list[int]:
        """The `count` positions drawn last, in order."""
        drawn: list[int] = []
        position = self.state.position
        while len(drawn) < count and position > 0:
            position -= 1
            if position not in self.state.skipped:
                drawn.append(position)
        return drawn[::-1]

    def _named(self, position: int) -> dict[str, Any]:
        """A batch and its first rows: which tokens of which document, where that comes from, how they read."""
        rows, store = self.batches.rows_of(position), self.batches.store
        named = [
            {
                "document": document,
                "source": store.origin(document),
                "start": start,
                "stop": stop,
                "text": self.decode(store.document(document)[start : min(stop, start + SHOWN)])[:SHOWN],
            }
            for document, start, stop in rows[:NAMED_ROWS]
        ]
        return {"position": position, "num_rows": len(rows), "rows": named}

    # --- nothing lost ---

    def spent(self) -> dict[str, float]:
        """Seconds and joules of all sessions added up; of peak bytes the largest."""
        now = self.spending()
        before = {k: self.earlier.get(k, 0.0) for k in now}
        return {k: max(before[k], v) if k == "peak_memory" else before[k] + v for k, v in now.items()}

    def _weights(self) -> Weights:
        """A copy of the trained weights on the CPU."""
        return {k: v.detach().to("cpu", copy=True) for k, v in self.model.trainable().items()}

    def _save(self) -> bool:
        """Whether the state as it is lies on disk: not when the disk is full and someone asks to stop."""
        state = self.state
        if self.saved_step == state.step:
            return True
        state.spent = self.spent()
        made = Checkpoint(
            step=state.step,
            model=self.model.trainable(),
            optimizer=self.stepper.state(),
            best=self.best if state.best_step != state.step else None,
            state={"identity": self.identity or {}, **state.to_json()},
        )
        every = self.plan.checkpoint_steps
        if not checkpoints.save_or_wait(self.run.checkpoints, made, every, self.events, self.stopping):
            return False
        self.saved_step = state.step
        self.events.emit(CheckpointSaved(step=state.step))
        return True

    def _restore(self, found: Checkpoint) -> None:
        state = {k: v for k, v in found.state.items() if k != "identity"}
        try:
            self.state = State.from_json(state)
            self.model.load_trainable(found.model)
            self.stepper.restore(found.optimizer)
        except (KeyError, TypeError, RuntimeError) as e:
            raise CheckpointError(
                f"checkpoint {found.step} does not fit this run: {e}", "it was made by another version or by hand"
            ) from None
        self.best = dict(found.best if found.best is not None else found.model)

    def _restore_or_begin(self) -> None:
        checkpoints.recover(self.run.checkpoints)
        found = checkpoints.load_newest(self.run.checkpoints, self.events)
        if found is None:
            self._evaluate()
            if not self.state.history:
                raise CheckpointError("the held-out loss is not a number before the first step", "look at the settings")
            self._save()
            return
        self._restore(found)
        self.earlier, self.saved_step = self.state.spent, self.state.step
        state = self.state
        self.events.emit(
            Resumed(
                step=state.step,
                until=state.schedule.end,
                most_steps=self.plan.max_steps,
                by_clock=self.plan.seconds is not None,
                seconds=state.seconds,
            )
        )

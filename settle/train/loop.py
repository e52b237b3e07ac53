"""The one training loop, which reads only its plan; position in the data, step and history are its whole state."""

import time
from functools import partial

import torch

from settle.base.errors import CheckpointError
from settle.base.events import Resumed, Step
from settle.machine.resource_usage import UsageSampler
from settle.train.evaluation import HeldOut
from settle.train.recovery import SPIKE_WINDOW, LoopSession, Recovery
from settle.train.state import LoopState, Outcome, Schedule
from settle.train.thread_choice import ThreadWatch
from settle.train.trainer import StepResult, Trainer
from settle.train.watch import Watch
from settle.train.world.weight_shards import whole


class Loop:
    """The order of a step, until the run has settled or its budget is spent.

    A trainer takes the steps, a watch evaluates and decides when the end begins, and recovery saves, and goes back when
    a step goes wrong.
    """

    def __init__(
        self, trainer: Trainer, held_out: HeldOut, session: LoopSession, threads: ThreadWatch | None = None
    ) -> None:
        self.trainer, self.plan, self.session = trainer, trainer.plan, session
        self.events, self.world = session.events, trainer.world
        self.watch = Watch(trainer, held_out, session.events, session.elapsed, session.judged)
        self.recovery = Recovery(trainer, session)
        number = self.plan.threads
        self.threads = threads or ThreadWatch(trainer, session.events, number, number, is_free=False)
        self.state = LoopState(schedule=Schedule(self.plan.warmup_steps))

    def train(self) -> Outcome:
        """Run to the end, or until `session.stopping()`; a checkpoint exists at every return."""
        self._resume_or_begin()
        usage = UsageSampler(self.session.spending, self.events)
        while not self.state.is_over:
            began = time.perf_counter()
            self.watch.spend_budget(self.state)
            rate = self.state.schedule.multiplier(self.state.step)
            result = self.threads.take(partial(self.trainer.take_step, self.state, rate))
            if self._rolled_back(result):
                continue
            self._record(result, time.perf_counter() - began)
            usage.sample(self.state.step, self.trainer.tokens(self.state))
            if self.watch.is_due(self.state):
                self.watch.evaluate(self.state)
            self._sample_at_half()
            self.state.seconds += self.world.agree(time.perf_counter() - began)
            if self.state.step % self.plan.checkpoint_steps == 0:
                self.recovery.save(self.state, self.watch.best, wait=False)
            if self.world.any(self.session.stopping()) and not self.state.is_over:
                self.recovery.save(self.state, self.watch.best)
                return Outcome(self.state, self.watch.best, interrupted=True)
        interrupted = not self.recovery.save(self.state, self.watch.best)
        self.state.spent = self.spent()
        return Outcome(self.state, self.watch.best, interrupted)

    def spent(self) -> dict[str, float]:
        """Return the seconds and joules of all sessions added up; of peak bytes the largest."""
        return self.recovery.spent()

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint, when it holds the state as it is, else -1."""
        return self.recovery.saved_step

    def _rolled_back(self, result: StepResult) -> bool:
        """Return whether the step went wrong, for any rank, so that the state is now an earlier one."""
        blamed = int(self.world.agree(self.recovery.steps_to_blame(self.state, result)))
        if blamed:
            self.state, self.watch.best = self.recovery.roll_back(self.state, result, blamed)
        return blamed > 0

    def _record(self, result: StepResult, elapsed: float) -> None:
        """Count a step that went well, and emit it."""
        state = self.state
        state.step += 1
        self.recovery.order.add(state.step, result.rows)
        state.train_losses = [*state.train_losses[-SPIKE_WINDOW:], result.loss]
        self.events.emit(
            Step(
                step=state.step,
                tokens=self.trainer.tokens(state),
                loss=result.loss,
                lr=self.trainer.base_lr * state.schedule.multiplier(state.step - 1),
                grad_norm=result.grad_norm,
                tokens_per_second=self.plan.tokens_per_step / elapsed,
            )
        )

    def _sample_at_half(self) -> None:
        """Let the session show what the model writes, once in the middle of the run."""
        if not self.state.is_past_half and self.watch.is_past_half(self.state):
            self.state.is_past_half = True
            self._sample(self.state.step, "middle")

    def _sample(self, step: int, moment: str) -> None:
        with whole(self.trainer.model):
            self.world.lead(lambda: self.session.sample(step, moment))

    def _resume_or_begin(self) -> None:
        """Continue from the newest checkpoint; without one, evaluate and save the model as it is."""
        torch.set_num_threads(self.threads.threads)
        resumed = self.recovery.resume()
        if not self.trainer.model.is_sharded:
            self.world.copy(list(self.trainer.model.trainable().values()))  # processors differ in how they round
        if resumed is None:
            self.watch.evaluate(self.state)
            if not self.state.history:
                raise CheckpointError("the held-out loss is not a number before the first step", "check the settings")
            self.recovery.save(self.state, self.watch.best)
            self._sample(0, "start")
            return
        self.state, self.watch.best = resumed
        self.events.emit(
            Resumed(
                step=self.state.step,
                until=self.state.schedule.end,
                most_steps=self.plan.max_steps,
                by_clock=self.plan.seconds is not None,
                seconds=self.state.seconds,
            )
        )

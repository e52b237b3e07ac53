"""The one training loop. It reads only its plan; position in the data, step and history are its whole state."""

import time

import torch

from settle.base.errors import CheckpointError
from settle.base.events import Resumed, Step
from settle.machine.resource_usage import UsageSampler
from settle.train.evaluation import HeldOut
from settle.train.recovery import SPIKE_WINDOW, Recovery, Session
from settle.train.schedule import Schedule
from settle.train.state import LoopState, Outcome
from settle.train.thread_choice import ThreadWatch
from settle.train.trainer import StepResult, Trainer
from settle.train.watch import Watch
from settle.train.world.weight_shards import whole


class Loop:
    """Trains until the run has settled or its budget is spent: a trainer takes the steps, a watch evaluates and decides
    when the end begins, and recovery saves, and goes back when a step goes wrong."""

    def __init__(
        self, trainer: Trainer, held_out: HeldOut, session: Session, threads: ThreadWatch | None = None
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
        torch.set_num_threads(self.threads.threads)
        self._resume_or_begin()
        usage = UsageSampler(self.session.spending, self.events)
        while not self.state.is_over:
            started = time.perf_counter()
            self.watch.spend_budget(self.state)
            result = self.threads.take(self._take_step)
            if blamed := int(self.world.agree(self.recovery.steps_to_blame(self.state, result))):
                self.state, self.watch.best = self.recovery.roll_back(self.state, result, blamed)
                continue
            state = self.state
            state.step += 1
            self.recovery.order.add(state.step, result.rows)
            state.train_losses = [*state.train_losses[-SPIKE_WINDOW:], result.loss]
            self._report(result, time.perf_counter() - started)
            usage.sample(state.step, self.trainer.tokens(state))
            if self.watch.is_due(state):
                self.watch.evaluate(state)
            if not state.is_past_half and self.watch.is_past_half(state):
                state.is_past_half = True
                self._sample(state.step, "middle")
            state.seconds += self.world.agree(time.perf_counter() - started)
            if state.step % self.plan.checkpoint_steps == 0:
                self.recovery.save(state, self.watch.best, wait=False)
            if self.world.any(self.session.stopping()) and not state.is_over:
                self._save()
                return Outcome(state, self.watch.best, interrupted=True)
        interrupted = not self._save()
        self.state.spent = self.spent()
        return Outcome(self.state, self.watch.best, interrupted)

    def spent(self) -> dict[str, float]:
        """Seconds and joules of all sessions added up; of peak bytes the largest."""
        return self.recovery.spent()

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint, when it holds the state as it is, else -1."""
        return self.recovery.saved_step

    def _take_step(self) -> StepResult:
        return self.trainer.take_step(self.state, self.state.schedule.multiplier(self.state.step))

    def _sample(self, step: int, moment: str) -> None:
        with whole(self.trainer.model):
            self.world.lead(lambda: self.session.sample(step, moment))

    def _save(self) -> bool:
        return self.recovery.save(self.state, self.watch.best)

    def _resume_or_begin(self) -> None:
        resumed = self.recovery.resume()
        if not self.trainer.model.is_sharded:
            self.world.copy(list(self.trainer.model.trainable().values()))  # processors differ in how they round
        if resumed is None:
            self.watch.evaluate(self.state)
            if not self.state.history:
                raise CheckpointError("the held-out loss is not a number before the first step", "check the settings")
            self._save()
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

    def _report(self, result: StepResult, elapsed: float) -> None:
        state = self.state
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

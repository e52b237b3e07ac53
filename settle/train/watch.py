"""Watches a run by its held-out loss: keeps the best weights, and decides when the learning rate decays.

Legend: V vocabulary.
"""

import math

import numpy as np

from settle.base.event_log import Events
from settle.base.events import DecayStarted, Eval, SettledEvidence
from settle.train.checkpoint import Weights
from settle.train.evaluation import HeldOut, evaluate
from settle.train.settled import Judgement, Settled, decay_tokens, frequency_loss, next_evaluation
from settle.train.state import LoopState
from settle.train.trainer import Trainer

FLOOR_TOKENS = 1 << 20  # tokens of the training text whose frequencies are counted


class Watch:
    """Evaluates a trainer's model on held-out data. `best`: the weights of the lowest held-out loss so far."""

    def __init__(self, trainer: Trainer, held_out: HeldOut, events: Events) -> None:
        self.trainer, self.plan, self.held_out, self.events = trainer, trainer.plan, held_out, events
        plan = self.plan
        self.settled = Settled(plan.tolerance, plan.warmup_steps * plan.tokens_per_step, self._frequency_loss())
        self.best: Weights = {}

    # --- evaluations ---

    def is_due(self, state: LoopState) -> bool:
        if state.step == state.schedule.end:
            return True
        due = next_evaluation(state.history[-1].tokens, self.held_out.num_tokens, self.plan.evaluation_cost)
        return self.trainer.tokens(state) >= due

    def evaluate(self, state: LoopState) -> None:
        """Evaluate, keep the best weights, and ask whether the run has settled."""
        trainer = self.trainer
        evaluation = evaluate(trainer.model, trainer.objective, self.held_out, state.step, trainer.tokens(state))
        if not math.isfinite(evaluation.loss):
            return  # the next step cannot be finite either, and rolls back
        state.history.append(evaluation)
        if not self.best or evaluation.loss < state.best_loss:
            state.best_step = evaluation.step
            self.best = trainer.weights()
        self.events.emit(Eval(**evaluation.figures()))
        if state.schedule.decay_start is None:
            judgement = self.settled.judge(state.history)
            state.judgement = judgement.to_json()
            at = {"step": state.step, "tolerance": self.plan.tolerance}
            self.events.emit(SettledEvidence.model_validate(state.judgement | at))
            if self.plan.until_settled:
                self._act_on(judgement, state)

    def _act_on(self, judgement: Judgement, state: LoopState) -> None:
        if judgement.state in ("settled", "overfitting"):
            steps = max(1, round(decay_tokens(self.trainer.tokens(state)) / self.plan.tokens_per_step))
            self._begin_decay(state, judgement.state, min(steps, self._affordable_steps(state)))
        elif judgement.state == "broken":
            state.stop = "broken"

    def _frequency_loss(self) -> float:
        """The loss that knowing only token frequencies would give, from a bounded part of the training text."""
        size = len(self.held_out.byte_length)
        train = np.bincount(self.trainer.batches.store.tokens[:FLOOR_TOKENS], minlength=size)
        held_out = [np.bincount(b.targets[b.targets >= 0], minlength=size) for b in self.held_out.batches]
        return frequency_loss(train, np.sum(held_out, axis=0))

    # --- budgets ---

    def spend_budget(self, state: LoopState) -> None:
        """Begin the decay when the budget asks for it: in steps when known beforehand, else by the clock."""
        plan = self.plan
        if state.schedule.decay_start is not None:
            return
        if plan.max_steps is not None:
            steps = max(1, round(plan.max_steps * plan.decay_fraction))
            if state.step >= plan.max_steps - steps:
                self._begin_decay(state, "budget", plan.max_steps - state.step)
                return
        if plan.seconds is not None and state.step > 0 and state.seconds >= plan.seconds * (1 - plan.decay_fraction):
            self._begin_decay(state, "budget", self._affordable_steps(state))

    def _affordable_steps(self, state: LoopState) -> int:
        """How many further steps the budget has room for, at the speed so far; at least one."""
        plan = self.plan
        left = math.inf if plan.max_steps is None else plan.max_steps - state.step
        if plan.seconds is not None:
            left = min(left, (plan.seconds - state.seconds) / max(state.seconds / state.step, 1e-9))
        return max(1, round(min(left, 1e9)))

    def _begin_decay(self, state: LoopState, why: str, steps: int) -> None:
        state.stop = why
        state.schedule = state.schedule.decay_from(state.step, steps)
        assert state.schedule.end is not None
        self.events.emit(DecayStarted(step=state.step, until=state.schedule.end, why=why))

"""Watches a run by its held-out loss: keeps the best weights, and decides when the learning rate decays.

Legend: V vocabulary.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from settle.base.event_log import Events
from settle.base.events import DecayStarted, Eval, SettledEvidence
from settle.train.checkpoint import Weights
from settle.train.evaluation import Evaluation, HeldOut, evaluate
from settle.train.settled import Judgement, Settled, decay_tokens, next_evaluation
from settle.train.settled.paired_fall import is_noise
from settle.train.settled.row_memory import learned
from settle.train.state import LoopPlan, LoopState
from settle.train.trainer import Trainer

FEWEST_STEPS, LEAST_SECONDS = 4, 5.0  # the latest steps that the pace is measured over: so many, and so long
FEWEST_BY_PASSES = 200  # steps: the fewer the rows, the more passes they take
FEW_ROWS = 16  # that choose the weights: with fewer of them, their loss says next to nothing
MOST_SLOWDOWN = 3.0  # beyond this a busy moment is taken for what it is


class Watch:
    """Evaluates a trainer's model on held-out data. `best`: the weights of the lowest held-out loss so far.

    elapsed: seconds since the run began, which a time budget counts; None: the loop's own.
    """

    def __init__(
        self, trainer: Trainer, held_out: HeldOut, events: Events, elapsed: Callable[[], float] | None = None
    ) -> None:
        self.trainer, self.plan, self.held_out, self.events = trainer, trainer.plan, held_out, events
        self._elapsed, self._pace = elapsed, Pace()
        floor = trainer.objective.frequency_loss(
            trainer.batches.store, held_out.batches, vocab_size=len(held_out.byte_length)
        )
        plan = self.plan
        self.settled = Settled(plan.tolerance, plan.warmup_steps * plan.tokens_per_step, floor)
        self.best: Weights = {}

    # --- evaluations ---

    def is_due(self, state: LoopState) -> bool:
        if state.step == state.schedule.end:
            return True
        due = next_evaluation(state.history[-1].tokens, self.held_out.num_tokens, self.plan.evaluation_cost)
        return self.trainer.tokens(state) >= due

    def evaluate(self, state: LoopState) -> None:
        """Evaluate, keep the best weights, and ask whether the run has settled."""
        trainer, tokens = self.trainer, self.trainer.tokens(state)
        evaluation = evaluate(trainer.model, trainer.objective, self.held_out, state.step, tokens, trainer.world)
        if not math.isfinite(evaluation.loss):
            return  # the next step cannot be finite either, and rolls back
        state.history.append(evaluation)
        if not self.best or evaluation.loss < state.best_loss or self._is_kept(evaluation, state):
            state.best_step = evaluation.step
            self.best = trainer.weights()
        self.events.emit(Eval(**evaluation.figures()))
        passes = self.trainer.batches.epoch(state.position)
        floor = self.settled.floor if self.held_out.num_rows < FEW_ROWS else None
        rows_learned = learned(state.history, state.train_losses, passes, state.step, floor)
        if state.schedule.decay_start is None and (rows_learned or self.settled.asks(state.history)):
            judgement = self.settled.judge(state.history)
            if rows_learned and judgement.state == "improving":
                judgement = replace(judgement, state="learned", why=rows_learned)
            state.judgement = judgement.to_json()
            at = {"step": state.step, "tolerance": self.plan.tolerance}
            self.events.emit(SettledEvidence.model_validate(state.judgement | at))
            if self.plan.until_settled:
                self._act_on(judgement, state)

    def _is_kept(self, last: Evaluation, state: LoopState) -> bool:
        """Whether the decayed weights are taken although others had a lower loss: by less than a standard error of the
        difference (the rule of Breiman et al. 1984), which is what the lowest of many is below by luck."""
        is_few = self.trainer.objective.prefers_last and self.held_out.num_rows < FEW_ROWS
        if not is_few or state.step != state.schedule.end or not state.best_step:
            return False
        best = next(e for e in state.history if e.step == state.best_step)
        return len(best.blocks) > 1 and is_noise(last.blocks, best.blocks, stderrs=1.0)

    def _act_on(self, judgement: Judgement, state: LoopState) -> None:
        if judgement.state in ("settled", "learned", "overfitting"):
            self._begin_decay(state, judgement.state, self._settled_decay(state))
        elif judgement.state == "broken":
            state.stop = "broken"

    def _settled_decay(self, state: LoopState) -> int:
        """Steps of the decay of a run that does not end by its budget."""
        steps = max(1, round(decay_tokens(self.trainer.tokens(state)) / self.plan.tokens_per_step))
        return min(steps, self._affordable_steps(state))

    # --- budgets ---

    def spend_budget(self, state: LoopState) -> None:
        """Begin the decay when the budget asks for it: in steps when known beforehand, else by the clock, which also
        says anew before every step how long the decay can be."""
        plan = self.plan
        if plan.seconds is not None:
            self._pace.add(self._spent(state), state.step)
        if state.schedule.decay_start is not None:
            if plan.seconds is not None:
                self._replan_decay(state)
            return
        if plan.max_steps is not None:
            steps = max(1, round(plan.max_steps * plan.decay_fraction))
            if state.step >= plan.max_steps - steps:
                self._begin_decay(state, "budget", plan.max_steps - state.step)
                return
        most = plan.most_passes
        if most and state.step >= FEWEST_BY_PASSES and self.trainer.batches.epoch(state.position) >= most:
            self._begin_decay(state, "passes", self._settled_decay(state))
            return
        if plan.seconds is not None and state.step > 0:
            left = self._seconds_left(state)
            if left <= plan.decay_fraction * (state.seconds + left):
                self._begin_decay(state, "time", self._affordable_steps(state))

    def is_past_half(self, state: LoopState) -> bool:
        """Whether half of the budget is spent; without one, whether the end has begun."""
        plan = self.plan
        if plan.max_steps is not None and state.step >= plan.max_steps / 2:
            return True
        if plan.seconds is not None and self._seconds_left(state) <= state.seconds:
            return True
        return state.schedule.decay_start is not None

    def _spent(self, state: LoopState) -> float:
        """Seconds that a time budget counts, by the clock of rank 0."""
        return state.seconds if self._elapsed is None else self.trainer.world.agree(self._elapsed())

    @property
    def slowdown(self) -> float:
        """How many times slower the latest steps were than those of the probe, within limits; per rank of those that
        share a step, since one alone does what follows the loop."""
        return self._pace.slowdown(self.plan.step_seconds / self.trainer.world.size)

    def _seconds_left(self, state: LoopState) -> float:
        """What the time budget leaves for the loop."""
        assert self.plan.seconds is not None
        return self.plan.seconds - self._spent(state) - kept_for_the_end(self.plan, self.slowdown)

    def _affordable_steps(self, state: LoopState) -> int:
        """How many further steps the budget has room for, at the present speed; at least one."""
        plan = self.plan
        left = math.inf if plan.max_steps is None else plan.max_steps - state.step
        if plan.seconds is not None:
            pace = self._pace.seconds_per_step or state.seconds / max(1, state.step)
            left = min(left, self._seconds_left(state) / max(pace, 1e-9))
        return max(1, math.floor(min(left, 1e9)))

    def _replan_decay(self, state: LoopState) -> None:
        """End the decay when the time is spent, at the present speed, and not after a number of steps fixed before."""
        steps = self._affordable_steps(state)
        if state.last_step is not None:
            steps = max(1, min(steps, state.last_step - state.step))
        if state.step + steps != state.schedule.end:
            state.schedule = state.schedule.replanned(state.step, steps)

    def _begin_decay(self, state: LoopState, why: str, steps: int) -> None:
        state.last_step = None if why == "time" else state.step + steps
        state.stop = "budget" if why == "time" else why
        state.schedule = state.schedule.decay_from(state.step, steps)
        assert state.schedule.end is not None
        self.events.emit(DecayStarted(step=state.step, until=state.schedule.end, why=why))


def kept_for_the_end(plan: LoopPlan, slowdown: float) -> float:
    """Seconds of a time budget that are kept for what follows the loop. It will be as slow as the loop is now, which
    the comparison makes up for with up to half of its time: it uses fewer rows."""
    after, comparing = plan.seconds_after * slowdown, plan.seconds_comparing
    return after + max(comparing / 2, comparing - max(0.0, after - plan.seconds_after))


class Pace:
    """The latest (seconds, step) of a run."""

    def __init__(self) -> None:
        self._latest: deque[tuple[float, int]] = deque()

    def add(self, seconds: float, step: int) -> None:
        """At `seconds` of work, `step` steps were done."""
        latest = self._latest
        if latest and step <= latest[-1][1]:
            latest.clear()  # a rollback
        latest.append((seconds, step))
        while len(latest) > FEWEST_STEPS + 1 and seconds - latest[1][0] >= LEAST_SECONDS:
            latest.popleft()

    @property
    def seconds_per_step(self) -> float | None:
        """None before there are two steps."""
        if len(self._latest) < 2:
            return None
        (began, first), (now, last) = self._latest[0], self._latest[-1]
        return (now - began) / (last - first)

    def slowdown(self, planned: float) -> float:
        """The present seconds per step ÷ the planned ones; 1 when either is not known."""
        pace = self.seconds_per_step
        return min(MOST_SLOWDOWN, pace / planned) if pace and planned else 1.0

"""Watches a run by its held-out loss: keeps the best weights, and decides when the learning rate decays.

Legend: V vocabulary.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from settle.base.event_log import Events
from settle.base.events import DecayStarted, Eval, SettledEvidence
from settle.train.checkpoint import Weights
from settle.train.evaluation import Evaluation, HeldOut, evaluate
from settle.train.settled import Judgement, Settled, decay_tokens, next_evaluation
from settle.train.settled.trend import is_noise
from settle.train.state import LoopPlan, LoopState
from settle.train.trainer import Trainer

# the latest steps that the pace is measured over: so many at least, and so long; a share of the time of long runs
FEWEST_STEPS, LEAST_SECONDS, RECENT_SHARE = 5, 10.0, 0.05
PACE_BLOCKS = 5  # whose median is the pace: neither a step that stalls nor an evaluation decides it
FEWEST_TO_SLOW = 3  # steps of a session before they count as slow: the first finds its memory and its kernels
LATEST_EVALUATIONS = 5  # whose median says how long the next takes
SLACK = 0.01  # share of a time budget that is kept for what nobody planned
FEWEST_BY_PASSES = 200  # steps: the fewer the rows, the more passes they take
FEW_ROWS = 16  # that choose the weights: with fewer of them, their loss says next to nothing
MOST_SLOWDOWN = 10.0  # beyond this a busy moment is taken for what it is


class Watch:
    """Evaluates a trainer's model on held-out data. `best`: the weights of the lowest held-out loss so far.

    elapsed: seconds since the run began, which a time budget counts; None: the loop's own. judged: held-out tokens that
    are read after a loop of so many steps.
    """

    def __init__(
        self,
        trainer: Trainer,
        held_out: HeldOut,
        events: Events,
        elapsed: Callable[[], float] | None = None,
        judged: Callable[[float], float] | None = None,
    ) -> None:
        self.trainer, self.plan, self.held_out, self.events = trainer, trainer.plan, held_out, events
        self.time = TimeBudget(trainer, held_out.num_tokens, elapsed, judged)
        floor = trainer.objective.frequency_loss(
            trainer.batches.store, held_out.batches, vocab_size=len(held_out.byte_length)
        )
        plan = self.plan
        since = plan.warmup_steps * plan.tokens_per_step
        self.settled = Settled(plan.tolerance, since, floor, plan.bigram_loss, plan.trigram_loss)
        self.best: Weights = {}

    # --- evaluations ---

    def is_due(self, state: LoopState) -> bool:
        if state.step == state.schedule.end or self.plan.is_refit:
            return state.step == state.schedule.end
        due = next_evaluation(state.history[-1].tokens, self.held_out.num_tokens, self.plan.evaluation_cost)
        return self.trainer.tokens(state) >= due

    def evaluate(self, state: LoopState) -> None:
        """Evaluate, keep the best weights, and ask whether the run has settled."""
        trainer, tokens = self.trainer, self.trainer.tokens(state)
        began = time.perf_counter()
        evaluation = evaluate(trainer.model, trainer.objective, self.held_out, state.step, tokens, trainer.world)
        self.time.evaluated(time.perf_counter() - began)
        if not math.isfinite(evaluation.loss):
            return  # the next step cannot be finite either, and rolls back
        state.history.append(evaluation)
        is_best = not self.best or evaluation.loss < state.best_loss
        if is_best or self.plan.is_refit or self._is_kept(evaluation, state):
            state.best_step, state.averaged = evaluation.step, None
            self.best = trainer.weights()
        if state.step == state.schedule.end:
            self._try_average(state)
        if not self.plan.is_refit:
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

    def _try_average(self, state: LoopState) -> None:
        """Take the averaged weights as the best where they are: late in many passes a decay memorizes.

        Asked where the decay begins and where it ends, so that choosing costs two evaluations.
        """
        trainer = self.trainer
        if not self.plan.average:
            return
        own = {name: tensor.clone() for name, tensor in trainer.own_weights().items()}
        trainer.take_weights(trainer.average)
        tokens = trainer.tokens(state)
        evaluation = evaluate(trainer.model, trainer.objective, self.held_out, state.step, tokens, trainer.world)
        if self.plan.is_refit or evaluation.loss < state.best_loss:
            state.best_step, state.averaged = state.step, evaluation
            self.best = trainer.weights()
        trainer.take_weights(own)

    def _is_kept(self, last: Evaluation, state: LoopState) -> bool:
        """Return whether the decayed weights are taken although others had a lower loss, by less than its noise.

        Less than two standard errors: the lowest of twenty is that much lower by luck.
        """
        if not self.trainer.objective.prefers_last or state.step != state.schedule.end or not state.best_step:
            return False
        best = state.best
        return len(best.blocks) > 1 and is_noise(last.blocks, best.blocks, stderrs=2.0)

    def _act_on(self, judgement: Judgement, state: LoopState) -> None:
        if judgement.state in ("settled", "learned", "overfitting"):
            self._begin_decay(state, judgement.state, self._settled_decay(state))
        elif judgement.state == "broken":
            state.stop = "broken"

    def _settled_decay(self, state: LoopState) -> int:
        """Return the steps of the decay of a run that does not end by its budget."""
        steps = max(1, round(decay_tokens(self.trainer.tokens(state)) / self.plan.tokens_per_step))
        return min(steps, self.time.affordable_steps(state), self.plan.longest_decay or steps)

    # --- budgets ---

    def spend_budget(self, state: LoopState) -> None:
        """Begin the decay when the budget asks for it: in steps when known beforehand, else by the clock.

        The clock decides again before every step how long the decay can be.
        """
        plan = self.plan
        self.time.begin_step(state)
        if state.schedule.decay_start is not None:
            if plan.seconds is not None:
                self._replan_decay(state)
            return
        if plan.max_steps is not None:
            steps = max(1, round(plan.max_steps * plan.decay_fraction))
            steps = min(steps, plan.longest_decay or steps)
            if state.step >= plan.max_steps - steps:
                self._begin_decay(state, "budget", plan.max_steps - state.step)
                return
        most = plan.most_passes
        if most and state.step >= FEWEST_BY_PASSES and self.trainer.batches.epoch(state.position) >= most:
            self._begin_decay(state, "passes", self._settled_decay(state))
            return
        if plan.seconds is not None and state.step > 0 and self.time.leaves_the_decay(state):
            self._begin_decay(state, "time", self.time.affordable_steps(state))

    def is_past_half(self, state: LoopState) -> bool:
        """Return whether half of the budget is spent; without one, whether the end has begun."""
        plan = self.plan
        if plan.max_steps is not None and state.step >= plan.max_steps / 2:
            return True
        if plan.seconds is not None and self.time.seconds_left(state) <= state.seconds:
            return True
        return state.schedule.decay_start is not None

    def _replan_decay(self, state: LoopState) -> None:
        """End the decay when the time is spent, at the present speed, and not after a number of steps fixed before."""
        steps = self.time.affordable_steps(state)
        if state.last_step is not None:
            steps = max(1, min(steps, state.last_step - state.step))
        if state.step + steps != state.schedule.end:
            state.schedule = state.schedule.replanned(state.step, steps)

    def _begin_decay(self, state: LoopState, why: str, steps: int) -> None:
        """Let the learning rate fall from here; where the held-out loss has risen, from the best weights."""
        has_risen = self.settled.rise(state.history) is not None
        if has_risen:
            self.trainer.go_back(self.best)
        else:
            self._try_average(state)
        state.last_step = None if why == "time" else state.step + steps
        state.stop = "budget" if why == "time" else why
        state.schedule = state.schedule.decay_from(state.step, steps)
        weights_of = state.best_step if has_risen else None
        self.events.emit(
            DecayStarted(step=state.step, until=state.step + max(1, steps), why=why, weights_of=weights_of)
        )


class TimeBudget:
    """What a time budget leaves for the loop, by the pace of its latest steps and evaluations.

    sample_tokens: held-out tokens of an evaluation. elapsed, judged: as in `Watch`.
    """

    def __init__(
        self,
        trainer: Trainer,
        sample_tokens: int,
        elapsed: Callable[[], float] | None,
        judged: Callable[[float], float] | None,
    ) -> None:
        self.plan, self.world, self._sample = trainer.plan, trainer.world, sample_tokens
        self._elapsed, self._judged, self._pace = elapsed, judged, Pace()
        self._evaluations: deque[float] = deque(maxlen=LATEST_EVALUATIONS)

    def begin_step(self, state: LoopState) -> None:
        """Note that a step is about to be taken."""
        if self.plan.seconds is not None:
            self._pace.add(self._spent(state), state.step)

    def evaluated(self, seconds: float) -> None:
        """Note how long an evaluation of the held-out sample took."""
        if self.plan.seconds is not None:
            self._evaluations.append(self.world.agree(seconds))

    @property
    def slowdown(self) -> float:
        """How many times slower the latest steps were than those of the probe, within limits.

        Per rank of those that share a step, since one alone does what follows the loop.
        """
        return self._pace.slowdown(self._planned)

    def seconds_left(self, state: LoopState) -> float:
        """Return what the time budget leaves for the loop at the present pace."""
        return self._left(state, self.slowdown)

    def leaves_the_decay(self, state: LoopState) -> bool:
        """Return whether what is left is the share of the decay.

        It counts at the pace of the session where that is faster than the present one: a decay that begins late can be
        made shorter, down to a half at the present pace.
        """
        whole = self._pace.slowdown(self._planned, is_whole=True)
        left, most = self.seconds_left(state), self._left(state, min(self.slowdown, whole))
        share = self.plan.decay_fraction * (state.seconds + most)
        if self.plan.longest_decay is not None and self._pace.seconds_per_step:
            share = min(share, self.plan.longest_decay * self._pace.seconds_per_step)
        return most <= share or left <= share / 2

    def affordable_steps(self, state: LoopState) -> int:
        """How many further steps the budget has room for, at the present speed; at least one."""
        plan = self.plan
        left = math.inf if plan.max_steps is None else plan.max_steps - state.step
        if plan.seconds is not None:
            pace = self._pace.seconds_per_step or state.seconds / max(1, state.step)
            left = min(left, self.seconds_left(state) / max(pace, 1e-9))
        return max(1, math.floor(min(left, 1e9)))

    def judged_tokens(self, state: LoopState, usual: float, spent: float) -> float:
        """Return the held-out tokens to judge the best weights on, after `spent` seconds.

        The `usual` number; where the clock ends the run, as many as its time has room for, and what a comparison needs
        is left to it.
        """
        plan, per_token = self.plan, self._seconds_per_evaluated_token
        if plan.seconds is None or per_token is None:
            return usual
        rest = (plan.seconds_after - plan.seconds_judging) * self.slowdown + SLACK * plan.seconds
        most = (plan.seconds - spent - rest - plan.seconds_comparing / 2) / per_token
        fills = state.stop == "budget" and state.last_step is None and not plan.seconds_comparing
        return most if fills else min(usual, most)

    @property
    def _seconds_per_evaluated_token(self) -> float | None:
        return statistics.median(self._evaluations) / self._sample if self._evaluations and self._sample else None

    @property
    def _planned(self) -> float:
        return self.plan.step_seconds / self.world.size

    def _spent(self, state: LoopState) -> float:
        """Seconds that a time budget counts, by the clock of rank 0."""
        return state.seconds if self._elapsed is None else self.world.agree(self._elapsed())

    def _left(self, state: LoopState, slowdown: float) -> float:
        budget = math.inf if self.plan.seconds is None else self.plan.seconds
        return budget - self._spent(state) - kept_for_the_end(self.plan, slowdown, self._judging(state))

    def _judging(self, state: LoopState) -> float | None:
        """Seconds of the last evaluations, by those of the loop: it reads the more, the more steps there were."""
        per_token = self._seconds_per_evaluated_token
        if self._judged is None or per_token is None:
            return None
        return per_token * (self._sample + self._judged(state.step))


def kept_for_the_end(plan: LoopPlan, slowdown: float, judging: float | None = None) -> float:
    """Return the seconds of a time budget that are kept for what follows the loop.

    It will be as slow as the loop is now, which the comparison makes up for with up to half of its time: it uses fewer
    rows. judging: of them, those of the last evaluations, where the loop's own say it.
    """
    judging = plan.seconds_judging * slowdown if judging is None else judging
    after, comparing = (plan.seconds_after - plan.seconds_judging) * slowdown + judging, plan.seconds_comparing
    late = max(0.0, after - plan.seconds_after)
    return SLACK * (plan.seconds or 0.0) + after + min(comparing * slowdown, max(comparing / 2, comparing - late))


class Pace:
    """The latest (seconds, step) of a session."""

    def __init__(self) -> None:
        self._latest: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None  # after the steps that find their memory

    def add(self, seconds: float, step: int) -> None:
        """At `seconds` of work, `step` steps were done."""
        latest = self._latest
        if latest and step <= latest[-1][1]:
            latest.clear()  # a rollback
            self._first = None
        latest.append((seconds, step))
        if self._first is None and len(latest) > 1:
            self._first = latest[-1]
        wanted = max(LEAST_SECONDS, RECENT_SHARE * seconds)
        while len(latest) > FEWEST_STEPS + 1 and seconds - latest[1][0] >= wanted:
            latest.popleft()

    @property
    def seconds_per_step(self) -> float | None:
        """The median over blocks of the latest steps; None before there are two."""
        marks, number = list(self._latest), len(self._latest) - 1
        if number < 1:
            return None
        ends = sorted({round(i * number / PACE_BLOCKS) for i in range(PACE_BLOCKS + 1)})
        blocks = [(marks[a], marks[b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        return statistics.median((now - began) / (last - first) for (began, first), (now, last) in blocks)

    def slowdown(self, planned: float, is_whole: bool = False) -> float:
        """Return the present seconds per step ÷ the planned ones.

        It is 1 when either is not known, or the steps are the first. is_whole: of the whole session.
        """
        pace = self.seconds_per_step
        if not pace or not planned or self._first is None or len(self._latest) <= FEWEST_TO_SLOW:
            return 1.0
        if is_whole:
            (began, first), (now, last) = self._first, self._latest[-1]
            pace = (now - began) / max(1, last - first)
        return min(MOST_SLOWDOWN, pace / planned)


LEFT_SHARE = 0.05  # of the floor, that learned rows cost at most
EVALUATIONS = 5  # whose standard errors' median counts
FEWEST_PASSES = 2.0  # over the rows, of which the last is averaged


def learned(
    history: Sequence[Evaluation],
    train_losses: Sequence[float],
    passes: float,
    steps: int,
    floor: float | None = None,
) -> str:
    """Say why the rows count as learned; empty while they do not.

    train_losses: of the latest of `steps` steps (at least of some hundred, where a pass takes more), which were
    `passes` over the rows. floor: the loss of knowing only how often each target occurs. Losses in the units of the
    held-out loss.

    Few rows choose the weights: too few to tell *settled* or *overfitting* from their loss, which jumps from one
    evaluation to the next while the rows are memorized. The loss on the training rows shows it: once a whole pass costs
    less than the standard error of the held-out loss, what is left in them is less than that sample can show.
    """
    if passes < FEWEST_PASSES:
        return ""
    last = train_losses[-max(1, round(steps / passes)) :]
    left = sum(last) / len(last)
    stderr = statistics.median(e.stderr for e in history[-EVALUATIONS:])  # that of the lowest loss is low by luck
    # a handful of held-out rows is unsure by half a nat, with which many rows are not learned yet
    if len(history) < EVALUATIONS or not left < stderr or (floor is not None and left > LEFT_SHARE * floor):
        return ""
    return (
        f"the training rows are learned: over the last pass their loss was {left:.4f}, less than the held-out rows can "
        f"tell apart ({history[-1].loss:.4f} ± {stderr:.4f}); more rows would help, more passes hardly"
    )

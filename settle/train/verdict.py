"""The verdict of a finished loop, from its state alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from settle.base.statistics import NO_ESTIMATE, Interval
from settle.train.evaluation import Evaluation
from settle.train.settled import Evidence, gain_for
from settle.train.settled.trend import is_noise
from settle.train.state import LoopPlan, LoopState

UNSEEN = "A second fall after a plateau cannot be seen from here."
DECAY_EVALUATIONS = 5  # whose mean is the loss before the decay
LATEST = 16  # training losses that count as the latest
FURTHEST = 3.0  # times the tokens seen: evaluations alone say nothing of an hour that would bring more
WIDEST = 0.5  # interval of a gain, as a share of the loss: a wider one says nothing
TOO_EARLY = "it is too early to say what a further hour would bring"
LEARNED_SHARE = 0.5  # of the first held-out loss: rows that cost less in training have taught something


@dataclass(frozen=True)
class LoopVerdict:
    """What a loop ended with, and the evidence for it."""

    verdict: str  # settled, learned, out of budget, overfitting, diverged or broken
    why: str
    evidence: Evidence = field(default_factory=dict)
    rollbacks: Sequence[Mapping[str, object]] | None = None  # of a run that diverged
    gain_per_hour: Mapping[str, float | None] | None = None  # of one that ran out of budget; None where it is not known


def verdict(state: LoopState, plan: LoopPlan, tokens_per_second: float, further: Interval | None = None) -> LoopVerdict:
    """Return the verdict on a loop.

    further: the share of the delivered loss that another hour would take off, with the decay in both cases; NaN where
    the forecast does not reach, None where there is no forecast. Then the evaluations at the constant rate are used.
    """
    stable = [e for e in state.history if state.schedule.decay_start is None or e.step <= state.schedule.decay_start]
    judged = state.judgement.get("evidence")
    evidence = judged if isinstance(judged, dict) else {}
    if state.stop == "diverged":
        last = state.rollbacks[-1]
        batch = last.batches[-1]
        why = (
            f"rolled back {len(state.rollbacks)} times, last at step {last.step:,} (loss {last.loss}): batch "
            f"{batch.position}, which begins with {batch.rows[0].source}"
        )
        return LoopVerdict("diverged", why, evidence, [asdict(note) for note in state.rollbacks])
    if state.stop == "broken":
        return LoopVerdict("broken", str(state.judgement["why"]), evidence)
    if why := _nothing_learned(state):
        return LoopVerdict("broken", why, evidence)
    rise = _rise(state)
    if state.stop == "overfitting" or rise:
        return LoopVerdict("overfitting", rise or str(state.judgement["why"]), evidence)
    if state.stop == "learned":
        return LoopVerdict("learned", f"{state.judgement['why']}. {_decayed(stable, state)}".rstrip(), evidence)
    if state.stop == "passes":
        why = f"{plan.most_passes:g} passes over the rows, the most that a run without a budget makes"
        why = f"{why}; the rows that choose the weights are too few to tell whether more would help"
        return LoopVerdict("out of budget", f"{why}. {_decayed(stable, state)}".rstrip(), evidence)
    decayed = _decayed(stable, state)
    if state.stop == "settled":
        return LoopVerdict("settled", f"{state.judgement['why']}. {decayed}{UNSEEN}", evidence)
    if further is not None:
        why, gain = _hour(further, "a further hour"), further
    else:
        gain = _constant_gain(stable, plan, tokens_per_second * 3600)
        why = _hour(gain, "a further hour at the constant learning rate")
        why = f"{why}. {decayed}".rstrip() if decayed else why
    known = None if math.isnan(gain.value) else gain.to_json()
    return LoopVerdict("out of budget", why, evidence, gain_per_hour=known)


def _constant_gain(stable: Sequence[Evaluation], plan: LoopPlan, tokens: float) -> Interval:
    """Estimate the gain from `tokens` more at the constant learning rate, where the evaluations reach so far."""
    if not stable or tokens > FURTHEST * stable[-1].tokens:
        return NO_ESTIMATE
    return gain_for(stable, tokens, plan.warmup_steps * plan.tokens_per_step)


def _hour(gain: Interval, hour: str) -> str:
    """Say what `hour` would do to the loss."""
    if math.isnan(gain.value) or gain.high - gain.low > WIDEST:
        return TOO_EARLY
    if gain.low > 0:
        return f"{hour} would lower the loss by about {gain.value:.1%} ({gain.low:.1%} to {gain.high:.1%})"
    if gain.high < 0:
        return (
            f"{hour} would raise the loss by {-gain.high:.1%} to {-gain.low:.1%}: the data has been seen often enough"
        )
    return f"{hour} would lower the loss by {gain.high:.1%} at most, and might raise it by {abs(gain.low):.1%}"


def _decayed(stable: Sequence[Evaluation], state: LoopState) -> str:
    """Say what the final decay has brought, which no statement about the constant learning rate includes."""
    last = [e.loss for e in stable[-DECAY_EVALUATIONS:]]
    if state.schedule.decay_start is None or len(last) < DECAY_EVALUATIONS:
        return ""
    took = "The decay" if state.averaged is None else "The average of the latest weights"
    return f"{took} then took it from {sum(last) / len(last):.4f} to {state.best_loss:.4f}. "


def _nothing_learned(state: LoopState) -> str:
    """Say why the best weights are no better than those before the first step; empty when something was learned.

    With few held-out rows, the training loss is used as evidence of learning.
    """
    first = state.history[0]
    best = state.best
    steps = "one step" if state.step == 1 else f"{state.step:,} steps"
    last = state.history[-1]
    if first.step or state.step == 0:
        return ""
    if best.step and (not is_noise(first.blocks, best.blocks) or _knows_its_rows(state)):
        return ""
    return (
        f"nothing was learned in {steps}: the held-out loss was {first.loss:.4f} before and is {last.loss:.4f} now, so "
        "no model was made; give more --time or --steps, or another learning rate"
    )


def _knows_its_rows(state: LoopState) -> bool:
    """Return whether the latest training losses are far below the first held-out one."""
    latest = state.train_losses[-LATEST:]
    return len(latest) == LATEST and sum(latest) / LATEST < LEARNED_SHARE * state.history[0].loss


def _rise(state: LoopState) -> str:
    """Say whether the loss at the end is significantly above the best one, by paired blocks; from where it rose."""
    best = state.best
    last = state.history[-1]
    if best.step == last.step or len(best.blocks) < 2:
        return ""
    shifts = [b - a for a, b in zip(best.blocks, last.blocks, strict=True)]
    mean = sum(shifts) / len(shifts)
    spread = math.sqrt(sum((s - mean) ** 2 for s in shifts) / (len(shifts) - 1) / len(shifts))
    if last.loss - best.loss > max(4 * spread, 0.005 * best.loss):
        return f"held-out loss rose from {best.loss:.4f} at step {best.step:,} to {last.loss:.4f}; the best was kept"
    return ""

"""The verdict of a finished loop, from its state alone."""

import math
from dataclasses import asdict

from settle.train.settled import gain_for
from settle.train.state import LoopPlan, LoopState


def verdict(state: LoopState, plan: LoopPlan, tokens_per_second: float) -> dict[str, object]:
    """`verdict` (settled, out of budget, overfitting, diverged, broken), `why`, and the evidence for it."""
    stable = [e for e in state.history if state.schedule.decay_start is None or e.step <= state.schedule.decay_start]
    result: dict[str, object] = {"evidence": state.judgement.get("evidence", {})}
    if state.stop == "diverged":
        last = state.rollbacks[-1]
        batch = last.batches[-1]
        return result | {
            "verdict": "diverged",
            "why": f"rolled back {len(state.rollbacks)} times, last at step {last.step:,} (loss {last.loss}): batch "
            f"{batch.position}, which begins with {batch.rows[0].source}",
            "rollbacks": [asdict(note) for note in state.rollbacks],
        }
    if state.stop == "broken":
        return result | {"verdict": "broken", "why": state.judgement["why"]}
    rise = _rise(state)
    if state.stop == "overfitting" or rise:
        return result | {"verdict": "overfitting", "why": rise or state.judgement["why"]}
    if state.stop == "settled":
        return result | {"verdict": "settled", "why": state.judgement["why"]}
    gain = gain_for(stable, tokens_per_second * 3600, plan.warmup_steps * plan.tokens_per_step)
    if math.isnan(gain.value):
        why = "the budget was spent before there were enough evaluations to say what a further hour would bring"
        return result | {"verdict": "out of budget", "why": why}
    why = f"a further hour would improve the loss by about {gain.value:.1%} ({gain.low:.1%} to {gain.high:.1%})"
    return result | {"verdict": "out of budget", "why": why, "gain_per_hour": gain.to_json()}


def _rise(state: LoopState) -> str:
    """Whether the loss at the end is significantly above the best one, by paired blocks; from where it rose."""
    best = next(e for e in state.history if e.step == state.best_step)
    last = state.history[-1]
    if best.step == last.step or len(best.blocks) < 2:
        return ""
    shifts = [b - a for a, b in zip(best.blocks, last.blocks, strict=True)]
    mean = sum(shifts) / len(shifts)
    spread = math.sqrt(sum((s - mean) ** 2 for s in shifts) / (len(shifts) - 1) / len(shifts))
    if last.loss - best.loss > max(4 * spread, 0.005 * best.loss):
        return f"held-out loss rose from {best.loss:.4f} at step {best.step:,} to {last.loss:.4f}; the best was kept"
    return ""

"""What single events say, in words that plain lines and the live display share."""

import math
from collections.abc import Mapping

from settle.base.events import DecayStarted, Eval, Progress, Rollback, UndeclaredConnection
from settle.base.run.course import RunCourse
from settle.base.words.amounts import amount, count, duration, percent

PHASES = {  # names of stages, for people
    "before": "reading and probe",
    "proof": "proof",
    "loop": "training",
    "judge": "last evaluation",
    "export": "export and gate",
    "compare": "comparison",
}
NOTHING_KEPT = "stopped before the first checkpoint; nothing was kept"
WHY_FITS = 96  # columns from which a table or a line has room for its reasons
FEW = 10  # a pace over so few big things is not worth saying
DECAY_REASONS = {
    "settled": "the model has settled",
    "learned": "the training rows are learned",
    "passes": "the rows were passed over as often as without a budget at most",
    "budget": "the budget is nearly spent",
    "time": "the time is nearly spent",
}


def loss_text(loss: float | None) -> str:
    return "not a number" if loss is None or not math.isfinite(loss) else f"{loss:.4f}"


def eval_text(event: Eval) -> str:
    """Return an evaluation in words."""
    text = f"loss {loss_text(event.loss)}"
    text += f" ± {event.stderr:.4f}" if math.isfinite(event.stderr) else ""
    bits, share = event.bits_per_byte, event.held_out_share
    text += f" · {bits:.4f} bits per byte" if bits is not None and math.isfinite(bits) else ""
    return text + (f" · on {share:.0%} of the held-out text" if share is not None else "")


def undeclared_text(event: UndeclaredConnection) -> str:
    place = event.address if event.port is None else f"{event.address} port {event.port}"
    if event.call == "listen":
        return f"undeclared: process {event.pid} listens on {place}, where others can connect"
    if event.prevented:
        return f"prevented: process {event.pid} tried to reach {event.host + ', ' if event.host else ''}{place}"
    return f"undeclared connection: process {event.pid} reached {event.host + ', ' if event.host else ''}{place}"


def decay_text(event: DecayStarted) -> str:
    why = DECAY_REASONS.get(event.why, event.why)
    about = "about " if event.why == "time" else ""
    return f"{why}: the learning rate falls to zero until {about}step {event.until:,}"


def rollback_text(event: Rollback) -> str:
    text = f"step {event.step} went wrong (loss {event.loss}): back to step {event.to_step}"
    for batch in event.batches[-1:]:
        rows = batch.get("rows")
        first = rows[0] if isinstance(rows, list) and rows else {}
        source = first.get("source") if isinstance(first, Mapping) else None
        text += f"; batch {batch.get('position')} is left out, which begins with {source}"
    return text


def progress_text(event: Progress, began: float, most: float | None = None) -> str:
    """Say how far the work is, its pace and what is left.

    began: when it started, in epoch seconds. most: seconds until the whole run ends, where that is known: the work does
    not outlast it.
    """
    unit, done, total = event.unit, event.done, event.total
    scaled = unit in ("bytes", "s", "J") or not total
    text = (amount(done, unit) if scaled else f"{done:,.0f}") + (f" of {amount(total, unit)}" if total else "")
    spent = event.time - began
    if spent > 0 and done > 0 and not (total and total <= FEW):
        speed = done / spent
        text += f" · {amount(speed, unit)}/s"
        if total and done < total and event.seconds_left is None:
            text += f" · {duration(min((total - done) / speed, math.inf if most is None else most))} left"
    if event.seconds_left is not None and total and done < total:
        text += f" · about {duration(event.seconds_left)} left"
    return text + (f" · {event.detail}" if event.detail else "")


def speed_text(course: RunCourse) -> list[str]:
    speed = course.left.tokens_per_second
    return [f"{count(speed)} tokens/s"] if speed else []


def seconds_left(course: RunCourse) -> float | None:
    """Seconds until the run ends; None where that is not known, or nothing runs."""
    left = course.left.seconds() if course.left.phase else None
    return None if left is None else left[0]


def left_text(course: RunCourse) -> list[str]:
    left = course.left.seconds()
    if left is None:
        spent = course.left.spent()
        return [f"{duration(spent)} so far"] if spent > 1 else []
    return [f"{'at most' if left[1] == 'at most' else 'about'} {duration(left[0])} left"] if left[0] >= 1 else []


def phases_text(phases: Mapping[str, float]) -> str:
    """Where the time is planned to go; what takes no second is left out."""
    known = [(PHASES[name], seconds) for name, seconds in phases.items() if name in PHASES and seconds >= 1]
    return "planned: " + " · ".join(f"{name} {duration(seconds)}" for name, seconds in known)


def outlook_text(course: RunCourse) -> str:
    """Return the loss that the run is expected to end with, by the latest forecast.

    Empty without one, and once evaluations during the decay say more than what was forecast at its beginning.
    """
    is_late = course.decay is not None and bool(course.evals) and course.evals[-1].step > course.decay.step
    if not course.forecasts or is_late:
        return ""
    latest = course.forecasts[-1]
    return f"expected at the end: {loss_text(latest.loss)} ({loss_text(latest.low)} – {loss_text(latest.high)})"


def evidence_text(course: RunCourse, width: int) -> str:
    """Return the evidence for settled, or why there is none yet."""
    if not course.judgements:
        return ""
    latest = course.judgements[-1]
    if not math.isfinite(latest.high) or not latest.tolerance:
        return latest.why
    return gain_text(latest.high, latest.tolerance, width)


def gain_text(high: float, tolerance: float, width: int) -> str:
    """Return the evidence for settled in a sentence."""
    if width >= WHY_FITS:
        return f"10 % more tokens gain {percent(max(0.0, high))} at most; {percent(tolerance)} matters"
    return f"≤ {percent(max(0.0, high))} to gain, {percent(tolerance)} matters"

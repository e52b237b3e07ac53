"""What events say, in words that plain lines, the live display and the studio share."""

import math
from collections.abc import Iterator, Mapping

from settle.base import events as kinds
from settle.base.events import (
    DecayStarted,
    Eval,
    Event,
    LedgerSummary,
    Progress,
    ReasonCount,
    Rollback,
    RowSummary,
    TextSummary,
    UndeclaredConnection,
)
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
    back = "" if event.weights_of is None else f"back to the weights of step {event.weights_of:,}, and "
    return f"{why}: {back}the learning rate falls to zero until {about}step {event.until:,}"


def rollback_text(event: Rollback) -> str:
    text = f"step {event.step} went wrong (loss {event.loss}): back to step {event.to_step}"
    for batch in event.batches[-1:]:
        first, *_ = batch.get("rows") or [{}]
        text += f"; batch {batch.get('position')} is left out, which begins with {first.get('source')}"
    return text


def progress_text(event: Progress, began: float, run_left: str = "") -> str:
    """Say how far the work is, its pace and what is left.

    began: when it started, in epoch seconds. run_left: until the whole run ends, where that is known; it is what people
    wait for, and said in place of what is left of the work.
    """
    unit, done, total = event.unit, event.done, event.total
    if not done and total is None and event.detail:
        return event.detail
    scaled = unit in ("bytes", "s", "J") or not total
    text = (amount(done, unit) if scaled else f"{done:,.0f}") + (f" of {amount(total, unit)}" if total else "")
    spent = event.time - began
    if spent > 0 and done > 0 and not (total and total <= FEW):
        speed = done / spent
        text += f" · {amount(speed, unit)}/s"
        if total and done < total and event.seconds_left is None and not run_left:
            text += f" · {duration((total - done) / speed)} left"
    if event.seconds_left is not None and total and done < total and not run_left:
        text += f" · about {duration(event.seconds_left)} left"
    if run_left and not (total and done >= total):
        text += f" · {run_left} in all"
    return text + (f" · {event.detail}" if event.detail else "")


def speed_text(course: RunCourse) -> list[str]:
    speed = course.left.tokens_per_second
    return [f"{count(speed)} tokens/s"] if speed else []


def run_left_text(course: RunCourse) -> str:
    """Return the time until the run ends; empty where that is not known, or nothing runs."""
    known = [text for text in left_text(course) if "left" in text]
    return known[0] if known and course.left.phase else ""


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


# --- what became of the data ---

ASKED = 140  # characters of a question that are shown


def rows_lines(event: RowSummary) -> list[str]:
    """Return what was read, how it was understood, and what the user should know of it."""
    lines = [f"{file}: {use.layout} ({_columns(use.columns)})" for file, use in event.layouts.items()]
    if len(lines) > 4:
        lines = [*lines[:3], f"and {len(lines) - 3} more files"]
    unused = next((use.labels for use in event.layouts.values() if use.labels), "")
    if unused:
        lines.append(f"column {unused!r} is not learned; it seems to hold labels: `--objective decision` learns them")
    train = event.train
    share = train["supervised"] / max(1, train["tokens"])
    lines.append(_sides(event, "rows", "row" if train["rows"] == 1 else "rows"))
    lines.append(
        f"{count(train['tokens'])} tokens, {share:.0%} of them supervised ({event.supervise}); "
        f"the longest row has {event.lengths['max']:,}"
    )
    if losses := _losses(event):
        lines.append(" · ".join(losses))
    if shortened := event.too_long["shortened"]:
        lines.append(f"later answers left out for their length: {shortened:,} row{'s' if shortened != 1 else ''}")
    if event.system_prompt:
        lines.append(
            f"every row has the system prompt “{flat_text(event.system_prompt, ASKED)}”: the model's default from now"
        )
    return [*lines, *event.notes]


def text_line(event: TextSummary) -> str:
    """Return what was read, and what became of it."""
    return " · ".join([f"{event.read:,} documents read, {_sides(event, 'documents')}", *_losses(event)])


def _sides(event: LedgerSummary, unit: str, name: str = "") -> str:
    """How much of the data is for what; long documents are cut, and their parts may be for different things."""
    selecting = event.selection[unit] if event.selection else 0
    total, cut = event.train[unit] + selecting + event.held_out[unit], ""
    if isinstance(event, TextSummary) and total > event.read:
        cut = "parts of "
    choosing = f"{cut}{selecting:,} to choose the best weights, " if event.selection else ""
    named = f" {name}" if name else ""
    return f"{cut}{event.train[unit]:,}{named} to learn from, {choosing}{cut}{event.held_out[unit]:,} held out to judge"


def secrets_warning(event: LedgerSummary, fix: str) -> str | None:
    """Where keys and passwords are that a model would learn by heart; None when there are none, or all are masked."""
    kind = "keys and passwords"
    if kind not in event.found or f"{kind} masked" in event.mended:
        return None
    places = event.found_at.get(kind, [])
    more = ", …" if event.found[kind] > len(places) else ""
    return f"{kind} in what is learned: {event.found[kind]:,}, at {', '.join(places)}{more}; {fix}"


MOST_REASONS = 6  # that are shown: a reason that names a place differs from file to file


def _losses(event: LedgerSummary) -> list[str]:
    """Yield what was left out, changed, not read and found, each with its reasons."""
    counted = {"left out": event.dropped, "repaired": event.mended, "files or folders not read": event.skipped}
    losses = [f"{what}: {_reasons(reasons)}" for what, reasons in counted.items() if reasons]
    if event.omissions:
        name, notes = next(iter(event.omissions.items()))
        more = f", and of {len(event.omissions) - 1:,} more" if len(event.omissions) > 1 else ""
        losses.append(f"not read of {name}: {'; '.join(notes)}{more}")
    if event.found:
        losses.append("found: " + ", ".join(f"{kind} ({number:,})" for kind, number in event.found.items()))
    return losses


def _reasons(reasons: Mapping[str, ReasonCount]) -> str:
    most_first = sorted(reasons.items(), key=lambda item: -item[1].count)
    shown = [f"{reason} ({_shown_count(entry)})" for reason, entry in most_first[:MOST_REASONS]]
    rest = sum(entry.count for _, entry in most_first[MOST_REASONS:])
    return ", ".join([*shown, f"{rest:,} for other reasons"] if rest else shown)


def _shown_count(entry: ReasonCount) -> str:
    """How often, or where if it was only once."""
    where = entry.examples[0].get("where") if entry.count == 1 and entry.examples else None
    return where or f"{entry.count:,}"


def _columns(columns: Mapping[str, str]) -> str:
    return ", ".join(what if what == column else f"{what} from {column!r}" for what, column in columns.items())


def flat_text(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


# --- an event in lines ---


def event_lines(event: Event) -> Iterator[tuple[str, str]]:
    """(text, tone) of each line about an event; many have none. tone: "", warn or bad."""
    secrets: str | None = None
    match event:
        case kinds.Say():
            yield event.text, ""
        case kinds.Warn():
            yield event.text, "warn"
        case kinds.UndeclaredConnection():
            yield undeclared_text(event), "bad"
        case kinds.Resumed():
            yield f"resuming from step {event.step:,}", ""
        case kinds.DecayStarted():
            yield decay_text(event), ""
        case kinds.Rollback():
            yield rollback_text(event), "warn"
        case kinds.Eval() if event.whole:
            yield f"best weights, of step {event.step:,}, evaluated at the end: {eval_text(event)}", ""
        case kinds.TextSummary():
            yield text_line(event), ""
            secrets = secrets_warning(event, "--data.mask keys replaces them")
        case kinds.RowSummary():
            yield from ((text, "") for text in rows_lines(event))
            secrets = secrets_warning(event, "remove them, or the model may repeat them")
    if secrets:
        yield secrets, "warn"

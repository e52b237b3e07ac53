"""What there is to say of runs: a list, one run, and how well forecasts have been doing."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import RunError, SettleError, UsageError, malformed_is_format_error
from settle.base.event_log import Events
from settle.base.events import AnswerChanges, Event, ForecastComparison, Listing, ResultReady
from settle.base.files import write_atomic
from settle.base.run import Run, present_names
from settle.base.run.course import RunCourse
from settle.base.run.result import LOSS_OF, Evaluated, Result, shown_verdict
from settle.base.words.amounts import number
from settle.base.words.figures import place_in_interval
from settle.base.words.sentences import left_text
from settle.library.deletion import folder_size, prunable_size
from settle.plan.forecast_figures import UNITS, LedgerEntry, entries, scores


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run, finished or not; None for what is not known. Losses in nats per token, sizes in bytes."""

    name: str
    path: str
    status: str
    verdict: str | None
    budget: str | None  # what it used up, where it ended by that
    loss: float | None
    bits_per_byte: float | None
    step: int | None
    tokens: int | None
    seconds: float | None
    energy: float | None  # joules, of a finished run
    started: float | None  # epoch seconds
    bytes: int
    prunable: int  # of these bytes: checkpoints that nothing needs any more
    kind: str = ""  # what made it: train, tune, decide, shrink …
    base: str = ""  # the model that it began with
    data: str = ""  # what it was given
    loss_of: str = "token"  # what the loss is the mean of
    left: str = ""  # of a run at work, in words
    note: str = ""  # what people wrote down of it
    failure: str | None = None  # the error that the latest session ended with
    damage: str | None = None  # why nothing more is known of it

    @property
    def state(self) -> str:
        """Its verdict, "failed" where its latest session ended with an error, or its status."""
        return self.shown_verdict or ("failed" if self.failure and self.status == "interrupted" else self.status)

    @property
    def shown_verdict(self) -> str:
        """Its verdict for people; empty while there is none."""
        return shown_verdict(self.verdict, self.budget) if self.verdict else ""

    @classmethod
    def of(cls, run: Run) -> "RunSummary":
        result, course = run.result(), RunCourse.latest(run.events)
        best = (result.best if result else None) or Evaluated()
        latest, step = course.evals[-1] if course.evals else None, course.step
        plan = run.read("plan.json") or {}
        asked = plan.get("asked") or {}
        kind, _, objective = run.command.partition("_")
        return cls(
            name=run.name,
            path=str(run.path),
            status=run.status,
            verdict=result.verdict if result else None,
            budget=result.budget if result else None,
            loss=latest.loss if latest and best.loss is None else best.loss,
            bits_per_byte=latest.bits_per_byte if latest and best.bits_per_byte is None else best.bits_per_byte,
            step=step.step if step else None,
            tokens=step.tokens if step else latest.tokens if latest else None,
            seconds=_seconds(result, course),
            energy=number(result.actual.get("energy")) if result else None,
            started=course.started,
            bytes=folder_size(run.path),
            prunable=prunable_size(run),
            kind="decide" if objective == "decision" else kind,
            base=str(asked.get("model") or ""),
            data=", ".join(str(path).rstrip("/").rpartition("/")[2] for path in asked.get("inputs") or ()),
            loss_of=LOSS_OF.get(str(plan.get("objective")), "token"),
            left=" ".join(text for text in left_text(course) if "left" in text) if run.status == "running" else "",
            note=read_note(run),
            failure=course.failure.what if course.failure and not result else None,
        )


def summary_of(run: Run) -> RunSummary:
    """Return what is known of a run; one whose files were damaged is listed with its fault."""
    try:
        with malformed_is_format_error(run.name):
            summary = RunSummary.of(run)
            day(summary.started)
            return summary
    except SettleError as e:
        needed = [field.name for field in dataclasses.fields(RunSummary) if field.default is dataclasses.MISSING]
        known = {"name": run.name, "path": str(run.path), "status": "damaged", "bytes": 0, "prunable": 0}
        return RunSummary(**(dict.fromkeys(needed) | known), note=read_note(run), damage=e.what)  # type: ignore[arg-type]  # the fields it has


def run_summaries() -> list[RunSummary]:
    """Every run, newest first."""
    runs = Run.all()
    summaries = [summary_of(run) for run in runs]
    if renamed := [run for run in runs if run.earlier]:
        summaries = [dataclasses.replace(one, base=present_names(one.base, renamed)) for one in summaries]
    return sorted(summaries, key=lambda run: run.started or 0.0, reverse=True)


NOTE = "note.txt"  # in a run's folder
LONGEST_NOTE = 2000  # characters


def read_note(run: Run) -> str:
    """Return what people wrote down of a run; words that begin with # are its tags."""
    try:
        return (run.path / NOTE).read_text(encoding="utf-8", errors="replace")[:LONGEST_NOTE]
    except OSError:
        return ""


def write_note(run: Run, note: str) -> None:
    """Keep a note of a run; an empty one is deleted. Raises RunError where the disk does not take it."""
    path = run.path / NOTE
    try:
        if note.strip():
            write_atomic(path, note.strip()[:LONGEST_NOTE])
        else:
            path.unlink(missing_ok=True)
    except OSError as e:
        raise RunError(
            f"the note of {run.name} was not kept: {e.strerror}", "make room, or check its permissions"
        ) from e


def list_runs(events: Events) -> None:
    """Every run, newest first."""
    runs = run_summaries()
    columns = ("name", "status", "verdict", "bits per byte", "tokens", "time", "size", "started")
    rows = [
        (r.name, r.status, r.damage or r.shown_verdict or ("failed" if r.failure else ""), r.bits_per_byte,
         _with_unit(r.tokens, "count"), _with_unit(r.seconds, "s"), _with_unit(r.bytes, "bytes"), day(r.started))
        for r in runs
    ]  # fmt: skip
    hint = "`settle runs show NAME` shows one" if runs else "no runs yet; start one: `settle train FOLDER`"
    if prunable := sum(run.prunable for run in runs):
        hint += f"; `settle runs prune` frees {prunable / 1e6:,.0f} MB of checkpoints of finished runs"
    events.emit(Listing(columns=columns, rows=rows, note=hint))
    events.emit(ResultReady(result={"runs": [dataclasses.asdict(run) for run in runs]}))


def show_run(names: Sequence[str], events: Events) -> None:
    """All that is known of one run, and its forecast beside the actual figures. Raises UsageError for several."""
    if len(names) > 1:
        raise UsageError("one run is shown at a time", f"`settle runs show {names[0]}`")
    run = Run.find(names[0])
    with malformed_is_format_error(run.name):
        shown = _shown(run)
    for event in shown:  # outside: a reader that has gone is no damage of the run
        events.emit(event)


def _shown(run: Run) -> list[Event]:
    """Return the events that describe a run."""
    summary, result = RunSummary.of(run), run.result()
    forecast: Mapping[str, object] | None = (result.forecast if result else None) or run.read("forecast.json")
    actual = (result.actual or None) if result else None
    files = [path for path in sorted(run.out.rglob("*")) if path.is_file()] if run.out.is_dir() else []
    found: list[Event] = [Listing(title=run.name, columns=("", ""), rows=_facts(summary, result, files))]
    if forecast:
        found.append(ForecastComparison(forecast=forecast, actual=actual))
    compared = (result.comparison if result else None) or {}
    if compared.get("changed"):
        pair = {name: compared[name] for name in ("base", "tuned")}
        found.append(AnswerChanges.model_validate({**pair, "rows": compared["changed"], "run": run.name}))
    shown = dataclasses.asdict(summary) | {
        "why": result.why if result else None,
        "best": result.best.model_dump() if result and result.best else None,
        "gate": result.gate if result else None,
        "headline": (result.headline or None) if result else None,
        "actual": actual,
        "files": [{"path": str(path), "bytes": path.stat().st_size} for path in files],
        "forecast": forecast,
    }
    return [*found, ResultReady(result={"run": shown})]


def show_ledger(names: Sequence[str], events: Events) -> None:
    """Forecasts beside the actual figures, of these runs or of all."""
    ledger = entries([Run.find(name) for name in names] or reversed(Run.all()))
    if ledger:
        rows = [_ledger_row(entry, UNITS.get(entry.figure, "")) for entry in ledger]
        columns = ("run", "forecast of", "expected", "actual", "error", "in the 80 % interval")
        events.emit(Listing(columns=columns, rows=rows))
    summed = scores(ledger)
    events.emit(
        Listing(
            title="how forecasts have been doing",
            columns=("forecast of", "runs", "median error", "bias", "in the 80 % interval"),
            rows=[(s.figure, s.runs, f"{s.median_error:.1%}", f"{s.bias:+.1%}", f"{s.coverage:.0%}") for s in summed],
            note="error: actual ÷ expected − 1" if ledger else "no finished run has a forecast yet",
        )
    )
    records = [
        {"run": e.run, "figure": e.figure, "expected": e.forecast.value, "low": e.forecast.low, "high": e.forecast.high,
         "came": e.actual}
        for e in ledger
    ]  # fmt: skip
    events.emit(ResultReady(result={"ledger": records, "scores": [dataclasses.asdict(s) for s in summed]}))


def _facts(run: RunSummary, result: Result | None, files: Sequence[Path]) -> list[tuple[str, object]]:
    """Rows of the table that shows one run; what is not known is left out."""
    gate = result.gate if result else None
    facts: list[tuple[str, object]] = [
        ("status", run.status),
        ("verdict", run.shown_verdict),
        ("why", result.why if result else run.failure),
        ("held-out loss", _with_unit(run.loss, "nats")),
        ("", _with_unit(run.bits_per_byte, "bits per byte")),
        ("against its base", result.headline if result else None),
        ("best at step", result.best.step if result and result.best else None),
        ("tokens seen", _with_unit(run.tokens, "count")),
        ("time", _with_unit(run.seconds, "s")),
        ("started", day(run.started)),
        ("gate", None if gate is None else "passed" if gate.get("passed") else "failed"),
        ("network", result.audit.get("sentence") if result else None),
        ("folder", run.path),
        ("size", _with_unit(run.bytes, "bytes")),
    ]
    facts += [("files" if i == 0 else "", str(path.relative_to(run.path))) for i, path in enumerate(files)]
    facts += [("resume with", f"settle resume {run.name}")] if run.status == "interrupted" else []
    return [fact for fact in facts if fact[1] not in (None, "")]


def _ledger_row(entry: LedgerEntry, unit: str) -> tuple[object, ...]:
    inside = place_in_interval(entry.actual, entry.forecast.low, entry.forecast.high)
    expected, actual = _with_unit(entry.forecast.value, unit), _with_unit(entry.actual, unit)
    return entry.run, entry.figure, expected, actual, f"{entry.error:+.0%}", inside


def _seconds(result: Result | None, course: RunCourse) -> float | None:
    seconds = number(result.actual.get("time")) if result else None
    if seconds is not None:
        return seconds
    return None if course.started is None else course.now - course.started


def _with_unit(value: float | None, unit: str) -> dict[str, float | str] | None:
    return None if value is None else {"value": value, "unit": unit}


def day(at: float | None) -> str:
    """Date and time of epoch seconds, where this machine is."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))

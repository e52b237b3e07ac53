"""The runs there are, and what is known of one."""

import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import ForecastComparison, Listing, ResultReady, Say
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.run.result import Evaluated
from settle.commands import Command
from settle.plan.ledger import UNITS, entries, scores


class Runs(Command):
    """List the runs, newest first; `settle runs show NAME` tells one of them, `settle runs remove NAME` deletes it."""

    positional: ClassVar[tuple[str, ...]] = ("action", "name")

    action: str = Field("list", description="list, show or remove")
    name: str = Field("", description="the run to show or to remove")
    ledger: bool = Field(False, description="how well forecasts have been doing: forecast against what came, every run")

    def run(self, events: Events) -> int:
        actions = {"list": self._list, "show": self._show, "remove": self._remove}
        if self.action not in actions:
            known = self.action in {run.name for run in Run.all()}
            fix = f"`settle runs show {self.action}`" if known else "list, show or remove"
            raise UsageError(f"there is no `settle runs {self.action}`", fix)
        if self.action != "list" and not self.name:
            raise UsageError(f"which run is there to {self.action}?", f"`settle runs {self.action} NAME`")
        if self.ledger:
            self._ledger(events)
        else:
            actions[self.action](events)
        return 0

    def _list(self, events: Events) -> None:
        told = sorted((summary(run) for run in Run.all()), key=lambda run: run["started"] or 0.0, reverse=True)
        columns = ("name", "status", "verdict", "bits per byte", "tokens", "time", "started")
        rows = [
            [
                run["name"],
                run["status"],
                run["verdict"] or "",
                run["bits_per_byte"],
                _of(run["tokens"], "count"),
                _of(run["seconds"], "s"),
                _day(run["started"]),
            ]
            for run in told
        ]
        hint = "`settle runs show NAME` tells more" if told else "no runs yet; start one: `settle train FOLDER`"
        events.emit(Listing(columns=columns, rows=rows, note=hint))
        events.emit(ResultReady(result={"runs": told}))

    def _ledger(self, events: Events) -> None:
        kept = entries([Run.find(self.name)] if self.name else reversed(Run.all()))
        if kept:
            columns: tuple[str, ...] = ("run", "forecast of", "expected", "came", "error", "in the 80 % interval")
            rows = [
                [e.run, e.figure, _of(e.forecast.value, unit), _of(e.actual, unit), f"{e.error:+.0%}", _yes(e.inside)]
                for e in kept
                for unit in [UNITS.get(e.figure, "")]
            ]
            events.emit(Listing(columns=columns, rows=rows))
        told = scores(kept)
        columns = ("forecast of", "runs", "median error", "bias", "in the 80 % interval")
        summed = [[s.figure, s.runs, f"{s.median_error:.1%}", f"{s.bias:+.1%}", f"{s.coverage:.0%}"] for s in told]
        note = "came ÷ expected − 1" if kept else "no finished run has a forecast yet"
        events.emit(Listing(title="how forecasts have been doing", columns=columns, rows=summed, note=note))
        events.emit(ResultReady(result={"ledger": [vars(e) for e in kept], "scores": [vars(s) for s in told]}))

    def _show(self, events: Events) -> None:
        run = Run.find(self.name)
        told, result = summary(run), run.result()
        told |= {"why": None, "best": None, "gate": None, "headline": None, "actual": None}
        if result is not None:
            told |= {"why": result.why, "best": result.best and result.best.model_dump(), "gate": result.gate}
            told |= {"headline": result.headline or None, "actual": result.actual or None}
        files = [path for path in sorted(run.out.rglob("*")) if path.is_file()] if run.out.is_dir() else []
        told["files"] = [{"path": str(path), "bytes": path.stat().st_size} for path in files]
        told["forecast"] = (result.forecast if result else None) or run.read("forecast.json")
        events.emit(Listing(title=run.name, columns=("", ""), rows=_facts(told)))
        if told["forecast"]:
            events.emit(ForecastComparison(forecast=told["forecast"], actual=told["actual"]))
        events.emit(ResultReady(result={"run": told}))

    def _remove(self, events: Events) -> None:
        run = Run.find(self.name)
        with run.lock():
            freed = _size(run.path)
            shutil.rmtree(run.path)
        events.emit(Say(text=f"removed {run.name}: {freed / 1e6:,.1f} MB freed"))
        events.emit(ResultReady(result={"removed": run.name, "bytes": freed}))


def summary(run: Run) -> dict[str, Any]:
    """What is known of a run, finished or not: plain JSON values, None for what is not known."""
    result, course = run.result(), RunCourse.latest(run.events)
    best = (result.best if result else None) or Evaluated()
    latest = course.evals[-1] if course.evals else None
    step = course.step
    seconds = result.actual.get("time") if result else None
    if seconds is None and course.started is not None:
        seconds = course.now - course.started
    return {
        "name": run.name,
        "path": str(run.path),
        "status": run.status,
        "verdict": result.verdict if result else None,
        "loss": best.loss if best.loss is not None else latest and latest.loss,
        "bits_per_byte": best.bits_per_byte if best.bits_per_byte is not None else latest and latest.bits_per_byte,
        "step": step and step.step,
        "tokens": step.tokens if step else latest and latest.tokens,
        "seconds": seconds,
        "started": course.started,
        "bytes": _size(run.path),
    }


def _facts(told: dict[str, Any]) -> list[list[Any]]:
    """Rows of the table that shows one run; what is not known is left out."""
    best = told["best"] or {}
    gate = told["gate"]
    facts = [
        ["status", told["status"]],
        ["verdict", told["verdict"]],
        ["why", told["why"]],
        ["held-out loss", _of(told["loss"], "nats")],
        ["", _of(told["bits_per_byte"], "bits per byte")],
        ["against its base", told["headline"]],
        ["best at step", best.get("step")],
        ["tokens seen", _of(told["tokens"], "count")],
        ["time", _of(told["seconds"], "s")],
        ["started", _day(told["started"])],
        ["gate", None if not isinstance(gate, dict) else "passed" if gate.get("passed") else "failed"],
        ["folder", told["path"]],
        ["size", _of(told["bytes"], "bytes")],
    ]
    made = [str(Path(file["path"]).relative_to(told["path"])) for file in told["files"]]
    facts += [["made" if i == 0 else "", file] for i, file in enumerate(made)]
    if told["status"] == "interrupted":
        facts.append(["go on with", f"settle resume {told['name']}"])
    return [row for row in facts if row[1] not in (None, "")]


def _of(value: Any, unit: str) -> Any:
    """A value with its unit, which the face writes as people read it."""
    return None if value is None else {"value": value, "unit": unit}


def _yes(inside: bool) -> str:
    return "✓" if inside else "outside"


def _day(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

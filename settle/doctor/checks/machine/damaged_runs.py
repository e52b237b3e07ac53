"""A run whose folder was half deleted or edited: its plan cannot be read, or what it made is gone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.errors import SettleError
from settle.base.run import Run
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import ThisMachine
from settle.library.run_models import missing_files, models_of


class DamagedRun(Details):
    """The run, and the command that makes again what is missing of it, or ""."""

    run: str
    name: str
    again: str


class DamagedRuns(Check[ThisMachine, DamagedRun]):
    """Every run should have the files that its result names, and the base that its adapter is for."""

    number: ClassVar[int] = 25
    symptom: ClassVar[str] = "a run cannot be shown, resumed or served"
    seconds: ClassVar[float] = 0.5

    def detect(self, subject: ThisMachine) -> Iterator[Finding[DamagedRun]]:
        for run in Run.all():
            if why := _damage(run):
                again = ""
                with contextlib.suppress(SettleError, OSError):
                    again = next(iter(missing_files(run).values()), "")
                details = DamagedRun(run=run.path.name, name=run.name, again=again)
                yield self.finding(f"the run {run.name} is damaged", why, strength=0.8, details=details)

    def fix(self, finding: Finding[DamagedRun], subject: ThisMachine) -> Fix:
        name = finding.details.name
        if again := finding.details.again:
            return Fix(f"export it again, or delete {name}", again)
        return Fix(f"put back what is missing of {name}, or delete it", f"settle runs remove {name}")


def _damage(run: Run) -> str:
    """Return what is wrong with its folder; empty where nothing is."""
    try:
        run.read("plan.json")
        result = run.result()
        models = models_of(run)
    except SettleError as e:
        return e.what
    except OSError as e:
        return f"{run.path} cannot be read: {e.strerror}"
    if not (run.path / "recipe.toml").exists() and not (run.path / "plan.json").exists() and result is None:
        return f"{run.path} has neither recipe.toml nor plan.json" if run.status != "running" else ""
    if missing := missing_files(run):
        return f"{', '.join(path.name for path in missing)}, which it made, is no longer in {run.out}"
    for model in models:
        if model.base and not Path(model.base).is_file():
            return f"it is an adapter over {model.base}, which is gone"
    return ""

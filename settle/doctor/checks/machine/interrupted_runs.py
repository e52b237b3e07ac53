"""A run that was stopped before its end, or failed, and is worked on by nobody."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.errors import SettleError
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial


class InterruptedRuns(Check):
    """Every run should be finished, or worked on."""

    number: ClassVar[int] = 26
    symptom: ClassVar[str] = "a run never came to its end"
    about: ClassVar[tuple[str, ...]] = ()
    seconds: ClassVar[float] = 0.5

    def detect(self, subject: Subject) -> Iterator[Finding]:
        for run in Run.all():
            try:
                stopped = run.status == "interrupted" and run.read("plan.json") is not None
            except (SettleError, OSError):
                continue  # a damaged run is another check's
            failure = RunCourse.latest(run.events).failure if stopped else None
            if failure is not None:
                what, details = f"the run {run.name} failed", {"name": run.name, "failed": True}
                yield Finding(self.part_name(), what, (failure.what,), 0.4, details)
            elif stopped:
                steps = sorted(int(p.name) for p in run.checkpoints.glob("*") if p.name.isdigit())
                seen = f"its last checkpoint is of step {steps[-1]:,}" if steps else "it has no checkpoint yet"
                yield Finding(self.part_name(), f"the run {run.name} was interrupted", (seen,), 0.3, {"name": run.name})

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        return None

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        name = finding.details["name"]
        if finding.details.get("failed"):
            return Fix("look at that run", f"settle doctor {name}")
        return Fix(f"continue {name}, or delete it with `settle runs remove {name}`", f"settle resume {name}")

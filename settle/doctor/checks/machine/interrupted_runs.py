"""A run that was stopped before its end, or failed, and is worked on by nobody."""

from collections.abc import Iterator
from typing import ClassVar

from settle.base.errors import SettleError
from settle.base.run import Run
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import ThisMachine


class StoppedRun(Details):
    """The run, and whether it ended with an error."""

    name: str
    failed: bool = False


class InterruptedRuns(Check[ThisMachine, StoppedRun]):
    """Every run should be finished, or worked on."""

    number: ClassVar[int] = 26
    symptom: ClassVar[str] = "a run never came to its end"
    seconds: ClassVar[float] = 0.5

    def detect(self, subject: ThisMachine) -> Iterator[Finding[StoppedRun]]:
        for run in Run.all():
            try:
                stopped = run.status == "interrupted" and run.read("plan.json") is not None
            except (SettleError, OSError):
                continue  # a damaged run is another check's
            failure = run.failure if stopped else None
            if failure is not None:
                details = StoppedRun(name=run.name, failed=True)
                yield self.finding(f"the run {run.name} failed", failure.what, strength=0.4, details=details)
            elif stopped:
                steps = sorted(int(p.name) for p in run.checkpoints.glob("*") if p.name.isdigit())
                seen = f"its last checkpoint is of step {steps[-1]:,}" if steps else "it has no checkpoint yet"
                details = StoppedRun(name=run.name)
                yield self.finding(f"the run {run.name} was interrupted", seen, strength=0.3, details=details)

    def fix(self, finding: Finding[StoppedRun], subject: ThisMachine) -> Fix:
        name = finding.details.name
        if finding.details.failed:
            return Fix("look at that run", f"settle doctor {name}")
        return Fix(f"continue {name}, or delete it with `settle runs remove {name}`", f"settle resume {name}")

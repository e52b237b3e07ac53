"""A run that ended with an error: in its own words, and what it said could be done."""

from collections.abc import Iterator
from typing import ClassVar

from settle.base.events import OutOfMemory, PhaseStarted
from settle.base.run.course import RunCourse
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import TrainingRun
from settle.doctor.training.facts import latest_session


class Failure(Details):
    """What the run advised, and its name."""

    fix: str
    name: str


class FailedRun(Check[TrainingRun, Failure]):
    """The latest session of a run should not end with an error. What caused it is other checks' to find."""

    number: ClassVar[int] = 33
    symptom: ClassVar[str] = "a run ended with an error"
    seconds: ClassVar[float] = 0.2

    def detect(self, subject: TrainingRun) -> Iterator[Finding[Failure]]:
        run = subject.run
        if run.status == "running" or run.read("result.json") is not None:
            return
        session = latest_session(run)
        end = RunCourse.of(session).failure
        if end is None or any(isinstance(event, OutOfMemory) for event in session):
            return  # want of memory is said by `memory_training`, with what was missing
        phases = [event.phase for event in session if isinstance(event, PhaseStarted)]
        where = f" in the stage {phases[-1]!r}" if phases else ""
        evidence = (f"its advice: {end.fix}",) if end.fix else ()
        details = Failure(fix=end.fix, name=run.name)
        yield self.finding(f"{run.name} failed{where}: {end.what}", *evidence, strength=0.6, details=details)

    def fix(self, finding: Finding[Failure], subject: TrainingRun) -> Fix:
        advice = finding.details.fix or "fix what it says"
        return Fix(f"{advice}; then resume it", f"settle resume {finding.details.name}")

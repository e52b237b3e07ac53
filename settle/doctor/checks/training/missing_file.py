"""A finished run whose exported model was deleted or moved: nothing that names the run can load it."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.library.run_models import missing_files


class MissingFile(Check):
    """What a finished run recorded as its models should be in its folder."""

    number: ClassVar[int] = 34
    symptom: ClassVar[str] = "a finished run cannot be chatted with, served or exported"
    about: ClassVar[tuple[str, ...]] = ("run",)
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.run is not None
        for path, command in missing_files(subject.run).items():
            details = {"command": command}
            seen = f"models.json lists it, and it is not in {path.parent}"
            yield Finding(self.part_name(), f"{path.name} is missing", (seen,), 1.0, details)

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        return None  # nothing can be run without it

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        return Fix("export it again from the run's weights", str(finding.details["command"]))

"""A finished run whose exported model was deleted or moved: nothing that names the run can load it."""

from collections.abc import Iterator
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import TrainingRun
from settle.library.run_models import missing_files


class Export(Details):
    """The command that makes the file again."""

    command: str


class MissingFile(Check[TrainingRun, Export]):
    """What a finished run recorded as its models should be in its folder."""

    number: ClassVar[int] = 34
    symptom: ClassVar[str] = "a finished run cannot be chatted with, served or exported"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: TrainingRun) -> Iterator[Finding[Export]]:
        for path, command in missing_files(subject.run).items():
            seen = f"models.json lists it, and it is not in {path.parent}"
            yield self.finding(f"{path.name} is missing", seen, strength=1.0, details=Export(command=command))

    def fix(self, finding: Finding[Export], subject: TrainingRun) -> Fix:
        return Fix("export it again from the run's weights", finding.details.command)

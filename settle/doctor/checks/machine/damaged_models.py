"""A model of the store whose file is gone, cut off or no sound GGUF."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.errors import SettleError
from settle.base.files import home
from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.formats.gguf import read_gguf


class DamagedModels(Check):
    """Every GGUF file of the store should be sound from its header to its last tensor."""

    number: ClassVar[int] = 28
    symptom: ClassVar[str] = "a model of the store does not load"
    about: ClassVar[tuple[str, ...]] = ()
    seconds: ClassVar[float] = 1.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        for path in sorted((home() / "models").glob("*/*.gguf")):
            try:
                read_gguf(path)
            except (SettleError, OSError) as e:
                what = e.what if isinstance(e, SettleError) else f"{path.name} cannot be read: {e.strerror}"
                name = path.parent.name
                yield Finding(self.part_name(), f"the model {name} is damaged", (what,), 0.9, {"name": name})

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        return None

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        name = finding.details["name"]
        return Fix(f"get {name} again", f"settle models remove {name} && settle pull {name}")

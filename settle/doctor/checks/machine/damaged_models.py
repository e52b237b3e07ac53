"""A model of the store whose file is gone, cut off or no sound GGUF."""

from collections.abc import Iterator
from typing import ClassVar

from settle.base.errors import SettleError
from settle.base.files import home
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import ThisMachine
from settle.formats.gguf import read_gguf


class DamagedModel(Details):
    """The model of the store."""

    name: str


class DamagedModels(Check[ThisMachine, DamagedModel]):
    """Every GGUF file of the store should be sound from its header to its last tensor."""

    number: ClassVar[int] = 28
    symptom: ClassVar[str] = "a model of the store does not load"
    seconds: ClassVar[float] = 1.0

    def detect(self, subject: ThisMachine) -> Iterator[Finding[DamagedModel]]:
        for path in sorted((home() / "models").glob("*/*.gguf")):
            try:
                read_gguf(path)
            except (SettleError, OSError) as e:
                what = e.what if isinstance(e, SettleError) else f"{path.name} cannot be read: {e.strerror}"
                name = path.parent.name
                yield self.finding(f"the model {name} is damaged", what, strength=0.9, details=DamagedModel(name=name))

    def fix(self, finding: Finding[DamagedModel], subject: ThisMachine) -> Fix:
        name = finding.details.name
        return Fix(f"get {name} again", f"settle models remove {name} && settle pull {name}")

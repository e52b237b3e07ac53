"""One file is one failure: how it shows, how it is found in seconds, and the one change that proves and mends it."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.registry import Part
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial

GROUPS = ("resources", "files", "answers", "training", "histories", "machine")  # sub-folders that hold the checks


class Check(Part):
    """The contract of a check.

    number: by which `--prove` calls it, the same for ever. symptom: what a person sees. about: what a subject must
    have, by the names of its fields, for the check to look at it; () looks at this machine. seconds: that the look
    takes at most on a small model. is_vital: whether it looks however long the others took, since what it finds makes
    every answer wrong.
    """

    number: ClassVar[int]
    symptom: ClassVar[str]
    about: ClassVar[tuple[str, ...]]
    seconds: ClassVar[float] = 1.0
    is_vital: ClassVar[bool] = False

    def detect(self, subject: Subject) -> Iterator[Finding]:
        """What is likely, seen in seconds, without changing anything. Raises SettleError where it cannot look."""
        raise NotImplementedError

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        """The A/B that proves it; None where nothing can be run again. folder: of the proof, for files that a side
        needs. Raises SettleError."""
        raise NotImplementedError

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        """What mends it."""
        raise NotImplementedError

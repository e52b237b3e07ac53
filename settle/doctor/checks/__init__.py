"""One file is one failure: how it shows, how it is found in seconds, and the one change that proves and fixes it."""

from collections.abc import Iterator
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, get_args

from settle.base.errors import UsageError
from settle.base.registry import Part
from settle.doctor.findings import D, Details, Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial

GROUPS = ("files", "answers", "training", "machine")  # sub-folders that hold the checks
S = TypeVar("S", bound=Subject)


class Check(Part, Generic[S, D]):
    """The contract of a check of subjects of kind S, whose findings carry details D.

    `class Rope(Check[ModelFile, Positions])` looks at files of models: `about` and `details` are taken from there.
    """

    number: ClassVar[int]  # by which `--prove` calls it; never reused
    symptom: ClassVar[str]  # what a user sees
    about: ClassVar[type[Subject]]  # S
    details: ClassVar[Any]  # D, which may be a union of kinds
    seconds: ClassVar[float] = 1.0  # that the look takes at most on a small model
    is_vital: ClassVar[bool] = False  # it looks however long the others took: what it finds makes every answer wrong

    if not TYPE_CHECKING:

        def __class_getitem__(cls, parameters):
            return GenericAlias(cls, parameters)  # pydantic would make a class, and so a part, of each

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        for argument in get_args(cls.__dict__.get("__orig_bases__", (None,))[0]):
            if isinstance(argument, type) and issubclass(argument, Subject):
                cls.about = argument
            elif not isinstance(argument, TypeVar):
                cls.details = argument

    def detect(self, subject: S) -> Iterator[Finding[D]]:
        """Yield what is likely, seen in seconds, without changing anything. Raises SettleError where it cannot look."""
        raise NotImplementedError

    def trial(self, finding: Finding[D], subject: S, folder: Path) -> Trial | None:
        """Return the A/B that proves a finding; None where nothing can be run again. Raises SettleError.

        folder: of the proof, for files that a side needs.
        """
        return None

    def fix(self, finding: Finding[D], subject: S) -> Fix:
        """Return what removes the cause."""
        raise NotImplementedError

    def finding(self, what: str, *evidence: str, strength: float, details: D | None = None) -> Finding[D]:
        """Return a finding of this check."""
        return Finding(self.part_name(), what, evidence, strength, details or cast(D, Details()))

    @classmethod
    def view_of(cls, subject: Subject) -> S | None:
        """Return what this check looks at in a subject; None where there is nothing of its kind."""
        return cast("S | None", next((view for view in subject.views if isinstance(view, cls.about)), None))


AnyCheck = Check[Any, Any]
Check.__pydantic_generic_metadata__["parameters"] = ()  # pydantic wants subclasses to bind all of them at once


def proposed_trial(finding: Finding[Any], subject: Subject, folder: Path) -> Trial | None:
    """Return the A/B that proves a finding about a subject, if there is one. Raises SettleError."""
    return Check.part(finding.check)().trial(finding, _seen(finding, subject), folder)


def proposed_fix(finding: Finding[Any], subject: Subject) -> Fix:
    """Return what removes the cause of a finding about a subject. Raises UsageError."""
    return Check.part(finding.check)().fix(finding, _seen(finding, subject))


def _seen(finding: Finding[Any], subject: Subject) -> Any:
    view = Check.part(finding.check).view_of(subject)
    if view is None:
        raise UsageError(f"{subject.name} has nothing that {finding.check} looks at", "run `settle doctor` on it again")
    return view

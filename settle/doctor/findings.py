"""What a check found, and what fixes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from settle.base.errors import UsageError
from settle.doctor.subject import Subject
from settle.wire.types import JsonObject


class Details(BaseModel):
    """What a check needs to know to prove and to fix what it found; each check has its own. JSON holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> JsonObject:
        """Return the fields that were set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def check_free(path: Path) -> None:
    """Check that a fix overwrites nothing. Raises UsageError."""
    if path.exists():
        raise UsageError(f"{path.name} is there already", "move it away, or use it")


D = TypeVar("D", bound=Details)


@dataclass(frozen=True)
class Finding(Generic[D]):
    """A likely cause."""

    check: str  # name of the part that found it
    what: str  # a sentence that names the cause
    evidence: tuple[str, ...]  # what was seen, in sentences
    strength: float  # from 0 to 1, how sure the look alone makes it; findings are shown in this order
    details: D

    def to_json(self) -> JsonObject:
        return {
            "check": self.check,
            "what": self.what,
            "evidence": list(self.evidence),
            "strength": round(self.strength, 3),
            "details": self.details.to_json(),
        }


@dataclass(frozen=True)
class Fix:
    """What removes a cause."""

    what: str  # a sentence in the imperative
    command: str  # the exact command or setting, to copy
    write: Callable[[], str] | None = None  # does it, and returns what was written, in words; None where only users can
    mended: Callable[[], Subject] | None = None  # the subject once it is written, which the check looks at again
    undo: Callable[[], None] | None = None  # takes it back where the check still finds it

"""What a check found, and what mends it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from settle.doctor.subject import Subject


@dataclass(frozen=True)
class Finding:
    """A cause that is likely. check: the name of the part that found it. what: a sentence that names the cause.
    evidence: what was seen, in sentences. strength: from 0 to 1, how sure the look alone makes it; findings are shown
    in its order. details: what the check needs to know to prove and to mend it; JSON holds it."""

    check: str
    what: str
    evidence: tuple[str, ...] = ()
    strength: float = 0.5
    details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "check": self.check,
            "what": self.what,
            "evidence": list(self.evidence),
            "strength": round(self.strength, 3),
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Fix:
    """What mends a cause. what: a sentence in the imperative. command: the exact command or setting, to copy. write:
    does it, and returns what was written, in words; None where only the person can. mended: the subject once it is
    written, which the check then looks at again. undo: takes it back where that finds it still."""

    what: str
    command: str
    write: Callable[[], str] | None = None
    mended: Callable[[], Subject] | None = None
    undo: Callable[[], None] | None = None

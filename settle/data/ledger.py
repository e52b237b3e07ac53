"""The ledger of a corpus: how many rows were read, repaired and dropped, and why, with examples.

It is part of the model card.
"""

from dataclasses import dataclass, field
from typing import Any, TypedDict

from settle.documents.walk import FoundFile

_EXAMPLES = 3
_SHOWN = 100
_NOTED_FILES = 100
_PLACES = 20


LedgerRecord = dict[str, Any]  # a ledger as plain JSON, see `Ledger.as_dict`


SUMMARIZED = ("train", "selection", "held_out", "dropped", "mended", "skipped", "found", "found_at")  # what is shown


class ReasonCount(TypedDict):
    """How often a reason applied, and its first examples: where, and for some reasons the beginning of the text."""

    count: int
    examples: list[dict[str, str]]


@dataclass
class Ledger:
    """Counts per reason. A reason is a short phrase, the same for every row that it applies to.

    found, found_at: by kind, how many there are and where the first ones are. notes: further values for the record,
    plain JSON.
    """

    read: int = 0
    kept: int = 0
    kept_bytes: int = 0
    dropped: dict[str, ReasonCount] = field(default_factory=dict)
    mended: dict[str, ReasonCount] = field(default_factory=dict)
    skipped: dict[str, ReasonCount] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    found_at: dict[str, list[str]] = field(default_factory=dict)
    notes: LedgerRecord = field(default_factory=dict)
    omissions: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, where: str, text: str) -> None:
        """Count a row that is left out."""
        _count(self.dropped, reason, where, text)

    def mend(self, reason: str, where: str, text: str) -> None:
        """Count a row that stays, repaired."""
        _count(self.mended, reason, where, text)

    def skip(self, reason: str, where: str) -> None:
        """Count a file or folder that is not read."""
        _count(self.skipped, reason, where, "")

    def find(self, kind: str, count: int, where: str) -> None:
        """Count something worth knowing in a row that stays, such as e-mail addresses."""
        self.found[kind] = self.found.get(kind, 0) + count
        places = self.found_at.setdefault(kind, [])
        if len(places) < _PLACES and where not in places:
            places.append(where)

    def note_omission(self, file: FoundFile, note: str) -> None:
        """Record what a reader left out of a file, such as pages that are pictures."""
        if file.name in self.omissions or len(self.omissions) < _NOTED_FILES:
            self.omissions.setdefault(file.name, []).append(note)

    def summary(self) -> str:
        """Return the counts in short, for an error's text."""
        parts = [f"documents read: {self.read}"]
        parts += [f"dropped as {reason}: {n['count']}" for reason, n in self.dropped.items()]
        parts += [f"skipped as {reason}: {n['count']}" for reason, n in self.skipped.items()]
        return ", ".join(parts)

    def as_dict(self) -> LedgerRecord:
        """Return plain JSON values."""
        names = ("read", "kept", "kept_bytes", "dropped", "mended", "skipped", "found", "found_at")
        omissions = {"omissions": self.omissions} if self.omissions else {}
        return {name: getattr(self, name) for name in names} | omissions | self.notes


def _count(table: dict[str, ReasonCount], reason: str, where: str, text: str) -> None:
    entry = table.setdefault(reason, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < _EXAMPLES:
        shown = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
        entry["examples"].append({"where": where} | ({"text": shown} if text else {}))

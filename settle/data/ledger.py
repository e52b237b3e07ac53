"""What became of every row: read, mended, dropped and why, with examples; it reaches the model card."""

from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 3
_SHOWN = 100


@dataclass
class Ledger:
    """Counts per reason. A reason is a short phrase, the same for every row it befalls."""

    read: int = 0
    kept: int = 0
    kept_bytes: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    mended: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def drop(self, reason: str, where: str, text: str) -> None:
        """A row that is left out."""
        _count(self.dropped, reason, where, text)

    def mend(self, reason: str, where: str, text: str) -> None:
        """A row that is kept, changed."""
        _count(self.mended, reason, where, text)

    def skip(self, reason: str, where: str) -> None:
        """A file or folder that is not read."""
        _count(self.skipped, reason, where, "")

    def find(self, kind: str, count: int) -> None:
        """Something worth knowing in a row that is kept, such as e-mail addresses."""
        self.found[kind] = self.found.get(kind, 0) + count

    def summary(self) -> str:
        """What was found, in short, for an error's text."""
        parts = [f"documents read: {self.read}"]
        parts += [f"dropped as {reason}: {n['count']}" for reason, n in self.dropped.items()]
        parts += [f"skipped as {reason}: {n['count']}" for reason, n in self.skipped.items()]
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("read", "kept", "kept_bytes", "dropped", "mended", "skipped", "found")
        return {name: getattr(self, name) for name in names} | self.notes


def _count(table: dict[str, dict[str, Any]], reason: str, where: str, text: str) -> None:
    entry = table.setdefault(reason, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < _EXAMPLES:
        shown = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
        entry["examples"].append({"where": where} | ({"text": shown} if text else {}))

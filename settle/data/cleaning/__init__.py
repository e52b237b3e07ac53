"""Cleaning: one file a pass. A pass drops or repairs a document, and says why."""

from typing import ClassVar, Protocol

import numpy as np

from settle.base.registry import Part
from settle.data.document_buffer import DocumentBuffer


class Note(Protocol):
    """A callback that counts what a pass does to a text.

    what: "mended", "dropped" or "found". reason: for that, or the kind of thing that was found. at: for what was found,
    the character of the text where the first of them begins.
    """

    def __call__(self, what: str, reason: str, count: int, at: int = 0) -> None: ...


class Sweep:
    """A pass at work on one corpus; it overrides what it needs."""

    def mend(self, text: str, note: Note) -> str | None:
        """Return the text, repaired, or None when it is dropped. First pass; `note` is called with the reason."""
        return text

    def revises(self) -> bool:
        """Return whether, now that every row was seen, `revise` has something to do."""
        return False

    def revise(self, text: str, note: Note) -> str | None:
        """Return the text as `mend` does. Second pass, for what only the whole corpus shows."""
        return text

    def repeats(self, documents: DocumentBuffer) -> tuple[str, np.ndarray] | None:
        """Return a reason and which of the documents are dropped for it: bool (D,)."""
        return None


class Cleaning(Part, Sweep):
    """One pass. Passes run in the order of `rank`."""

    rank: ClassVar[int]

    def start(self) -> Sweep:
        """Return the pass itself where it needs no state; otherwise fresh working state for one corpus."""
        return self

"""Removal of documents too short to learn from."""

from typing import ClassVar

from pydantic import Field

from settle.data.cleaning import Cleaning, Note


class TooShort(Cleaning):
    """Drops documents with hardly any text."""

    rank: ClassVar[int] = 60
    least: int = Field(
        16, ge=1, description="minimum number of characters of a document, surrounding space not counted"
    )

    def mend(self, text: str, note: Note) -> str | None:
        # a long text needs no copy to be stripped
        if len(text) > 1000 and not text.isspace() or len(text.strip()) >= self.least:
            return text
        note("dropped", "empty" if not text.strip() else "too short", 1)
        return None

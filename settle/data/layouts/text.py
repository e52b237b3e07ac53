"""Plain text: a row is a document."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from settle.data.layouts import Broken, Example, Kind, RowLayout, text_of
from settle.documents.rows import Values


class TextRows(RowLayout):
    """One column of text, to go on in the same manner."""

    rank: ClassVar[int] = 90
    kind: ClassVar[Kind] = "text"
    usual: ClassVar[Mapping[str, Sequence[str]]] = {
        "text": ("text", "content", "body", "document", "article", "passage", "code", "story", "raw_content")
    }
    needed: ClassVar[tuple[str, ...]] = ("text",)
    text: str | None = Field(None, description="the column of the text")

    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        text = text_of(record, columns["text"], "the text")
        if not text.strip():
            raise Broken("an empty text")
        return Example("text", text=text)

"""Tables and records: rows of cells, or of named values."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar, NamedTuple

from pydantic import Field

from settle.documents.readers import Reader
from settle.documents.rows import Row, record_document, text_rows


class Start(NamedTuple):
    """Where a piece of text begins in its file: a line and a column, from 1."""

    line: int = 1
    column: int = 1

    def after(self, text: str, offset: int) -> "Start":
        """Return the place of a character of the text that begins here."""
        lines = text.count("\n", 0, offset)
        column = offset - text.rfind("\n", 0, offset) if lines else self.column + offset
        return Start(self.line + lines, column)

    def fault(self, text: str, fault: Exception) -> str:
        """Return where the text that begins here is no JSON, and why: `line 7 (expecting ',' delimiter, column 12)`."""
        why, end = getattr(fault, "msg", "it ends in the middle"), max(len(text.rstrip()) - 1, 0)
        line, column = self.after(text, getattr(fault, "pos", end))
        return f"line {line:,} ({why[:1].lower()}{why[1:]}, column {column:,})"


class TableReader(Reader):
    """One value of a record holds the text, or all of its texts together make a document."""

    has_columns: ClassVar[bool] = True
    field: str | None = Field(None, description="the column or key that holds the text")

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for record in self.records(stream):
            if "problem" in record:
                yield {"row": record["row"], "problem": record["problem"]}
            else:
                yield from text_rows(record_document(record["value"], self.field), record["row"])

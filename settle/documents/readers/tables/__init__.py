"""Tables and records: rows of cells, or of named values."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from pydantic import Field

from settle.documents.readers import Reader
from settle.documents.rows import Row, record_document, text_rows


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

"""Parquet tables, row group by row group."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from pydantic import Field

from settle.base.errors import DataError
from settle.data.records import record_text
from settle.data.sources import Row, Skip, Source, documents


class Parquet(Source):
    """A column table: one column holds the text, or all text columns together make a document."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
    field: str | None = Field(None, description="the column that holds the text")

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        import pyarrow as pa
        from pyarrow import parquet

        if not stream.seekable():
            raise Skip("a compressed parquet file: unpack it first")
        try:
            table = parquet.ParquetFile(stream, pre_buffer=False)
            names = table.schema_arrow.names
            if self.field is not None and self.field not in names:
                raise DataError(f"there is no column {self.field!r} in the table", f"use one of {', '.join(names)}")
            columns = [self.field] if self.field else names
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield from documents(record_text(record, self.field), number)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
            raise Skip(f"not a readable parquet file: {str(e).splitlines()[0]}") from None

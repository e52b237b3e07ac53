"""Parquet tables, row group by row group."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from pydantic import Field

from settle.base.errors import DataError
from settle.data.records import record_text
from settle.data.sources import Record, Row, Skip, Source, documents


class Parquet(Source):
    """A column table: one column holds the text, or all text columns together make a document."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
    field: str | None = Field(None, description="the column that holds the text")

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for record in self._read(stream, self.field):
            yield from documents(record_text(record["value"], self.field), record["row"])

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        yield from self._read(stream, None)

    def _read(self, stream: BinaryIO, column: str | None) -> Iterator[Record]:
        import pyarrow as pa
        from pyarrow import parquet

        if not stream.seekable():
            raise Skip("a compressed parquet file: unpack it first")
        try:
            table = parquet.ParquetFile(stream, pre_buffer=False)
            names = table.schema_arrow.names
            if column is not None and column not in names:
                raise DataError(f"there is no column {column!r} in the table", f"use one of {', '.join(names)}")
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=[column] if column else names):
                for value in batch.to_pylist():
                    number += 1
                    yield {"row": number, "value": value}
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
            raise Skip(f"not a readable parquet file: {str(e).splitlines()[0]}") from None

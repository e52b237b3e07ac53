"""Parquet tables, row group by row group."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from settle.base.errors import DataError
from settle.documents.blocks import Unreadable
from settle.documents.readers.tables._table import TableReader
from settle.documents.rows import Record


class Parquet(TableReader):
    """A row is a block; a place is its number."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        import pyarrow as pa
        from pyarrow import parquet

        if not stream.seekable():
            raise Unreadable("a compressed parquet file: unpack it first")
        try:
            table = parquet.ParquetFile(stream, pre_buffer=False)
            names = table.schema_arrow.names
            if self.field is not None and self.field not in names:
                raise DataError(f"there is no column {self.field!r} in the table", f"use one of {', '.join(names)}")
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=[self.field] if self.field else names):
                for value in batch.to_pylist():
                    number += 1
                    yield {"row": number, "value": value}
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
            raise Unreadable(f"not a readable parquet file: {str(e).splitlines()[0]}") from None

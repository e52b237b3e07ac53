"""Parquet tables, row group by row group."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable
from settle.documents.parquet_rows import batches, parquet_rows
from settle.documents.readers.tables import TableReader
from settle.documents.rows import Record, record_lines


class Parquet(TableReader):
    """A row is a block; a place is its number. Training reads the rows in a child of their own."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        for number, value in enumerate(chain.from_iterable(batches(str(path), self.field)), 1):
            yield Block("text", record_lines(value), Place(part=f"row {number}"))

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        if not stream.seekable():
            raise Unreadable("a compressed parquet file: unpack it first")
        yield from parquet_rows(str(Path(stream.name).absolute()), self.field)

"""Readers: one file a kind of document. A reader gives blocks with their places to an index, and rows to training.

A kind is written once, in the view that is natural to it; the other view follows from that one. Files of text and
tables are read for training as a stream, in this process, however large they are. Every other kind is read as blocks,
in a fenced child process (see `reader_pool`), and its rows are the text of those.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import BinaryIO, ClassVar

from settle.base.registry import Part
from settle.documents.blocks import Block, Note, Place, joined_text
from settle.documents.rows import Record, Row, record_lines, text_rows

GROUPS = ("text", "tables", "office")


class Reader(Part):
    """The contract of a reader: `blocks`, or `rows` or `records`, or both.

    `blocks` runs in a child process with bounded memory and time, so it may trust its library to fail, but not the
    file. A reader loads its library when it reads, not when it is asked for its suffixes.
    """

    suffixes: ClassVar[tuple[str, ...]]  # of the files it reads, lower case with the dot, without .gz or .zst
    names: ClassVar[tuple[str, ...]] = ()  # of files that have no suffix, lower case
    packages: ClassVar[tuple[str, ...]] = ()  # modules that its blocks need and a plain installation may lack
    has_columns: ClassVar[bool] = False  # whether its rows have named values
    # names the way its rows are made, where that is not the kind's own name: kinds with one name make the same rows of
    # the same bytes
    row_format: ClassVar[str] = ""

    @classmethod
    def streams(cls) -> bool:
        """Return whether training reads its files as a stream in this process, not as blocks in the child."""
        return cls.rows is not Reader.rows or cls.records is not Reader.records

    @classmethod
    def row_kind(cls) -> str:
        """Return the name of the way in which its rows are made."""
        return cls.row_format or cls.part_name()

    @classmethod
    def missing_package(cls) -> str | None:
        """Return the package that training needs to read its files and that is not installed."""
        return None if cls.streams() else next((p for p in cls.packages if find_spec(p) is None), None)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        """Yield the document's blocks in reading order; by default a block a record.

        note: called with what was left out ("page 3 is a picture: no text"). Raises Unreadable when the file gives no
        text.
        """
        with path.open("rb") as stream:
            for record in self.records(stream):
                if "problem" in record:
                    note(f"row {record['row']}: {record['problem']}")
                else:
                    yield Block("text", record_lines(record["value"]), Place(part=f"row {record['row']}"))

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        """Yield the documents of a file opened for reading bytes. Raises Unreadable when it has none."""
        raise NotImplementedError

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        """Yield the rows with their named values; those of a file without columns have one, `text`."""
        yield from map(as_record, self.rows(stream))

    def rows_of(self, blocks: Iterable[Block]) -> Iterator[Row]:
        """Yield the documents of a file's blocks, if training does not stream it: one, cut where it is very long."""
        yield from text_rows(joined_text(blocks), 1)


def as_record(row: Row) -> Record:
    """Return a row of text as a record whose one value is `text`."""
    if "problem" in row:
        return {"row": row["row"], "problem": row["problem"]}
    return {"row": row["row"], "value": {"text": row["text"]}}


def reader_of(name: str) -> str | None:
    """Return the reader of a file of that name: by its suffix, or by the word that it begins with."""
    path = PurePath(name.lower())
    return _readers().get(path.suffix or path.name.split("-")[0])


@cache
def _readers() -> dict[str, str]:
    """Map each suffix, with its dot, and each file name to its reader."""
    return {known: reader for reader, kind in Reader.parts().items() for known in (*kind.suffixes, *kind.names)}

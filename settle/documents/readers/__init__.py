"""Readers: one file a kind of document. A reader turns a file into blocks with their places."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.registry import Part
from settle.documents.blocks import Block

Note = Callable[[str], None]


class Reader(Part):
    """The contract of a reader. suffixes: of the files it reads, lower case with the dot; names: of files that go
    without one, lower case.

    A reader runs in a child process with bounded memory and time (see `reading.py`), so it may trust its library to
    fail, but not the file. It loads its library when it reads, not when it is asked for its suffixes.
    """

    suffixes: ClassVar[tuple[str, ...]]
    names: ClassVar[tuple[str, ...]] = ()

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        """The document's blocks in reading order. note: told what was left out ("page 3 is a picture: no text").

        Raises Unreadable when nothing comes out of the file.
        """
        raise NotImplementedError

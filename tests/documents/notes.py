"""A reader of a new kind, in one file: a note between two rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block, Note, Place
from settle.documents.readers import Reader


class Notes(Reader):
    suffixes: ClassVar[tuple[str, ...]] = (".notes",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        for number, text in enumerate(path.read_text().split("\n----\n"), 1):
            yield Block("text", text.strip(), Place(part=f"note {number}"))

"""Plain text: paragraphs between empty lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.retrieve.document import Block, Place
from settle.retrieve.readers import Note, Reader
from settle.retrieve.readers._lines import text_lines


class Text(Reader):
    """A paragraph is a block."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text", ".log")

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        held: list[str] = []
        first = 1
        for number, line in enumerate(text_lines(path, note), 1):
            if line.strip():
                if not held:
                    first = number
                held.append(line)
            elif held:
                yield Block("text", "\n".join(held), Place(line=first), lined=True)
                held = []
        if held:
            yield Block("text", "\n".join(held), Place(line=first), lined=True)

"""Web pages: headings, paragraphs, lists, listings and tables, without scripts, styles and navigation."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block
from settle.documents.readers import Note, Reader
from settle.documents.readers._lines import whole_bytes
from settle.documents.readers._page import page_blocks


class Html(Reader):
    """A place is the nearest id above it, as in `page.html#setup`, or the line where a page has none."""

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".xhtml")

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        yield from page_blocks(whole_bytes(path), note)

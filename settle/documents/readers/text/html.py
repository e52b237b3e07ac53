"""Web pages: headings, paragraphs, lists, listings and tables, without scripts, styles and navigation."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import BinaryIO, ClassVar

from settle.documents.blocks import Block, Note
from settle.documents.decode import decoded, whole_bytes
from settle.documents.readers import Reader
from settle.documents.rows import Row, cut
from settle.documents.web_page import IGNORED_TAGS, page_blocks

_IGNORED = {"head", *IGNORED_TAGS}
_BLOCKS = {
    *("p", "div", "section", "article", "main", "header", "aside", "ul", "ol", "table", "blockquote", "figure"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "pre", "dl", "hr", "details"),
}
_LINES = {"br", "li", "tr", "dt", "dd", "summary", "figcaption", "option"}


class Html(Reader):
    """A place is the nearest id above it, as in `page.html#setup`, or the line where a page has none.

    Training reads the text of a page as it streams by, with the standard library alone.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".xhtml")
    packages: ClassVar[tuple[str, ...]] = ("lxml",)
    row_format: ClassVar[str] = "html 2"

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        yield from page_blocks(whole_bytes(path), note)

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for number, text in enumerate(cut(_Page().texts(decoded(stream))), 1):
            yield {"text": text, "row": number}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._left_out = 0
        self._verbatim = 0
        self._pieces: list[str] = []
        self._breaks = 2  # line feeds at the end so far

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _IGNORED:
            self._left_out += 1
        self._verbatim += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _IGNORED and self._left_out:
            self._left_out -= 1
        if tag == "pre" and self._verbatim:
            self._verbatim -= 1
        if tag == "body":
            self._left_out = 0
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._left_out or not data:
            return
        if not self._verbatim:
            words = " ".join(data.split())
            if not words:
                if not self._breaks:
                    self._add(" ")
                return
            front = " " if data[0].isspace() and not self._breaks else ""
            back = " " if data[-1].isspace() else ""
            data = front + words + back
        self._add(data)
        self._breaks = len(data) - len(data.rstrip("\n"))

    def texts(self, chunks: Iterator[str]) -> Iterator[str]:
        for chunk in chunks:
            self.feed(chunk)
            yield self._take()
        self.close()
        yield self._take() + "\n"

    def _take(self) -> str:
        """Return the text since the last call, without the line feeds at its end: they may be the page's last."""
        text = "".join(self._pieces)
        ended = text.rstrip("\n")
        self._pieces = [text[len(ended) :]] if len(ended) < len(text) else []
        return ended

    def _add(self, text: str) -> None:
        if self._pieces and self._pieces[-1].endswith(" ") and text.startswith(" "):
            text = text[1:]
        self._pieces.append(text)

    def _break(self, tag: str) -> None:
        count = 2 if tag in _BLOCKS else 1 if tag in _LINES else 0
        if self._left_out or count <= self._breaks:
            return
        if self._pieces:
            self._pieces[-1] = self._pieces[-1].rstrip(" ")
        self._pieces.append("\n" * (count - self._breaks))
        self._breaks = count

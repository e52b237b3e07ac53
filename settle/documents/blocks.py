"""The blocks that a reader makes of a document, and the passages that a chunker cuts from them, with their places."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

from settle.base.errors import DataError
from settle.base.visible import visible_line

Kind = Literal["heading", "text", "list", "code", "table"]
Note = Callable[[str], None]
_FRAGMENT = "!$&'()*+,;=:@/?-._~#"  # a chapter of a book joins its file and its anchor by a #


LEFT_OUT = "left out: "  # begins the reason of a file that could be read and is no text for people


class Unreadable(DataError):
    """No text comes out of a file: `what` is the reason, shown beside its name; the other files are read."""


@dataclass(frozen=True)
class Place:
    """A place in a file. line: from 1, where the file is text; page: from 1, of a page or a slide;
    part: a name inside the file (an anchor of a web page, a sheet, a chapter, a cell, a message), or "".
    """

    line: int | None = None
    page: int | None = None
    part: str = ""

    def after(self, path: str) -> str:
        """`path` with the place in it, as editors and browsers open it: `a.md:12`, `a.pdf#page=3`, `a.html#setup`. On
        one line, whatever the name of the file."""
        return visible_line(path) + self.suffix

    @property
    def suffix(self) -> str:
        """What follows the path: a line, or a fragment, of which only letters, digits and the signs that a fragment may
        hold (RFC 3986) are as they are in the document."""
        if self.line is not None:
            return f":{self.line}"
        if self.page is not None:
            return f"#page={self.page}"
        return f"#{''.join(c if c.isalnum() else quote(c, _FRAGMENT) for c in self.part)}" if self.part else ""


@dataclass(frozen=True)
class Block:
    """One paragraph, heading, listing or table. text: without markup that only shows.

    level: of a heading, from 1; of another block, the deepest level of the headings that it belongs to, or None when
    it belongs to all that came before. lined: whether each line feed of the text is one of the file, so that a line
    inside the block has a number. header: of a table, the line above its rows and above every part of them.
    """

    kind: Kind
    text: str
    place: Place = field(default_factory=Place)
    level: int | None = None
    lined: bool = False
    header: str = ""


@dataclass(frozen=True)
class Chunk:
    """A passage: the unit of search and citation. headings: those above it, the outermost first. tokens: of
    `embedded`, as the embedder counts.
    """

    text: str
    headings: tuple[str, ...]
    place: Place
    tokens: int

    @property
    def embedded(self) -> str:
        """What the embedder reads: the headings say what a passage is about where it does not say so itself."""
        return with_headings(self.headings, self.text)


def with_headings(headings: tuple[str, ...], text: str) -> str:
    """A passage below the path of its headings."""
    return f"{' › '.join(headings)}\n{text}" if headings else text


def joined_text(blocks: Iterable[Block]) -> str:
    """The text of a document's blocks, as a person would type it: a blank line between two of them, none inside a list
    or a table, a table's header once.
    """
    pieces: list[str] = []
    before: Block | None = None
    for block in blocks:
        same = before is not None and before.kind == block.kind and block.kind in ("list", "table")
        if before is not None:
            pieces.append("\n" if same else "\n\n")
        if block.header and not (same and before is not None and before.header == block.header):
            pieces.append(block.header + "\n")
        pieces.append(block.text)
        before = block
    return "".join(pieces)

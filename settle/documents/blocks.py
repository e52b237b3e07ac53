"""The blocks that a reader makes of a document, and the passages that a chunker cuts from them, with their places."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """A place in a file."""

    line: int | None = None  # from 1, where the file is text
    page: int | None = None  # from 1, of a page or a slide
    part: str = ""  # a name inside the file: an anchor of a web page, a sheet, a chapter, a cell, a message

    def after(self, path: str) -> str:
        """Return `path` with the place in it, as programs open it: `a.md:12`, `a.pdf#page=3`, `a.html#setup`.

        It is on one line, whatever the name of the file.
        """
        return visible_line(path) + self.suffix

    @property
    def suffix(self) -> str:
        """Return what follows the path: a line, or a fragment.

        Letters, digits and the signs that a fragment may hold (RFC 3986) are as they are in the document.
        """
        if self.line is not None:
            return f":{self.line}"
        if self.page is not None:
            return f"#page={self.page}"
        return f"#{''.join(c if c.isalnum() else quote(c, _FRAGMENT) for c in self.part)}" if self.part else ""


@dataclass(frozen=True)
class Block:
    """One paragraph, heading, listing or table."""

    kind: Kind
    text: str  # without markup that only shows
    place: Place = field(default_factory=Place)
    # of a heading, from 1; of another block, the deepest level of the headings that it belongs to, or None when it
    # belongs to all that came before
    level: int | None = None
    lined: bool = False  # each line feed of the text is one of the file, so a line inside the block has a number
    header: str = ""  # of a table, the line above its rows and above every part of them


@dataclass(frozen=True)
class Chunk:
    """A passage: the unit of search and citation."""

    text: str
    headings: tuple[str, ...]  # those above it, the outermost first
    place: Place
    tokens: int  # of `embedded`, as the embedder counts

    @property
    def embedded(self) -> str:
        """What the embedder reads: the headings say what a passage is about where it does not say so itself."""
        return with_headings(self.headings, self.text)


def with_headings(headings: tuple[str, ...], text: str) -> str:
    """Return a passage below the path of its headings."""
    return f"{' › '.join(headings)}\n{text}" if headings else text


def joined_text(blocks: Iterable[Block]) -> str:
    """Return the text of blocks: a blank line between two of them, none inside a list or a table, a header once."""
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


def row_text(cells: Iterable[str]) -> str:
    """Return cells separated by bars, each on one line, the empty ones at the end left out."""
    shown = [" ".join(cell.split()) for cell in cells]
    while shown and not shown[-1]:
        shown.pop()
    return " | ".join(shown)


def table(rows: Sequence[Sequence[str]], place: Place, level: int | None = None, headed: bool = True) -> Block | None:
    """Return a table as a block, its first row as its header; None for an empty one. One row alone is no header."""
    lines = [text for row in rows if (text := row_text(row))]
    if not lines:
        return None
    header = lines.pop(0) if headed and len(lines) > 1 else ""
    return Block("table", "\n".join(lines), place, level, header=header)


def table_rows(rows: Iterable[tuple[Place, Sequence[str]]]) -> Iterator[Block]:
    """Yield the rows of a sheet, each a block, below rows of one cell and one that names its columns."""
    header: str | None = None
    unsaid: Block | None = None  # a header below which nothing has come yet
    for place, cells in rows:
        text = row_text(cells)
        if not text:
            continue
        if header is not None:
            yield Block("table", text, place, header=header)
            unsaid = None
        elif sum(map(bool, cells)) == 1 and len(cells) > 1:
            yield Block("text", text.strip(" |"), place)
        elif is_header([cell for cell in cells if cell]):
            header, unsaid = text, Block("table", text, place)
        else:
            header = ""
            yield Block("table", text, place)
    if unsaid:
        yield unsaid


def is_header(cells: Sequence[str]) -> bool:
    """Return whether a row names columns: every cell has text, and none is a number."""
    return len(cells) > 0 and all(cell.strip() and not is_number(cell) for cell in cells)


def is_number(cell: str) -> bool:
    """Return whether a cell holds a number and no words; with a decimal comma too, as in 1.234,5."""
    if cell.count(",") == 1:
        cell = cell.replace(".", "").replace(",", ".")
    try:
        float(cell)
    except ValueError:
        return False
    return True

"""What a reader gives and a chunker cuts: blocks of a document, and passages that know where they stand."""

from dataclasses import dataclass, field
from typing import Literal

from settle.base.errors import DataError

Kind = Literal["heading", "text", "list", "code", "table"]


class Unreadable(DataError):
    """A file that no text comes out of: `what` is the reason, shown beside its name."""


@dataclass(frozen=True)
class Place:
    """Where something stands in its file. line: from 1, where the file is text; page: from 1, of a page or a slide;
    part: a name inside the file (an anchor of a web page, a sheet, a chapter, a cell, a message), or "".
    """

    line: int | None = None
    page: int | None = None
    part: str = ""

    def after(self, path: str) -> str:
        """`path` with the place in it, as editors and browsers open it: `a.md:12`, `a.pdf#page=3`, `a.html#setup`."""
        if self.line is not None:
            return f"{path}:{self.line}"
        if self.page is not None:
            return f"{path}#page={self.page}"
        return f"{path}#{self.part}" if self.part else path


@dataclass(frozen=True)
class Block:
    """One paragraph, heading, listing or table. text: without markup that only shows.

    level: of a heading, from 1; of another block, the deepest level of the headings that it stands under, or None when
    it stands under all that came before. lined: whether each line feed of the text is one of the file, so that a line
    inside the block has a number. header: of a table, what stands above its rows and above every part of them.
    """

    kind: Kind
    text: str
    place: Place = field(default_factory=Place)
    level: int | None = None
    lined: bool = False
    header: str = ""


@dataclass(frozen=True)
class Chunk:
    """A passage: what is found, shown and cited. headings: those it stands under, the outermost first. tokens: of
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

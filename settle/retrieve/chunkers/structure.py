"""Passages that follow the document: paragraphs of one section together, listings and tables whole where they fit."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from pydantic import Field

from settle.retrieve.chunkers import Chunker, Count
from settle.retrieve.document import Block, Chunk, with_headings

_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|(?<=[。！？])|\n{2,}")
_HEADINGS_SHARE = 0.25  # of a passage's tokens that its headings may take at most


class Structure(Chunker):
    """Never cuts inside a sentence, a line of a listing or a row of a table unless it is too long by itself."""

    tokens: int = Field(
        200, gt=8, description="a passage is filled up to so many tokens, headings included; never above the embedder's"
    )

    def cut(self, blocks: Iterable[Block], count: Count, most: int) -> Iterator[Chunk]:
        filler = _Filler(count, min(self.tokens, most))
        for block in blocks:
            if block.kind == "heading":
                yield from filler.heading(block)
            else:
                yield from filler.block(block)
        yield from filler.end()


class _Filler:
    """Collects blocks of one section until they fill a passage."""

    def __init__(self, count: Count, most: int) -> None:
        self._count, self._most = count, most
        self._path: list[tuple[int, str]] = []  # (level, heading) of the sections that are open
        self._bare: Block | None = None  # a heading below which nothing has come yet
        self._pieces: list[Block] = []
        self._held = 0
        self._headings: tuple[str, ...] = ()
        self._room = most

    def heading(self, block: Block) -> Iterator[Chunk]:
        yield from self._emit()
        deeper = self._path and self._path[-1][0] < block.level
        if self._bare and not deeper:
            yield from self._alone(self._bare)
        while self._path and self._path[-1][0] >= block.level:
            self._path.pop()
        self._path.append((block.level, " ".join(block.text.split())))
        self._bare = block
        self._fit_headings()

    def block(self, block: Block) -> Iterator[Chunk]:
        if not block.text.strip():
            return
        self._bare = None
        (tokens,) = self._count([block.text])
        if tokens > self._room:
            yield from self._emit()
            for piece, size in _split(block, self._room, self._count):
                if self._held and self._held + size > self._room:
                    yield from self._emit()
                self._pieces.append(piece)
                self._held += size
            yield from self._emit()
            return
        if self._held + tokens > self._room:
            yield from self._emit()
        self._pieces.append(block)
        self._held += tokens

    def end(self) -> Iterator[Chunk]:
        yield from self._emit()
        if self._bare:
            yield from self._alone(self._bare)

    def _alone(self, heading: Block) -> Iterator[Chunk]:
        """A heading with nothing below it still says something."""
        path = self._headings[:-1]
        (tokens,) = self._count([with_headings(path, heading.text)])
        if tokens <= self._most:
            yield Chunk(heading.text, path, heading.place, tokens)

    def _fit_headings(self) -> None:
        """As much of the path, from its end, as leaves room for the passage."""
        headings = [text for _, text in self._path]
        while headings and self._count([" › ".join(headings)])[0] > self._most * _HEADINGS_SHARE:
            headings.pop(0)
        self._headings = tuple(headings)
        self._room = self._most - (self._count([" › ".join(headings)])[0] if headings else 0)

    def _emit(self) -> Iterator[Chunk]:
        pieces, self._pieces, self._held = self._pieces, [], 0
        if not pieces:
            return
        text = _joined(pieces)
        (tokens,) = self._count([with_headings(self._headings, text)])
        if tokens > self._most and len(pieces) > 1:  # what stands between pieces counts as well
            for half in (pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :]):
                self._pieces = half
                yield from self._emit()
            return
        yield Chunk(text, self._headings, pieces[0].place, tokens)


def _joined(pieces: Sequence[Block]) -> str:
    text = pieces[0].text
    for before, after in zip(pieces, pieces[1:], strict=False):
        same = before.kind == after.kind and before.kind in ("list", "table", "code")
        text += ("\n" if same else "\n\n") + after.text
    return text.strip("\n")


def _split(block: Block, most: int, count: Count) -> Iterator[tuple[Block, int]]:
    """Pieces of a block, each of at most `most` tokens: lines of listings, rows of tables below their first, items,
    sentences; words of what is longer still."""
    first, found = "", _parts(block)
    if block.kind == "table" and len(found) > 2:
        first = found[0][1] + "\n"
        (header,) = count([first])
        if header < most // 2:
            found, most = found[1:], most - header
        else:
            first = ""
    for start, text in _filled(found, most, count, "\n" if block.kind in ("code", "table", "list") else " "):
        place = block.place
        if block.lined and place.line is not None:
            place = replace(place, line=place.line + block.text.count("\n", 0, start))
        piece = first + text
        yield replace(block, text=piece, place=place), count([piece])[0]


def _parts(block: Block) -> list[tuple[int, str]]:
    """(offset, text) of what a block is not cut inside of."""
    if block.kind in ("code", "table", "list"):
        ends = [m.end() for m in re.finditer("\n", block.text)]
    else:
        ends = [m.end() for m in _SENTENCE.finditer(block.text)]
    cuts = [0, *ends, len(block.text)]
    return [(a, block.text[a:b].rstrip()) for a, b in zip(cuts, cuts[1:], strict=False) if block.text[a:b].strip()]


def _filled(parts: list[tuple[int, str]], most: int, count: Count, between: str) -> Iterator[tuple[int, str]]:
    """Neighbouring parts put together as long as they fit."""
    held: list[str] = []
    start, size = 0, 0
    for (offset, text), tokens in zip(parts, count([text for _, text in parts]), strict=True):
        if held and size + tokens > most:
            yield start, between.join(held)
            held, size = [], 0
        if tokens > most:
            yield from ((offset + at, piece) for at, piece in _halves(text, most, lambda t: count([t])[0]))
            continue
        if not held:
            start = offset
        held.append(text)
        size += tokens
    if held:
        yield start, between.join(held)


def _halves(text: str, most: int, count: Callable[[str], int], at: int = 0) -> Iterator[tuple[int, str]]:
    """(offset, text): a text cut in half, at a space where there is one, until each part fits."""
    if count(text) <= most or len(text) < 2:
        yield at, text
        return
    middle = len(text) // 2
    space = text.rfind(" ", middle // 2, middle + 1)
    cut = space + 1 if space > 0 else middle
    yield from _halves(text[:cut].rstrip() or text[:cut], most, count, at)
    yield from _halves(text[cut:], most, count, at + cut)

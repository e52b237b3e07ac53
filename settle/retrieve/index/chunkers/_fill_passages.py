"""The blocks of a document cut into pieces, and passages filled with them, section by section."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from settle.documents.blocks import Block, Chunk, Kind, Place, with_headings
from settle.retrieve.index.chunkers import Count

_PARAGRAPH = re.compile(r"\n(?:[ \t]*\n)+")
LINE = re.compile(r"\n")
_ITEM = re.compile(r"\n(?=\S)")
SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])")
_CELL = re.compile(r" \| ")
WORD = re.compile(r"\s+")
_BLANK_LINES = re.compile(r"(?:[ \t]*\n)+")
# where a block is cut, in order of preference
BORDERS: dict[Kind, tuple[re.Pattern[str], ...]] = {
    "text": (_PARAGRAPH, SENTENCE, LINE, WORD),
    "heading": (WORD,),
    "list": (_ITEM, LINE, SENTENCE, WORD),
    "code": (_PARAGRAPH, LINE, WORD),
    "table": (LINE, _CELL, WORD),
}
# An embedder may count a long run of characters, such as a key in base64, as one unknown word.
_TOKEN_CHARACTERS = 20  # so many count as one token at least
Span = tuple[int, int, int]  # start, end, tokens
HEADINGS = 0.25  # of a passage's tokens that its headings may take at most
TINY = 0.25  # of a passage's tokens: a smaller rest at a section's end joins the passage before
_BATCH_CHARACTERS = 1 << 18  # that are counted together


@dataclass(frozen=True, slots=True)
class BlockPiece:
    """Part of a block."""

    text: str
    place: Place
    kind: Kind
    tokens: int  # of its text alone
    lined: bool = False  # as of the block
    header: str = ""
    glue: str | None = None  # the text between it and the piece before it, or None for the first one of a block


# The pieces of a block, given its tokens, the tokens that a passage should have at most, and those that it may have.
ToPieces = Callable[[Block, int, int, int], Iterable[BlockPiece]]
# The pieces of a passage with which the next one begins again.
Carry = Callable[[Sequence[BlockPiece]], Sequence[BlockPiece]]


def weights(texts: Sequence[str], count: Count) -> list[int]:
    """Return the tokens of each text, and more than that where its words are very long."""
    return [max(n, len(text) // _TOKEN_CHARACTERS) for n, text in zip(count(texts), texts, strict=True)]


def whole(block: Block, tokens: int) -> BlockPiece:
    """Return a block as one piece."""
    text = block.text
    if text[0] in " \t\n" or text[-1].isspace():
        return next(_placed(block, [(0, len(text), tokens)]))
    return BlockPiece(text, block.place, block.kind, tokens, block.lined, block.header)


def cut(block: Block, most: int, count: Count) -> Iterator[BlockPiece]:
    """Cut a block into pieces of at most `most` tokens, counted one by one: as few as its borders allow."""
    return _placed(block, _spans(block.text, 0, len(block.text), BORDERS[block.kind], most, count))


def cut_at(block: Block, border: re.Pattern[str], most: int, count: Count, every: int = 1) -> Iterator[BlockPiece]:
    """Cut a block at every n-th such border, and inside a piece that still has more than `most` tokens."""
    parts = _between(block.text, 0, len(block.text), border, every)
    spans: list[Span] = []
    for (start, end), tokens in zip(parts, weights([block.text[a:b] for a, b in parts], count), strict=True):
        if tokens > most:
            spans += _spans(block.text, start, end, BORDERS[block.kind], most, count)
        else:
            spans.append((start, end, tokens))
    return _placed(block, spans)


def _placed(block: Block, spans: Iterable[Span]) -> Iterator[BlockPiece]:
    """Yield parts of a block as pieces: without the blank lines around them, each at the line where it begins."""
    text, lines, counted, before = block.text, 0, 0, -1
    for start, end, tokens in spans:
        if text[start] in " \t\n" and (blank := _BLANK_LINES.match(text, start, end)):
            start = blank.end()
        shown = text[start:end].rstrip()
        if not shown:
            continue
        place = block.place
        if block.lined and place.line is not None:
            lines, counted = lines + text.count("\n", counted, start), start
            place = replace(place, line=place.line + lines)
        glue = text[before:start] if before >= 0 else None
        yield BlockPiece(shown, place, block.kind, tokens, block.lined, block.header, glue)
        before = start + len(shown)


def _spans(
    text: str, start: int, end: int, borders: Sequence[re.Pattern[str]], most: int, count: Count
) -> Iterator[Span]:
    """Yield neighbouring parts, joined as long as they fit; one that does not fit is cut at the next kind of border."""
    if not borders:
        yield from _halves(text, start, end, most, count)
        return
    parts = _between(text, start, end, borders[0])
    if len(parts) == 1:
        yield from _spans(text, start, end, borders[1:], most, count)
        return
    first, last, size = -1, -1, 0
    for (a, b), tokens in zip(parts, weights([text[a:b] for a, b in parts], count), strict=True):
        if first >= 0 and size + tokens > most:
            yield first, last, size
            first = -1
        if tokens > most:
            yield from _spans(text, a, b, borders[1:], most, count)
            continue
        if first < 0:
            first, size = a, 0
        last, size = b, size + tokens
    if first >= 0:
        yield first, last, size


def _between(text: str, start: int, end: int, border: re.Pattern[str], every: int = 1) -> list[tuple[int, int]]:
    """Cut a text after each n-th border, without blank parts."""
    ends = [match.end() for match in border.finditer(text, start, end)]
    cuts = [start, *ends[every - 1 :: every], end]
    parts = [(a, b) for a, b in pairwise(cuts) if b > a and not text[a:b].isspace()]
    return parts or [(start, end)]


def _halves(text: str, start: int, end: int, most: int, count: Count) -> Iterator[Span]:
    """Halve one very long word until each part fits."""
    (tokens,) = weights([text[start:end]], count)
    if tokens <= most or end - start < 2:
        yield start, end, tokens
        return
    middle = (start + end) // 2
    yield from _halves(text, start, middle, most, count)
    yield from _halves(text, middle, end, most, count)


@dataclass
class _Section:
    """An open section."""

    level: int
    heading: str
    tokens: int
    place: Place
    shown: bool = False  # whether a passage has its heading already


@dataclass(frozen=True)
class _Group:
    """A passage in the making."""

    headings: tuple[str, ...]
    pieces: Sequence[BlockPiece]
    size: int = 0  # tokens of its pieces, counted one by one


class Filler:
    """Passages of about `wanted` tokens and never more than `most`, headings included."""

    def __init__(self, count: Count, wanted: int, most: int, to_pieces: ToPieces, carry: Carry | None = None) -> None:
        self._count, self._wanted, self._most = count, min(wanted, most), most
        self._to_pieces, self._carry = to_pieces, carry
        (self._arrow,) = count([" › "])
        self._headers: dict[str, int] = {}  # tokens of each header of a table
        self._long_headers: set[str] = set()  # too long to be repeated, and emitted once
        self._path: list[_Section] = []
        self._above: tuple[str, ...] = ()  # headings of the path that fit
        self._above_size = 0
        self._pieces: list[BlockPiece] = []
        self._size = self._fresh = 0  # tokens of the pieces; pieces that no passage has yet
        self._before: _Group | None = None  # of the same section, held back until it is known what follows
        self._ready: list[_Group] = []

    def passages(self, blocks: Iterable[Block]) -> Iterator[Chunk]:
        """Yield the passages of a document in order."""
        for some in _together(blocks):
            for block, tokens in zip(some, weights([block.text for block in some], self._count), strict=True):
                if block.kind == "heading":
                    self._heading(block, tokens)
                else:
                    self._block(block, tokens)
            yield from self._measured(self._take_ready())
        self._leave(0)
        yield from self._measured(self._take_ready())

    def _heading(self, block: Block, tokens: int) -> None:
        level, text = block.level or 1, " ".join(block.text.split())
        self._leave(level - 1)
        limit = int(self._wanted * HEADINGS)
        if tokens + self._arrow <= limit:
            self._path.append(_Section(level, text, tokens, block.place))
            self._fit()
            return
        # too long to be above each passage: its beginning is, and all of it appears once
        start = text[: len(text) * limit // (2 * tokens)].rpartition(" ")[0]
        if start:
            self._path.append(_Section(level, start + " …", limit // 2, block.place, shown=True))
            self._fit()
        self._block(replace(block, kind="text", level=None), tokens)

    def _block(self, block: Block, tokens: int) -> None:
        if block.level is not None and self._path and self._path[-1].level > block.level:
            self._leave(block.level)
        wanted, most = self._wanted - self._above_size, self._most - self._above_size
        header = self._header_size(block.header)
        if header > wanted // 2:
            if block.header not in self._long_headers:
                self._long_headers.add(block.header)
                self._block(Block("table", block.header, block.place), header)
            block, header = replace(block, header=""), 0
        for piece in self._to_pieces(block, tokens, wanted - header, most - header):
            self._add(piece, wanted)

    def _header_size(self, header: str) -> int:
        if header and header not in self._headers:
            (self._headers[header],) = weights([header], self._count)
        return self._headers[header] if header else 0

    def _add(self, piece: BlockPiece, wanted: int) -> None:
        """Add a piece to the current passage, or begin a new one with it: no passage crosses the end of a page."""
        if self._fresh and piece.place.page != self._pieces[-1].place.page:
            self._finish()
            self._pieces, self._size, self._fresh = [], 0, 0
        size = piece.tokens + self._new_header(piece)
        if self._fresh and _begins_next(piece, size, self._pieces, self._size, wanted, self._most - self._above_size):
            self._finish()
            carried = list(self._carry(self._pieces)) if self._carry else []
            while carried and sum(p.tokens for p in carried) + size > wanted:
                carried.pop(0)
            self._pieces, self._size, self._fresh = carried, sum(p.tokens for p in carried), 0
            size = piece.tokens + self._new_header(piece)
        self._pieces.append(piece)
        self._size += size
        self._fresh += 1

    def _new_header(self, piece: BlockPiece) -> int:
        """Return the tokens of the header that a piece needs above it, unless it continues a table."""
        continues = self._pieces and self._pieces[-1].header == piece.header
        return 0 if continues else self._header_size(piece.header)

    def _finish(self) -> None:
        """Make the collected pieces a passage, after the one that was held back."""
        for section in self._path[: len(self._path) - len(self._above)]:
            if not section.shown:
                self._alone(section)
        for section in self._path:
            section.shown = True
        if self._before:
            self._ready.append(self._before)
        self._before = _Group(self._above, tuple(self._pieces), self._size)

    def _leave(self, level: int) -> None:
        """End the sections below `level`, and the passage in the last of them."""
        before = self._before
        if self._fresh and before and not self._carry and self._size <= self._wanted * TINY:
            size = before.size + self._size
            same_page = before.pieces[-1].place.page == self._pieces[0].place.page
            if same_page and size + self._above_size <= self._most:
                self._before, self._fresh = _Group(before.headings, (*before.pieces, *self._pieces), size), 0
        if self._fresh:
            self._finish()
        if self._before:
            self._ready.append(self._before)
        self._before, self._pieces, self._size, self._fresh = None, [], 0, 0
        while self._path and self._path[-1].level > level:
            section = self._path.pop()
            if not section.shown:
                self._alone(section)
        self._fit()

    def _alone(self, section: _Section) -> None:
        """Make a heading that no passage has above it a passage of its own."""
        section.shown = True
        above = [s for s in self._path if s.level < section.level]
        headings = self._fitting(above)
        for shown in above[len(above) - len(headings) :]:
            shown.shown = True
        piece = BlockPiece(section.heading, section.place, "text", section.tokens)
        self._ready.append(_Group(headings, [piece], section.tokens))

    def _fit(self) -> None:
        self._above = self._fitting(self._path)
        shown = self._path[len(self._path) - len(self._above) :]
        self._above_size = sum(section.tokens + self._arrow for section in shown)

    def _fitting(self, path: Sequence[_Section]) -> tuple[str, ...]:
        """Return the innermost headings of a path that leave enough room for the text below them."""
        size, headings = 0, []
        for section in reversed(path):
            size += section.tokens + self._arrow
            if size > self._wanted * HEADINGS:
                break
            headings.append(section.heading)
        return tuple(reversed(headings))

    def _take_ready(self) -> list[_Group]:
        ready, self._ready = self._ready, []
        return ready

    def _measured(self, groups: Sequence[_Group]) -> Iterator[Chunk]:
        """Yield passages as the embedder counts them whole; one that is still too large is split."""
        texts = [_joined(group.pieces) for group in groups]
        counts = self._count([with_headings(g.headings, text) for g, text in zip(groups, texts, strict=True)])
        for group, text, tokens in zip(groups, texts, counts, strict=True):
            smaller = self._smaller(group, tokens) if tokens > self._most else None
            if smaller:
                yield from self._measured(smaller)
            else:
                yield Chunk(text, group.headings, group.pieces[0].place, tokens)

    def _smaller(self, group: _Group, tokens: int) -> list[_Group]:
        """Return a passage in two or more, or without its headings; nothing for a single character."""
        pieces = group.pieces
        if len(pieces) == 1:
            block = Block(pieces[0].kind, pieces[0].text, pieces[0].place, None, pieces[0].lined, pieces[0].header)
            pieces = list(cut(block, pieces[0].tokens * self._most // (tokens + 1) * 3 // 4, self._count))
        if len(pieces) > 1:
            middle = len(pieces) // 2
            return [_Group(group.headings, pieces[:middle]), _Group(group.headings, pieces[middle:])]
        if pieces[0].header:
            return [_Group(group.headings, [replace(pieces[0], header="")])]
        return [_Group(group.headings[1:], pieces)] if group.headings else []


def _begins_next(
    piece: BlockPiece, size: int, before: Sequence[BlockPiece], size_before: int, wanted: int, most: int
) -> bool:
    """Return whether a piece of `size` tokens begins the next passage.

    It does where it does not fit to those before, or is a row by itself, which names what the text below it is about.
    Such a row and that text stay together where they fit at all.
    """
    last = before[-1]
    if _is_row(piece) and last.kind != "table":
        return size_before > wanted * TINY
    is_below = len(before) == 1 and _is_row(last) and piece.kind != "table"
    return size_before + size > (most if is_below else wanted)


def _is_row(piece: BlockPiece) -> bool:
    return piece.kind == "table" and not piece.header and "\n" not in piece.text


def _together(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Yield blocks in batches that are counted together, without blank ones."""
    some: list[Block] = []
    size = 0
    for block in blocks:
        if block.text and not block.text.isspace():
            some.append(block)
            size += len(block.text)
        if size > _BATCH_CHARACTERS:
            yield some
            some, size = [], 0
    yield some


def _joined(pieces: Sequence[BlockPiece]) -> str:
    text = ""
    before: BlockPiece | None = None
    for piece in pieces:
        if before:
            same = piece.kind == before.kind and piece.kind in ("list", "table")
            text += piece.glue if piece.glue is not None else "\n" if same else "\n\n"
        if piece.header and (before is None or before.header != piece.header):
            text += piece.header + "\n"
        text += piece.text
        before = piece
    return text

"""Blocks cut into pieces that fit into a passage, each with its own place."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from settle.documents.blocks import Block, Kind, Place
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a block. tokens: of its text alone. lined, header: as of the block. glue: the text between it and the
    piece before it in the same block, or None for the first one of a block.
    """

    text: str
    place: Place
    kind: Kind
    tokens: int
    lined: bool = False
    header: str = ""
    glue: str | None = None


def weights(texts: Sequence[str], count: Count) -> list[int]:
    """Tokens of each text, and more than that where its words are very long."""
    return [max(n, len(text) // _TOKEN_CHARACTERS) for n, text in zip(count(texts), texts, strict=True)]


def whole(block: Block, tokens: int) -> Piece:
    """A block as one piece."""
    text = block.text
    if text[0] in " \t\n" or text[-1].isspace():
        return next(_placed(block, [(0, len(text), tokens)]))
    return Piece(text, block.place, block.kind, tokens, block.lined, block.header)


def cut(block: Block, most: int, count: Count) -> Iterator[Piece]:
    """A block in pieces of at most `most` tokens, counted one by one: as few as its borders allow."""
    return _placed(block, _spans(block.text, 0, len(block.text), BORDERS[block.kind], most, count))


def cut_at(block: Block, border: re.Pattern[str], most: int, count: Count, every: int = 1) -> Iterator[Piece]:
    """A block at every n-th such border, and where a piece has more than `most` tokens all the same, inside of it."""
    parts = _between(block.text, 0, len(block.text), border, every)
    spans: list[Span] = []
    for (start, end), tokens in zip(parts, weights([block.text[a:b] for a, b in parts], count), strict=True):
        if tokens > most:
            spans += _spans(block.text, start, end, BORDERS[block.kind], most, count)
        else:
            spans.append((start, end, tokens))
    return _placed(block, spans)


def _placed(block: Block, spans: Iterable[Span]) -> Iterator[Piece]:
    """Parts of a block as pieces: without the blank lines around them, each at the line where it begins."""
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
        yield Piece(shown, place, block.kind, tokens, block.lined, block.header, glue)
        before = start + len(shown)


def _spans(
    text: str, start: int, end: int, borders: Sequence[re.Pattern[str]], most: int, count: Count
) -> Iterator[Span]:
    """Neighbouring parts, joined as long as they fit; a part that does not fit is cut at the next kind of border."""
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
    """A text cut after each n-th border, without blank parts."""
    ends = [match.end() for match in border.finditer(text, start, end)]
    cuts = [start, *ends[every - 1 :: every], end]
    parts = [(a, b) for a, b in pairwise(cuts) if b > a and not text[a:b].isspace()]
    return parts or [(start, end)]


def _halves(text: str, start: int, end: int, most: int, count: Count) -> Iterator[Span]:
    """One very long word, halved until each part fits."""
    (tokens,) = weights([text[start:end]], count)
    if tokens <= most or end - start < 2:
        yield start, end, tokens
        return
    middle = (start + end) // 2
    yield from _halves(text, start, middle, most, count)
    yield from _halves(text, middle, end, most, count)

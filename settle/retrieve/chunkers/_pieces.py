"""Blocks in pieces that a passage can hold, each at its own place."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from settle.retrieve.chunkers import Count
from settle.retrieve.document import Block, Kind, Place

_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_LINE = re.compile(r"\n")
_ITEM = re.compile(r"\n(?=\S)")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])")
_CELL = re.compile(r" \| ")
_WORD = re.compile(r"\s+")
_BLANK_LINES = re.compile(r"(?:[ \t]*\n)+")
# where a block is cut, the best places first
BORDERS: dict[Kind, tuple[re.Pattern[str], ...]] = {
    "text": (_PARAGRAPH, _SENTENCE, _LINE, _WORD),
    "heading": (_WORD,),
    "list": (_ITEM, _LINE, _SENTENCE, _WORD),
    "code": (_PARAGRAPH, _LINE, _WORD),
    "table": (_LINE, _CELL, _WORD),
}
SENTENCES = (_PARAGRAPH, _SENTENCE)
# An embedder may count a long run of characters, such as a key in base64, as one word that it does not know.
_CHARACTERS = 20  # that count as a token at least


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a block. tokens: of its text alone. glue: what stands between it and the piece before it in the same
    block, or None for the first one of a block.
    """

    text: str
    place: Place
    kind: Kind
    tokens: int
    header: str = ""
    glue: str | None = None


def weights(texts: Sequence[str], count: Count) -> list[int]:
    """Tokens of each text, and more than that where its words are endless."""
    return [max(n, len(text) // _CHARACTERS) for n, text in zip(count(texts), texts, strict=True)]


def whole(block: Block, tokens: int) -> Piece:
    """A block as one piece."""
    if block.text[:1].isspace() and (blank := _BLANK_LINES.match(block.text)):
        return _piece(block, blank.end(), len(block.text), tokens, None, _line(block, blank.end()))
    return Piece(block.text.rstrip(), block.place, block.kind, tokens, block.header)


def cut(block: Block, most: int, count: Count, borders: Sequence[re.Pattern[str]] = ()) -> Iterator[Piece]:
    """A block in pieces of at most `most` tokens, as counted one by one, and as few as its borders allow."""
    yield from _placed(block, _spans(block.text, 0, len(block.text), borders or BORDERS[block.kind], most, count))


def cut_fine(block: Block, most: int, count: Count, border: re.Pattern[str]) -> Iterator[Piece]:
    """A block at every border, however small that makes the pieces; still none of them above `most` tokens."""
    spans = _between(block.text, 0, len(block.text), border)
    for (start, end), tokens in zip(spans, weights([block.text[a:b] for a, b in spans], count), strict=True):
        ...


def _spans(
    text: str, start: int, end: int, borders: Sequence[re.Pattern[str]], most: int, count: Count
) -> Iterator[tuple[int, int, int]]:
    """(start, end, tokens) of neighbouring parts put together as long as they fit."""
    if not borders:
        yield from _halves(text, start, end, most, count)
        return
    parts = _between(text, start, end, borders[0])
    if len(parts) == 1:
        yield from _spans(text, start, end, borders[1:], most, count)
        return
    first, size = start, 0

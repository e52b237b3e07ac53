"""Paragraphs and headings of printed pages, told by where their lines stand and how large they are."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from settle.documents.blocks import Block, Place

_EDGE = 2  # lines at the top and at the bottom of a page that may be a running title or its number
_FULL = 10  # lines of a page that has more than its edges
_LEVELS = ((1.8, 1), (1.4, 2), (1.15, 3))  # of a line that is so many times as high as the text
_LONGEST_HEADING = 120  # characters
_NUMBER = 12  # letters and digits of `Chapter 3` and the like
_GAP = 1.25  # times the usual distance between two lines: what lies further apart is another paragraph
_PITCH = (1.2, 2.5)  # that distance, in heights of a line: where nothing tells it, and at most
_SAME_SIZE = 0.1
_HYPHENS = ("\x02", "\ufffe", "\xad")  # PDFium's marks of a word that goes on in the next line
_ITEM = re.compile(r"[•●○▪■◦‣–*·-]\s|\(?\d{1,2}[.)]\s")


@dataclass(frozen=True)
class Line:
    """A printed line. top: of its letters, above the foot of the page; height: of one of them, both in points."""

    text: str
    top: float
    height: float


class Print:
    """How a document is printed, told by its first pages and its outline: of each page, title → level."""

    def __init__(self, first: Sequence[Sequence[Line]], outline: Mapping[int, Mapping[str, int]]) -> None:
        self._outline = {
            page: {_letters(title): level for title, level in titles.items()} for page, titles in outline.items()
        }
        sizes = Counter[float]()
        for lines in first:
            for line in lines:
                sizes[round(line.height, 1)] += len(line.text)
        self._text = sizes.most_common(1)[0][0] if sizes else 0.0
        self._pitch = _pitch(first)
        full = [lines for lines in first if len(lines) >= _FULL]
        edges = Counter(shape for lines in full for shape in {_shape(line) for line in _edges(lines)})
        self.repeated = {shape for shape, pages in edges.items() if pages > max(2, len(full) // 2)}

    def blocks(self, page: int, lines: Sequence[Line]) -> Iterator[Block]:
        """The blocks of a page, each of which has its number."""
        edges = _edges(lines)
        body = [line for line in lines if line not in edges or _shape(line) not in self.repeated]
        paragraph: list[Line] = []
        for line in body:
            if paragraph and (
                not self._goes_on(paragraph[-1], line) or self._is_title(page, line.text, paragraph[-1].text)
            ):
                yield self._block(page, paragraph)
                paragraph = []
            paragraph.append(line)
        if paragraph:
            yield self._block(page, paragraph)

    def _goes_on(self, before: Line, line: Line) -> bool:
        """Whether a line belongs to the paragraph of the one before it."""
        gap = before.top - line.top
        near = 0 <= gap <= _GAP * self._pitch * max(before.height, line.height)
        return near and _same_size(before, line) and not _ITEM.match(line.text)

    def _is_title(self, page: int, *texts: str) -> bool:
        """Whether one of the texts is a heading that the outline has on this page."""
        return page in self._outline and any(self._level(page, text, 0.0) for text in texts)

    def _block(self, page: int, lines: Sequence[Line]) -> Block:
        text = _joined(lines)
        level = self._level(page, text, lines[0].height)
        if level:
            return Block("heading", " ".join(text.split()).rstrip("¶ "), Place(page=page), level)
        return Block("list" if _ITEM.match(text) else "text", text, Place(page=page))

    def _level(self, page: int, text: str, height: float) -> int | None:
        letters = _letters(text)
        if not letters or len(text) > _LONGEST_HEADING:
            return None
        if self._outline:
            titles = self._outline.get(page, {})
            return next((level for title, level in titles.items() if title and _is_numbered(letters, title)), None)
        return next((level for times, level in _LEVELS if height >= times * self._text), None)


def _edges(lines: Sequence[Line]) -> list[Line]:
    order = sorted(lines, key=lambda line: line.top)
    return order[:_EDGE] + order[max(_EDGE, len(order) - _EDGE) :]


def _shape(line: Line) -> str:
    return re.sub(r"\d+", "0", line.text)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _is_numbered(letters: str, title: str) -> bool:
    """Whether it is the title, or that behind a number, which the outline often leaves out."""
    number = letters.removesuffix(title)
    return letters == title or (len(number) < len(letters) and len(number) <= _NUMBER and number[-1:].isdigit())


def _pitch(pages: Sequence[Sequence[Line]]) -> float:
    """The usual distance between two lines of a size, in heights of a line."""
    pitches = Counter(
        round((before.top - line.top) / line.height, 1)
        for lines in pages
        for before, line in pairwise(lines)
        if before.top > line.top and line.height > 0 and _same_size(before, line)
    )
    most = max(pitches.values(), default=0)
    return min(_PITCH[1], min((pitch for pitch, times in pitches.items() if times == most), default=_PITCH[0]))


def _same_size(a: Line, b: Line) -> bool:
    return abs(a.height - b.height) <= _SAME_SIZE * a.height


def _joined(lines: Sequence[Line]) -> str:
    text = lines[0].text
    for line in lines[1:]:
        text = text[:-1] + line.text if text.endswith(_HYPHENS) else f"{text}\n{line.text}"
    return text

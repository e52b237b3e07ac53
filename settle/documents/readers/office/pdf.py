"""PDF: the text layer of each page, by PDFium. Headings come from the outline, or from the size of lines."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable
from settle.documents.readers import Reader

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

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
_SAMPLED_PAGES = 40  # pages that tell the size of the text and what repeats on every page
_ENCRYPTED = 4  # PDFium's FPDF_ERR_PASSWORD
_PICTURE = "a picture: no text"
_UNTOLD = re.compile("[\ufffd\ue000-\uf8ff\x00-\x08]")  # what a letter is whose font does not say so


@dataclass(frozen=True)
class PrintedLine:
    """A printed line."""

    text: str
    top: float  # of its letters, above the foot of the page, in points
    height: float  # of one of them, in points


class Print:
    """How a document is printed, told by its first pages and its outline: of each page, title → level."""

    def __init__(self, first: Sequence[Sequence[PrintedLine]], outline: Mapping[int, Mapping[str, int]]) -> None:
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

    def blocks(self, page: int, lines: Sequence[PrintedLine]) -> Iterator[Block]:
        """Yield the blocks of a page, each of which has its number."""
        edges = _edges(lines)
        body = [line for line in lines if line not in edges or _shape(line) not in self.repeated]
        paragraph: list[PrintedLine] = []
        for line in body:
            if paragraph and (
                not self._goes_on(paragraph[-1], line) or self._is_title(page, line.text, paragraph[-1].text)
            ):
                yield self._block(page, paragraph)
                paragraph = []
            paragraph.append(line)
        if paragraph:
            yield self._block(page, paragraph)

    def _goes_on(self, before: PrintedLine, line: PrintedLine) -> bool:
        gap = before.top - line.top
        near = 0 <= gap <= _GAP * self._pitch * max(before.height, line.height)
        return near and _same_size(before, line) and not _ITEM.match(line.text)

    def _is_title(self, page: int, *texts: str) -> bool:
        """Return whether one of the texts is a heading that the outline has on this page."""
        return page in self._outline and any(self._level(page, text, 0.0) for text in texts)

    def _block(self, page: int, lines: Sequence[PrintedLine]) -> Block:
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


def _edges(lines: Sequence[PrintedLine]) -> list[PrintedLine]:
    order = sorted(lines, key=lambda line: line.top)
    return order[:_EDGE] + order[max(_EDGE, len(order) - _EDGE) :]


def _shape(line: PrintedLine) -> str:
    return re.sub(r"\d+", "0", line.text)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _is_numbered(letters: str, title: str) -> bool:
    """Return whether it is the title, or the title after a number, which the outline often leaves out."""
    number = letters.removesuffix(title)
    return letters == title or (len(number) < len(letters) and len(number) <= _NUMBER and number[-1:].isdigit())


def _pitch(pages: Sequence[Sequence[PrintedLine]]) -> float:
    """Return the usual distance between two lines of a size, in heights of a line."""
    pitches = Counter(
        round((before.top - line.top) / line.height, 1)
        for lines in pages
        for before, line in pairwise(lines)
        if before.top > line.top and line.height > 0 and _same_size(before, line)
    )
    most = max(pitches.values(), default=0)
    return min(_PITCH[1], min((pitch for pitch, times in pitches.items() if times == most), default=_PITCH[0]))


def _same_size(a: PrintedLine, b: PrintedLine) -> bool:
    return abs(a.height - b.height) <= _SAME_SIZE * a.height


def _joined(lines: Sequence[PrintedLine]) -> str:
    text = lines[0].text
    for line in lines[1:]:
        text = text[:-1] + line.text if text.endswith(_HYPHENS) else f"{text}\n{line.text}"
    return text


class Pdf(Reader):
    """A place is a page. Headings are those of the outline, or lines set larger where there is none."""

    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    packages: ClassVar[tuple[str, ...]] = ("pypdfium2",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        from pypdfium2 import PdfDocument, PdfiumError

        with path.open("rb") as file:
            if b"%PDF-" not in file.read(1024):
                raise Unreadable("no PDF, whatever its name says")
        try:
            document = PdfDocument(path)
        except PdfiumError as e:
            is_locked = e.err_code == _ENCRYPTED
            raise Unreadable("encrypted: it needs a password" if is_locked else "a damaged PDF") from None
        try:
            yield from _blocks(document, note)
        finally:
            document.close()


def _blocks(document: "PdfDocument", note: Note) -> Iterator[Block]:
    count = len(document)
    first = [_lines(document, page) for page in range(1, min(count, _SAMPLED_PAGES) + 1)]
    printed = Print([lines for lines in first if lines], _outline(document))
    left_out: dict[str, list[int]] = {}
    for page in range(1, count + 1):
        lines = first[page - 1] if page <= len(first) else _lines(document, page)
        why = "damaged" if lines is None else _silence(document, page, lines)
        if why:
            left_out.setdefault(why, []).append(page)
        elif lines:
            yield from printed.blocks(page, lines)
    if len(left_out.get(_PICTURE, ())) == count:
        raise Unreadable("a scan: its pages are pictures without text")
    if printed.repeated:
        note("left out: lines that repeat at the edges of its pages")
    for why, pages in left_out.items():
        note(f"{_ranges(pages)} {'is' if len(pages) == 1 else 'are'} {why}")


def _silence(document: "PdfDocument", page: int, lines: list[PrintedLine]) -> str:
    text = "".join(line.text for line in lines)
    if len(_UNTOLD.findall(text)) > len(text) / 3:
        return "set in a font that does not tell its letters: no text"
    return _PICTURE if not text and _has_picture(document, page) else ""


def _lines(document: "PdfDocument", page: int) -> list[PrintedLine] | None:
    """Return the lines of a page in the order of its content, or None for one that is damaged."""
    from pypdfium2 import PdfiumError

    try:
        opened = document[page - 1]
        layer = opened.get_textpage()
    except PdfiumError:
        return None
    lines: list[PrintedLine] = []
    at = 0
    for text in layer.get_text_range().split("\r\n"):
        if text.strip():
            # a word in another font does not say how large a line is, so three of its letters are measured
            letters = [i for i, c in enumerate(text) if c.isalnum()] or [len(text) - len(text.lstrip())]
            sample = [at + letters[len(letters) * i // 4] for i in (1, 2, 3)]
            boxes = [layer.get_charbox(min(i, layer.count_chars() - 1), loose=True) for i in sample]
            height, top = median_low((top - bottom, top) for _, bottom, _, top in boxes)
            lines.append(PrintedLine(text.strip(), top, height))
        at += len(text.encode("utf-16-le")) // 2 + 2
    layer.close()
    opened.close()
    return lines


def _has_picture(document: "PdfDocument", page: int) -> bool:
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    opened = document[page - 1]
    has_picture = any(True for _ in opened.get_objects(filter=[FPDF_PAGEOBJ_IMAGE], max_depth=3))
    opened.close()
    return has_picture


def _outline(document: "PdfDocument") -> dict[int, dict[str, int]]:
    """Return the headings of the document's outline by page, each with its level from 1."""
    outline: dict[int, dict[str, int]] = {}
    for entry in document.get_toc(max_depth=6):
        target = entry.get_dest()
        if target is not None and (index := target.get_index()) is not None:
            outline.setdefault(index + 1, {})[entry.get_title()] = entry.level + 1
    return outline


def _ranges(pages: list[int]) -> str:
    """Return pages in words: `page 3`, `pages 3–5, 9`."""
    spans: list[list[int]] = []
    for page in pages:
        if spans and page == spans[-1][1] + 1:
            spans[-1][1] = page
        else:
            spans.append([page, page])
    shown = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
    return f"page {shown}" if len(pages) == 1 else f"pages {shown}"

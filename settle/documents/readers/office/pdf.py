"""PDF: the text layer of each page, by PDFium."""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, ClassVar

from settle.documents.blocks import Block, Note, Unreadable
from settle.documents.readers import Reader
from settle.documents.readers.office._print import Line, Print

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_SAMPLED_PAGES = 40  # pages that tell the size of the text and what repeats on every page
_ENCRYPTED = 4  # PDFium's FPDF_ERR_PASSWORD
_PICTURE = "a picture: no text"
_UNTOLD = re.compile("[\ufffd\ue000-\uf8ff\x00-\x08]")  # what a letter is whose font does not say so


class Pdf(Reader):
    """A place is a page. Headings are those of the outline, or lines set larger where there is none."""

    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    packages: ClassVar[tuple[str, ...]] = ("pypdfium2",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        document = _opened(path)
        try:
            yield from _blocks(document, note)
        finally:
            document.close()


def _opened(path: Path) -> "PdfDocument":
    from pypdfium2 import PdfDocument, PdfiumError

    with path.open("rb") as file:
        if b"%PDF-" not in file.read(1024):
            raise Unreadable("no PDF, whatever its name says")
    try:
        return PdfDocument(path)
    except PdfiumError as e:
        raise Unreadable("encrypted: it needs a password" if e.err_code == _ENCRYPTED else "a damaged PDF") from None


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


def _silence(document: "PdfDocument", page: int, lines: list[Line]) -> str:
    """Why a page gives no text, or ""."""
    text = "".join(line.text for line in lines)
    if len(_UNTOLD.findall(text)) > len(text) / 3:
        return "set in a font that does not tell its letters: no text"
    return _PICTURE if not text and _has_picture(document, page) else ""


def _lines(document: "PdfDocument", page: int) -> list[Line] | None:
    """The lines of a page in the order of its content, or None for one that is damaged."""
    from pypdfium2 import PdfiumError

    try:
        opened = document[page - 1]
        layer = opened.get_textpage()
    except PdfiumError:
        return None
    lines: list[Line] = []
    at = 0
    for text in layer.get_text_range().split("\r\n"):
        if text.strip():
            # a word in another font does not say how large a line is, so three of its letters are measured
            letters = [i for i, c in enumerate(text) if c.isalnum()] or [len(text) - len(text.lstrip())]
            sample = [at + letters[len(letters) * i // 4] for i in (1, 2, 3)]
            boxes = [layer.get_charbox(min(i, layer.count_chars() - 1), loose=True) for i in sample]
            height, top = median_low((top - bottom, top) for _, bottom, _, top in boxes)
            lines.append(Line(text.strip(), top, height))
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
    """The headings of the document's outline by page, each with its level from 1."""
    outline: dict[int, dict[str, int]] = {}
    for entry in document.get_toc(max_depth=6):
        target = entry.get_dest()
        if target is not None and (index := target.get_index()) is not None:
            outline.setdefault(index + 1, {})[entry.get_title()] = entry.level + 1
    return outline


def _ranges(pages: list[int]) -> str:
    """`page 3`, `pages 3–5, 9`."""
    spans: list[list[int]] = []
    for page in pages:
        if spans and page == spans[-1][1] + 1:
            spans[-1][1] = page
        else:
            spans.append([page, page])
    shown = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
    return f"page {shown}" if len(pages) == 1 else f"pages {shown}"

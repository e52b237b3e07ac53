"""Word documents: headings, paragraphs, lists and tables, by python-docx."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from settle.documents.blocks import Block, Note, Place, is_header, table
from settle.documents.readers import Reader
from settle.documents.readers.office import check_zip

if TYPE_CHECKING:
    from docx.document import Document
    from lxml.etree import _Element

_HEADING = re.compile(r"heading (\d)", re.I)
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_P, _TABLE, _ROW, _CELL, _PAGE_BREAK = (_W + tag for tag in ("p", "tbl", "tr", "tc", "lastRenderedPageBreak"))
_CHARACTERS = {_W + "tab": "\t", _W + "br": "\n", _W + "cr": "\n", _W + "noBreakHyphen": "-"}
_TWICE = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # of a drawing, for older programs
_FOOTNOTES = ("/footnotes", "/endnotes")


class Docx(Reader):
    """A place is a page, where the program that saved the file says how it broke it, or else the heading above."""

    suffixes: ClassVar[tuple[str, ...]] = (".docx",)
    packages: ClassVar[tuple[str, ...]] = ("docx",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        import docx

        check_zip(path, "Word document")
        document = docx.Document(str(path))
        walk = _Walk(document)
        yield from walk.blocks(document.element.body)
        for relation in document.part.rels.values():
            if relation.reltype.endswith(_FOOTNOTES) and not relation.is_external:
                yield from walk.notes(relation.target_part.blob)


class _Walk:
    def __init__(self, document: "Document") -> None:
        self._styles = {style.style_id: _style_name(style) for style in document.styles if hasattr(style, "base_style")}
        self._page = 1 if next(document.element.body.iter(_PAGE_BREAK), None) is not None else None
        self._heading = ""

    def blocks(self, inside: "_Element") -> Iterator[Block]:
        for element in inside.iterchildren():
            if element.tag == _P:
                yield from self._paragraph(element)
            elif element.tag == _TABLE:
                yield from self._table(element)
            else:  # a control or a tracked change around paragraphs
                yield from self.blocks(element)

    def notes(self, blob: bytes) -> Iterator[Block]:
        """Yield footnotes, after everything else: they belong to no heading."""
        from lxml import etree

        parser = etree.XMLParser(resolve_entities=False, no_network=True)
        for paragraph in etree.fromstring(blob, parser).iter(_P):
            text, _ = _text(paragraph)
            if text:
                yield Block("text", text, Place(part="notes"), level=0)

    @property
    def _place(self) -> Place:
        return Place(page=self._page) if self._page else Place(part=self._heading)

    def _turn(self, pages: int) -> None:
        if self._page:
            self._page += pages

    def _paragraph(self, paragraph: Any) -> Iterator[Block]:
        text, turned = _text(paragraph)
        style = self._styles.get(_value(paragraph, "pStyle") or "", "")
        outline = _value(paragraph, "outlineLvl")
        level = int(outline) + 1 if outline and outline.isdecimal() and int(outline) < 9 else None
        if level is None:
            match = _HEADING.fullmatch(style)
            level = int(match[1]) if match else {"title": 1, "subtitle": 2}.get(style)
        self._turn(turned[0])
        if text and level:
            self._heading = " ".join(text.split())
            yield Block("heading", self._heading, self._place, level)
        elif text and _is_item(paragraph, style):
            depth = _value(paragraph, "ilvl") or "0"
            yield Block("list", "  " * (int(depth) if depth in "012345678" else 0) + "- " + text, self._place)
        elif text and not style.startswith("toc"):  # a table of contents repeats the headings
            yield Block("code" if "code" in style or "preformatted" in style else "text", text, self._place)
        self._turn(turned[1])

    def _table(self, element: "_Element") -> Iterator[Block]:
        place, rows, turned = self._place, [], 0
        for row in element.iterchildren(_ROW):
            cells = []
            for cell in row.iterchildren(_CELL):
                texts = [_text(paragraph) for paragraph in cell.iter(_P)]
                cells.append(" ".join(text for text, _ in texts))
                turned += sum(sum(pages) for _, pages in texts)
            rows.append(cells)
        if block := table(rows, place, headed=bool(rows) and is_header(rows[0])):
            yield block
        self._turn(turned)


def _style_name(style: Any) -> str:
    """Return a style's name in lower case, or that of the heading that it is based on."""
    name, outline, depth = (style.name or "").lower(), None, 0
    while style is not None and depth < 20:  # a damaged file may have styles that are based on each other
        if _HEADING.fullmatch(style.name or ""):
            return str(style.name).lower()
        outline = outline or _value(style.element, "outlineLvl")
        style, depth = style.base_style, depth + 1
    return f"heading {int(outline) + 1}" if outline and outline in "012345678" else name


def _is_item(paragraph: Any, style: str) -> bool:
    number = _value(paragraph, "numId")
    return number != "0" if number else style.startswith("list")


def _value(element: Any, name: str) -> str | None:
    properties = element.find(_W + "pPr")
    holder = properties.find(f".//{_W}{name}") if properties is not None else None
    return holder.get(_W + "val") if holder is not None else None


def _text(paragraph: "_Element") -> tuple[str, tuple[int, int]]:
    """Return a paragraph's text without deleted parts, and the pages that begin before and inside of it."""
    pieces: list[str] = []
    before = inside = 0
    drawn = next(paragraph.iter(_TWICE), None) is not None
    for element in paragraph.iter():
        text = element.text if element.tag == _W + "t" else _CHARACTERS.get(element.tag)
        if element.tag == _PAGE_BREAK and pieces:
            inside += 1
        elif element.tag == _PAGE_BREAK:
            before += 1
        elif text and not (drawn and any(parent.tag == _TWICE for parent in element.iterancestors())):
            pieces.append(text)
    return "".join(pieces).strip(), (before, inside)

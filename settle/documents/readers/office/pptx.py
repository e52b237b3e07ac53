"""Slides, by python-pptx: their text, their tables, and the notes of the speaker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from settle.documents.blocks import Block, Note, Place, is_header, table
from settle.documents.readers import Reader
from settle.documents.readers.office import check_zip


class Pptx(Reader):
    """A place is a slide, as a page."""

    suffixes: ClassVar[tuple[str, ...]] = (".pptx",)
    packages: ClassVar[tuple[str, ...]] = ("pptx",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        from pptx import Presentation

        check_zip(path, "presentation")
        for number, slide in enumerate(Presentation(str(path)).slides, 1):
            place = Place(page=number)
            title = slide.shapes.title
            text = " ".join(title.text_frame.text.split()) if title is not None else ""
            level = 1 if text else 0  # without a title it stands under none, that of the slide before included
            if text:
                yield Block("heading", text, place, level)
            for shape in _shapes(slide.shapes):
                if title is None or shape.shape_id != title.shape_id:
                    yield from _blocks(shape, place, level)
            if slide.has_notes_slide and (frame := slide.notes_slide.notes_text_frame) is not None:
                yield from _text(frame, Place(page=number, part="notes"), level)


def _shapes(shapes: Any) -> Iterator[Any]:
    """Yield shapes in their order, those of groups among them."""
    waiting = list(reversed(list(shapes)))
    while waiting:
        shape = waiting.pop()
        if hasattr(shape, "shapes"):
            waiting += reversed(list(shape.shapes))
        else:
            yield shape


def _blocks(shape: Any, place: Place, level: int) -> Iterator[Block]:
    if getattr(shape, "has_table", False):
        rows = [[cell.text_frame.text for cell in row.cells] for row in shape.table.rows]
        if block := table(rows, place, level, headed=bool(rows) and is_header(rows[0])):
            yield block
    elif shape.has_text_frame:
        yield from _text(shape.text_frame, place, level)


def _text(frame: Any, place: Place, level: int) -> Iterator[Block]:
    """Yield the paragraphs of a shape: a list where there are several."""
    lines = [(p.level, " ".join(p.text.split())) for p in frame.paragraphs if p.text.strip()]
    if len(lines) == 1:
        yield Block("text", lines[0][1], place, level)
    elif lines:
        yield Block("list", "\n".join("  " * depth + "- " + text for depth, text in lines), place, level)

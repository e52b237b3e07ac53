"""Notebooks: what is written in their cells, without what the cells printed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable
from settle.documents.decode import MAX_RECORD, whole_text
from settle.documents.readers import Reader
from settle.documents.readers.text.markdown import markdown_blocks
from settle.documents.rows import Row, text_rows


class Notebook(Reader):
    """A place is a cell: `a.ipynb#cell-id=…`, as JupyterLab opens it, or its number in notebooks without such ids.

    For training a notebook is one document: its text and code cells, in order.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".ipynb",)
    packages: ClassVar[tuple[str, ...]] = ("markdown_it",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        try:
            notebook = json.loads(whole_text(path, note))
            cells = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
            cells = [cell for cell in cells if isinstance(cell, dict)]
        except (ValueError, KeyError, TypeError):
            raise Unreadable("no notebook, whatever its name says") from None
        for number, cell in enumerate(cells, 1):
            source = cell.get("source", cell.get("input", ""))  # the latter in those of before 2015
            text = "".join(map(str, source))  # a text, or a list of its lines
            place = Place(part=f"cell-id={cell['id']}" if cell.get("id") else f"cell {number}")
            if cell.get("cell_type") in ("markdown", "heading"):
                yield from (replace(b, place=place, lined=False) for b in markdown_blocks(text.split("\n")))
            elif text.strip():
                yield Block("code" if cell.get("cell_type") == "code" else "text", text.strip("\n"), place)

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        raw = stream.read(MAX_RECORD + 1)
        if len(raw) > MAX_RECORD:
            raise Unreadable("a notebook larger than 64 MB")
        try:
            cells = json.loads(raw)["cells"]
            sources = [cell["source"] for cell in cells if cell["cell_type"] in ("markdown", "code")]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Unreadable("not a readable notebook") from None
        joined = ["".join(s) if isinstance(s, list) else str(s) for s in sources]
        yield from text_rows("\n\n".join(s for s in joined if s.strip()), 1)

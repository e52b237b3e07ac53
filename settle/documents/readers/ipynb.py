"""Notebooks: what is written in their cells, without what the cells printed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from settle.documents.blocks import Block, Place, Unreadable
from settle.documents.readers import Note, Reader
from settle.documents.readers._lines import whole_text
from settle.documents.readers.markdown import markdown_blocks


class Ipynb(Reader):
    """A place is a cell: `a.ipynb#cell-id=…`, as JupyterLab opens it, or its number in notebooks without such ids."""

    suffixes: ClassVar[tuple[str, ...]] = (".ipynb",)

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        try:
            cells = _cells(json.loads(whole_text(path, note)))
        except (ValueError, KeyError, TypeError):
            raise Unreadable("no notebook, whatever its name says") from None
        for number, cell in enumerate(cells, 1):
            source = cell.get("source", cell.get("input", ""))  # the latter in those of before 2015
            text = source if isinstance(source, str) else "".join(map(str, source))
            place = Place(part=f"cell-id={cell['id']}" if cell.get("id") else f"cell {number}")
            if cell.get("cell_type") in ("markdown", "heading"):
                yield from (replace(b, place=place, lined=False) for b in markdown_blocks(text.split("\n")))
            elif text.strip():
                yield Block("code" if cell.get("cell_type") == "code" else "text", text.strip("\n"), place)


def _cells(notebook: Any) -> list[dict[str, Any]]:
    found = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
    return [cell for cell in found if isinstance(cell, dict)]

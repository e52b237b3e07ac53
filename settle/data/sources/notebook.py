"""Jupyter notebooks: the cells that were written, without what they printed."""

import json
from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from settle.data.sources import MAX_RECORD, Row, Skip, Source, documents


class Notebook(Source):
    """A notebook is a document: its text and code cells, in order."""

    suffixes: ClassVar[tuple[str, ...]] = (".ipynb",)

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        raw = stream.read(MAX_RECORD + 1)
        if len(raw) > MAX_RECORD:
            raise Skip("a notebook larger than 64 MB")
        try:
            cells = json.loads(raw)["cells"]
            sources = [cell["source"] for cell in cells if cell["cell_type"] in ("markdown", "code")]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Skip("not a readable notebook") from None
        joined = ["".join(s) if isinstance(s, list) else str(s) for s in sources]
        yield from documents("\n\n".join(s for s in joined if s.strip()), 1)

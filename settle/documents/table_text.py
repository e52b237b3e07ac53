"""Rows of a table as lines of text."""

from collections.abc import Iterable, Iterator, Sequence

from settle.documents.blocks import Block, Place


def row_text(cells: Iterable[str]) -> str:
    """Cells side by side, each on one line, the empty ones at the end left out."""
    shown = [" ".join(cell.split()) for cell in cells]
    while shown and not shown[-1]:
        shown.pop()
    return " | ".join(shown)


def table(rows: Sequence[Sequence[str]], place: Place, level: int | None = None, headed: bool = True) -> Block | None:
    """A table as a block, its first row as its header; None when nothing is in it. One row alone is no header."""
    lines = [text for row in rows if (text := row_text(row))]
    if not lines:
        return None
    header = lines.pop(0) if headed and len(lines) > 1 else ""
    return Block("table", "\n".join(lines), place, level, header=header)


def table_rows(rows: Iterable[tuple[Place, Sequence[str]]]) -> Iterator[Block]:
    """The rows of a sheet, each a block: above the table stand rows of one cell, and one that names its columns."""
    header: str | None = None
    unsaid: Block | None = None  # a header below which nothing has come yet
    for place, cells in rows:
        text = row_text(cells)
        if not text:
            continue
        if header is not None:
            yield Block("table", text, place, header=header)
            unsaid = None
        elif sum(map(bool, cells)) == 1 and len(cells) > 1:
            yield Block("text", text.strip(" |"), place)
        elif is_header([cell for cell in cells if cell]):
            header, unsaid = text, Block("table", text, place)
        else:
            header = ""
            yield Block("table", text, place)
    if unsaid:
        yield unsaid


def is_header(cells: Sequence[str]) -> bool:
    """Whether a row names columns: every cell says something, and none is a number."""
    return len(cells) > 0 and all(cell.strip() and not is_number(cell) for cell in cells)


def is_number(cell: str) -> bool:
    """Whether a cell holds a number and no words; with a decimal comma too, as in 1.234,5."""
    if cell.count(",") == 1:
        cell = cell.replace(".", "").replace(",", ".")
    try:
        float(cell)
    except ValueError:
        return False
    return True

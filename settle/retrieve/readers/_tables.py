"""Rows of a table as lines of text."""

from collections.abc import Iterable, Sequence

from settle.retrieve.document import Block, Place


def row_text(cells: Iterable[str]) -> str:
    """Cells side by side, each on one line, the empty ones at the end left out."""
    shown = [" ".join(cell.split()) for cell in cells]
    while shown and not shown[-1]:
        shown.pop()
    return " | ".join(shown)


def table(rows: Sequence[Sequence[str]], place: Place, level: int | None = None, headed: bool = True) -> Block | None:
    """A table whose first row is its header; None when nothing is in it. A table of one row has no header."""
    lines = [text for row in rows if (text := row_text(row))]
    if not lines:
        return None
    header = lines.pop(0) if headed and len(lines) > 1 else ""
    return Block("table", "\n".join(lines), place, level, header=header)


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names columns: every cell says something, and none is a number."""
    return len(cells) > 0 and all(cell.strip() and not _is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

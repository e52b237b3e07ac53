"""A table of text: one element, however many cells it has."""

from collections.abc import Sequence

from nicegui.element import Element

from settle.base.visible import visible_line

Cell = str | dict[str, str]


class Table(Element, component="table.js"):
    """columns: names; those in `numbers` stand to the right. Cells are text, or {"text", "href", "tone"}: a link to a
    page of the studio, and one of "good", "bad", "warn", "live" and "dim". empty: what is said when there is no row.
    caption: what the table shows, for people who cannot see it."""

    def __init__(
        self, caption: str, columns: Sequence[str], numbers: Sequence[str] = (), empty: str = "Nothing yet."
    ) -> None:
        super().__init__()
        self.props["caption"], self.props["columns"] = caption, list(map(visible_line, columns))
        self.props["numbers"] = [name in numbers for name in columns]
        self.props["empty"], self.props["rows"] = empty, []

    def show(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Replaces all rows; nothing is sent when they are the same."""
        shown = [[_visible(cell) for cell in row] for row in rows]
        if shown != self.props["rows"]:
            self.props["rows"] = shown


def _visible(cell: Cell) -> Cell:
    return {**cell, "text": visible_line(cell["text"])} if isinstance(cell, dict) else visible_line(cell)

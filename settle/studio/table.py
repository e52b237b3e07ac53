"""A table of text: one element, however many cells it has; and the lists of a command as tables."""

from collections.abc import Callable, Collection, Sequence

from nicegui.element import Element

from settle.base.event_log import Events
from settle.base.events import Event, Listing, Say, Warn
from settle.base.visible import visible_line
from settle.base.words.figures import listed
from settle.studio.layout import Slot, words
from settle.studio.visit import in_thread

Cell = str | dict[str, str]
EMPTY = "Nothing yet."


class Table(Element, component="table.js"):
    """A table of cells.

    columns: names; those whose places are in `numbers` are aligned right. rows: cells are text, or {"text", "href",
    "tone"}: a link to a page of the studio, and one of "good", "bad", "warn", "live" and "dim". empty: shown when there
    is no row. caption: what the table shows, for screen readers.
    """

    def __init__(
        self, caption: str, columns: Sequence[str], numbers: Collection[int] = (), empty: str = EMPTY,
        rows: Sequence[Sequence[Cell]] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.props["caption"], self.props["columns"] = caption, list(map(visible_line, columns))
        self.props["numbers"] = [place in numbers for place in range(len(columns))]
        self.props["empty"], self.props["rows"] = empty, []
        self.show(rows)

    @classmethod
    def of(cls, listing: Listing, caption: str = "", empty: str = EMPTY) -> "Table":
        """Make a table of a list that a command shows."""
        rows, is_number = listed(listing)
        numbers = [place for place, holds in enumerate(is_number) if holds and place]  # the first says what a row is
        return cls(listing.title or caption, listing.columns, numbers, empty, rows)

    def show(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Replace all rows; nothing is sent when they are the same."""
        shown = [[_visible(cell) for cell in row] for row in rows]
        if shown != self.props["rows"]:
            self.props["rows"] = shown


async def show_listed(place: Slot, name: str, work: Callable[[Events], object], empty: str = EMPTY) -> None:
    """Show the lists, sentences and warnings that `work` emits in a thread. empty: shown for a list without rows."""
    seen: list[Event] = []
    await in_thread(work, Events(listeners=[seen.append]))
    lists = [event for event in seen if isinstance(event, Listing)]
    with place.anew():
        for event in seen:
            if isinstance(event, Listing):
                if event.title and event is not lists[0]:  # the first is what the card is about
                    words(event.title.capitalize(), "h3")
                Table.of(event, name, empty)
            elif isinstance(event, Say | Warn):
                words(event.text, classes="warn" if isinstance(event, Warn) else "dim")


def _visible(cell: Cell) -> Cell:
    return {**cell, "text": visible_line(cell["text"])} if isinstance(cell, dict) else visible_line(cell)

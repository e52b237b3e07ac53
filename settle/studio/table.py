"""A table of text: one element, however many cells it has; and the lists of a command as tables."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NotRequired, TypedDict

from nicegui.element import Element

from settle.base.event_log import Events
from settle.base.events import Event, Listing, Say, Warn
from settle.base.visible import visible_line
from settle.base.words.figures import listed
from settle.studio.layout import Slot, words
from settle.studio.visit import in_thread, reported


class Shown(TypedDict):
    """A cell that is more than its text."""

    text: str
    href: NotRequired[str]
    tone: NotRequired[str]
    rank: NotRequired[float | str]
    acts: NotRequired[list[str]]


Cell = str | Shown
Act = Callable[[str, str], Awaitable[None]]
Choice = Callable[[list[str]], Awaitable[None]]
EMPTY = "Nothing yet."


class Table(Element, component="table.js"):
    """A table of cells.

    columns: names; those whose places are in `numbers` are aligned right. rows: cells are text, or {"text", "href",
    "tone", "rank", "acts"}: a link to a page of the studio; one of "good", "bad", "warn", "live" and "dim"; what it is
    sorted by; names of buttons. keys: of the rows, where they are acted on or chosen. sorts: a click on a column's name
    sorts by it. on_act: called with a row's key and the name of the button; on_choice: with the keys of all chosen
    rows. empty: shown when there is no row. caption: what the table shows, for screen readers.
    """

    def __init__(
        self, caption: str, columns: Sequence[str], numbers: Collection[int] = (), empty: str = EMPTY,
        rows: Sequence[Sequence[Cell]] = (), *, sorts: bool = False, on_act: Act | None = None,
        on_choice: Choice | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.props["caption"], self.props["columns"] = caption, list(map(visible_line, columns))
        self.props["numbers"] = [place in numbers for place in range(len(columns))]
        self.props.update({"empty": empty, "rows": [], "keys": [], "sorts": sorts, "chooses": on_choice is not None})
        if on_act:
            self.on("act", lambda event: self._acted(on_act, event.args))
        if on_choice:
            self.on("chosen", lambda event: self._chose(on_choice, event.args))
        self.show(rows)

    @classmethod
    def of(cls, listing: Listing, caption: str = "", empty: str = EMPTY) -> "Table":
        """Make a table of a list that a command shows."""
        rows, is_number = listed(listing)
        numbers = [place for place, holds in enumerate(is_number) if holds and place]  # the first says what a row is
        return cls(listing.title or caption, listing.columns, numbers, empty, rows)

    def show(self, rows: Sequence[Sequence[Cell]], keys: Sequence[str] = ()) -> None:
        """Replace all rows; nothing is sent when they are the same."""
        shown = [[_visible(cell) for cell in row] for row in rows]
        if shown != self.props["rows"] or [*keys] != self.props["keys"]:
            self.props.update({"rows": shown, "keys": [*keys]})

    async def _acted(self, act: Act, args: object) -> None:
        """Do what the browser names only to a row that is shown."""
        match args:
            case [str(key), str(name)] if key in self.props["keys"]:
                await reported(act)(key, name)

    async def _chose(self, choose: Choice, args: object) -> None:
        match args:
            case [*keys]:
                await reported(choose)([key for key in self.props["keys"] if key in keys])


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
    return visible_line(cell) if isinstance(cell, str) else {**cell, "text": visible_line(cell["text"])}

"""What a command lists, as a table of the page: the same function that the command calls, in a thread."""

from collections.abc import Callable, Mapping

from settle.base.event_log import Events
from settle.base.events import Event, Listing, Say, Warn
from settle.base.words.amounts import amount
from settle.studio.layout import words
from settle.studio.table import Table
from settle.studio.visit import in_thread


async def show_listed(name: str, work: Callable[[Events], object], empty: str) -> None:
    """Calls `work` and shows its lists, sentences and warnings. empty: said of a list without rows."""
    seen: list[Event] = []
    await in_thread(lambda: work(Events(listeners=[seen.append])))
    for event in seen:
        if isinstance(event, Listing):
            numbers = [c for i, c in enumerate(event.columns) if any(_is_number(row[i]) for row in event.rows)]
            table = Table(event.title or name, event.columns, numbers, empty)
            table.show([[_text(cell) for cell in row] for row in event.rows])
        elif isinstance(event, Say | Warn):
            words(event.text, classes="warn" if isinstance(event, Warn) else "dim")


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float | Mapping)


def _text(cell: object) -> str:
    if isinstance(cell, Mapping):
        return amount(cell.get("value"), str(cell.get("unit") or ""))
    if isinstance(cell, bool) or cell is None:
        return "yes" if cell else ""
    return f"{cell:,}" if isinstance(cell, int) else amount(cell) if isinstance(cell, float) else str(cell)

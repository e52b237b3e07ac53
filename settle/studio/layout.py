"""What every page has: the skip link, the doors and what lies behind *More*, the heading, and its content."""

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from settle.base.errors import SettleError
from settle.base.visible import visible
from settle.studio.visit import reported

MORE = "more"  # the id of what lies behind it
START = "/new"
BUSY = "busy"  # why a button is disabled: what it does has not ended


@dataclass(frozen=True)
class Way:
    """A page that every other one leads to. is_door: it has a place in the header, and is not behind *More*."""

    title: str
    path: str
    is_door: bool


@contextlib.contextmanager
def frame(title: str, ways: Sequence[Way], current: str) -> Iterator[None]:
    """Frame a page; its content is made inside.

    current: the path of the way that is marked: of the page itself, or of the one that it belongs to.
    """
    ui.page_title(f"{visible(title)} · settle studio")
    with ui.context.client.layout, ui.element("header") as header, ui.element("div").classes("bar"):
        ui.link("settle", "/").classes("brand").props('aria-label="settle studio"')
        with ui.element("nav").props('aria-label="Pages"'):
            _links([way for way in ways if way.is_door], current)
            more = [way for way in ways if not way.is_door]
            words("More", "button").props(f'type="button" popovertarget="{MORE}"').classes(
                "current" if current in [way.path for way in more] else ""
            )
            with ui.element("div").props(f'id="{MORE}" popover').classes("menu"):
                _links(more, current)
        ui.link("New run", START).classes("act main start")
    header.move(target_index=0)
    with ui.element("div").classes("content") as content:  # inside the framework's own <main>
        words(title, "h1")
        yield
    ui.skip_link("Skip to content", target=content)


def _links(ways: Iterable[Way], current: str) -> None:
    for way in ways:
        link = ui.link(way.title, way.path)
        if way.path == current:
            link.props('aria-current="page"')


@contextlib.contextmanager
def card(title: str, classes: str = "") -> Iterator[ui.element]:
    """Open a part of a page, under a heading of its own."""
    with ui.element("section").classes(f"panel {classes}") as section:
        words(title, "h2")
        yield section


def chips(label: str, links: Iterable[tuple[str, str, bool]]) -> None:
    """Links side by side. links: (text, address, whether it is chosen)."""
    with ui.element("ul").classes("chips").props(f'aria-label="{label}"'):
        for text, address, is_chosen in links:
            with ui.element("li"):
                link = ui.link(text, address)
                if is_chosen:
                    link.classes("chosen").props('aria-current="true"')


def empty_state(text: str, *ways: tuple[str, str]) -> None:
    """Say what is not here yet, and what leads to it. ways: (text, address), the first as the main button."""
    with ui.element("section").classes("panel nothing"):
        words(text)
        with ui.element("div").classes("row"):
            for number, (name, address) in enumerate(ways):
                ui.link(name, address).classes("act" if number else "act main")


def words(text: str, tag: str = "p", classes: str = "") -> TextElement:
    """Text as it is, whoever wrote it: nothing in it is taken for HTML. `.text = …` changes it."""
    return TextElement(tag=tag, text=visible(text)).classes(classes)


def button(text: str, act: Callable[[], Awaitable[None]], main: bool = False, classes: str = "") -> ui.element:
    """Make a button that is disabled while `act` works, and afterwards if `act` disabled it.

    A SettleError of `act` is shown. main: it is the page's main button. classes: "danger" for one that deletes.
    """
    element = words(text, "button", f"act {'main' if main else classes}").props('type="button"')

    async def pressed() -> None:
        element.props["disabled"] = BUSY
        try:
            await act()
        finally:
            if element.props.get("disabled") == BUSY:
                del element.props["disabled"]

    return element.on("click", reported(pressed))


def confirmed(question: str, answer: str, act: Callable[[], Awaitable[None]], cancel: Callable[[], object]) -> None:
    """Ask once more before something is deleted. answer: the button that does it."""

    async def keep() -> None:
        cancel()

    words(question).props('role="alert"')
    with ui.element("div").classes("row"):
        button(answer, act, classes="danger")
        button("Keep", keep)


def failure(error: SettleError) -> None:
    """Show an error and its fix in place of what could not be shown."""
    with ui.element("section").classes("panel failure").props('role="alert"'):
        words(error.what[:1].upper() + error.what[1:], classes="what")
        if error.fix:
            words(error.fix, classes="fix")


class Slot(ui.element):
    """A part of a page that is made again: `with place.anew():`. is_read: screen readers say then what it holds."""

    def __init__(self, is_read: bool = True) -> None:
        super().__init__("div")
        if is_read:
            self.props('aria-live="polite"')

    def anew(self) -> "Slot":
        self.clear()
        return self


class Facts:
    """Names with their values, that can change; a value that is not known is left out."""

    def __init__(self, rows: Sequence[tuple[str, str]] = ()) -> None:
        self._list = ui.element("dl")
        self._values: dict[str, TextElement] = {}
        self.show(rows)

    def show(self, rows: Sequence[tuple[str, str]]) -> None:
        """Only what has changed is sent."""
        known = {name: visible(value) for name, value in rows if value}
        if list(known) != list(self._values):
            self._list.clear()
            with self._list:
                self._values = {}
                for name, value in known.items():
                    words(name, "dt")
                    self._values[name] = words(value, "dd")
        for name, value in known.items():
            if self._values[name].text != value:
                self._values[name].text = value

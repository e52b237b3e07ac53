"""A command that a page fills in: its settings, what will become of it, Start, and the line that does the same."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

from settle.base.command_line import Given, arguments, asked_settings, check
from settle.base.errors import SettleError, UsageError
from settle.base.events import Event, RunStarted, WorkStarted
from settle.base.files import paths_from
from settle.base.python_command import shell_line
from settle.base.registry import Part
from settle.base.run import begun_work, has_begun
from settle.base.words.figures import comparison
from settle.data.rows.preview import RowPiece
from settle.studio.command_child import CommandChild, start_command
from settle.studio.field import Field
from settle.studio.forms.drop import Drop
from settle.studio.forms.form import Form, settings_of
from settle.studio.layout import Slot, button, card, failure, words
from settle.studio.table import Table
from settle.studio.visit import reported

COPY = "(e) => navigator.clipboard.writeText(document.querySelector('.commandline').textContent)"
TALK_LINES = 14
FILES = ("inputs", "paths", "examples", "prompts")  # settings that take what is dropped
TERMINAL_ONLY = ("dry", "status", "watch", "delete", "yes")  # what a page has buttons for, or no use
# where a person sees what became of it
WHERE = {
    "index": ("See the documents", "/documents"),
    **dict.fromkeys(("pick", "choose"), ("See the results", "/models")),
}


class Work:
    """asked: settings that the page begins with. own: settings that the page asks for itself."""

    form: Form | None = None

    def __init__(self, command: type[Part], asked: Mapping[str, str], own: Collection[str] = ()) -> None:
        self.command, self.asked, self.own = command, asked, {*TERMINAL_ONLY, *own}

    def given(self) -> dict[str, Given]:
        """Return what the command is given, by dotted key."""
        return self.form.given() if self.form else asked_settings(self.command, self.asked, self.own)

    async def add_settings(self) -> None:
        """Add the fields of all settings but its own. Raises RunError."""
        with Slot(is_read=False) as place:
            words("Reading the settings …", classes="dim")
        settings = await settings_of(self.command)
        with place.anew():
            self.form = Form(self.command, settings, self.changed, without=self.own)
        self.form.fill(self.asked)
        await self.changed()

    def add_start(self) -> None:
        """Add the buttons, the place of the forecast, and the command line."""
        with ui.element("div").classes("row"):
            button("Start", self.start, main=True)
            if "dry" in self.command.model_fields:
                button("Measure a forecast", self.forecast)
        self.child, self.place = CommandChild(), Slot()
        with ui.element("details"):
            words("The same in a terminal", "summary")
            self.line = words("", "pre", "commandline")
            words("Copy", "button", "act").props('type="button"').on("click", js_handler=COPY)

    async def changed(self) -> None:
        """Make the command line follow what is given."""
        self.line.text = shell_line("settle", *arguments(self.command, self.given()))
        if self.form:
            self.form.show_error(None)

    async def forecast(self) -> None:
        """Measure the forecast, and show what each setting would be."""
        await self._try(self._forecast)

    async def _forecast(self, line: list[str]) -> None:
        result = await self.child.read([*line, "--dry"])
        show_outlook(result, "\n".join([*self.child.talk][-TALK_LINES:]))
        if self.form and self.child.plan:
            self.form.show_derived(self.child.plan.values)

    async def start(self) -> None:
        """Start the command in a process of its own; a run has a page of its own."""
        await self.child.stop()
        await self._try(self._start)

    async def _start(self, line: list[str]) -> None:
        try:
            show_begun(await start_command(line, has_begun, partial(setattr, self.child.status, "text")))
        finally:
            self.child.status.text = ""

    async def _try(self, act: Callable[[list[str]], Awaitable[None]]) -> None:
        """Show an error at its field, or here where it is about none that is shown."""
        with self.place.anew():
            try:
                check(self.command, self.given())
                await act(arguments(self.command, self.given()))
            except SettleError as e:
                if not (self.form and self.form.show_error(e)):
                    failure(e)


class WorkForm(Work):
    """The form of a command, with a place to drop its files."""

    async def build(self) -> None:
        """Add the elements."""
        with ui.element("div").classes("columns"):
            with card("Settings"):
                if key := next((key for key in FILES if key in self.command.model_fields), ""):
                    add_files(partial(self._add_file, key))
                fields = ui.element("div")
            with ui.element("div").classes("beside"), card("Before it starts"):
                self.add_start()
        with fields:
            ui.timer(0, reported(self.add_settings), once=True)  # the page is there before they are read
        await self.changed()

    async def _add_file(self, key: str, path: str) -> None:
        if self.form:
            self.form.add(key, path)
        else:  # the fields are not there yet, and will be filled with what was asked
            self.asked = {**self.asked, key: f"{self.asked.get(key, '')}\n{path}".strip()}
        await self.changed()

    async def _start(self, line: list[str]) -> None:
        if "paths" in self.command.model_fields and not self.given().get("paths"):
            raise UsageError("no folder is chosen", "name a folder or file above")
        await super()._start(line)


def add_files(add: Callable[[str], Awaitable[None]]) -> Field:
    """Add what names files: by their path on this machine, or dropped. add: called with each path."""

    async def add_typed() -> None:
        if path.text:
            await add(path.text)

    path = Field("File or folder of this machine", suggest=paths_from, hint="/home/…", on_set=add_typed)
    Drop("Or drop files here, or choose them", add)
    return path


def show_begun(events: Sequence[Event]) -> None:
    """Leave for the page of the run that was started, or say where to watch the work."""
    match begun_work(events):
        case RunStarted() as run:
            ui.navigate.to(f"/runs/{Path(run.path).name}")
        case WorkStarted() as work:
            words(f"{work.what} {work.name} has started, and continues when this page is closed.", classes="good")
            ui.link(*WHERE[work.what])
        case None:
            words("It is done.", classes="good")


def show_outlook(result: Mapping[str, Any], talk: str) -> None:
    """Show what a command with --dry returned: the forecast, and rows as its template writes them; else its words."""
    forecast = comparison(result.get("forecast") or {}, None)
    if forecast.rows:
        Table.of(forecast, "Forecast")
    else:
        words(talk, "pre", "tall")
    if rows := result.get("previews"):
        with ui.element("details"):
            words("Rows as the model's template writes them", "summary")
            for row in rows:
                learned = f"{row['num_supervised']:,} of {row['num_tokens']:,} tokens are learned"
                pieces = [RowPiece("", text, bool(is_learned)) for text, is_learned in row["pieces"]]
                show_row(f"{row['origin']}: {learned}", pieces)


def show_row(where: str, pieces: Sequence[RowPiece]) -> None:
    """Show a row; what is learned of it is marked."""
    words(where, classes="dim")
    with ui.element("pre").classes("sample").props("tabindex=0"):
        for piece in pieces:
            if piece.who:
                words(f"{piece.who}: ", "span", "dim")
            words(piece.text, "mark" if piece.is_learned else "span")
            words("\n" if piece.who else "", "span")

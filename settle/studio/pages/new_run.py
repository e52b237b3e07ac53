"""New run: the form of a command, what it will need, the rows as they will be learned, and the same in a terminal."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

from settle.base.errors import SettleError
from settle.base.events import Event, RunStarted, WorkStarted
from settle.base.python_command import shell_line
from settle.base.registry import Part
from settle.base.run import Run
from settle.base.words.figures import comparison
from settle.studio.command_child import CommandChild, start_command
from settle.studio.field import Field
from settle.studio.forms.arguments import arguments, check
from settle.studio.forms.drop import Drop
from settle.studio.forms.form import Form, proposed_paths
from settle.studio.forms.settings import Setting, settings_of
from settle.studio.layout import Slot, button, card, chips, failure, words
from settle.studio.pages import Page
from settle.studio.table import Table
from settle.studio.visit import Visit

COPY = "(e) => navigator.clipboard.writeText(document.querySelector('.commandline').textContent)"
TALK_LINES = 14
# where a person sees what became of it
WHERE = {
    "index": ("See the documents", "/documents"),
    **dict.fromkeys(("pick", "choose"), ("See the results", "/models")),
}


class NewRun(Page):
    """The form of one command; the others are a link away."""

    path = "/new"
    title = "New run"
    place = 50

    async def build(self, visit: Visit) -> None:
        commands = {name: c for name, c in visit.studio.commands().items() if getattr(c, "begins_work", False)}
        command = commands.get(visit.query.get("command", "")) or commands["train"]
        chips("Commands", [(name, f"/new?command={name}", each is command) for name, each in commands.items()])
        first, *more = inspect.cleandoc(str(command.__doc__)).replace("`", "").split("\n\n")
        words(" ".join(first.split()), classes="dim")
        if more:
            with ui.element("details"):
                words(f"About settle {command.part_name()}", "summary")
                for paragraph in more:
                    words(" ".join(paragraph.split()), classes="dim")
        NewRunForm(command, await settings_of(command))


class NewRunForm:
    """The form, and beside it what will become of it."""

    def __init__(self, command: type[Part], settings: Sequence[Setting]) -> None:
        self.command, self.is_forecast = command, "dry" in command.model_fields
        with ui.element("div").classes("columns"):
            with card("Settings"):
                self._add_files()
                self.form = Form(command, settings, self.changed)
            with ui.element("div").classes("beside"):
                with card("The same in a terminal"):
                    self.line = words(shell_line("settle", *arguments(command, {})), "pre", "commandline")
                    words("Copy", "button", "act").props('type="button"').on("click", js_handler=COPY)
                with card("Before it starts"):
                    self._add_buttons()

    def _add_files(self) -> None:
        """Add what is dropped, or found by its path, to the setting that takes files."""
        names = [key for key in ("inputs", "paths", "examples", "prompts") if key in self.command.model_fields]
        if not names:
            return
        key = names[0]

        async def add(path: str) -> None:
            field = self.form.fields[key]
            lines = [line for line in str(field.value).splitlines() if line.strip()]
            field.put("\n".join([*lines, path]) if field.props["kind"] == "lines" else path)
            await self.changed()

        async def add_typed() -> None:
            if typed.text:
                await add(typed.text)
                typed.put("")

        Drop(f"Files for {key}: drop them here, or choose", add)
        typed = Field("Or a file or folder of this machine", suggest=proposed_paths, hint="/home/…")
        typed.on("enter", add_typed)
        with ui.element("div").classes("row"):
            button(f"Add to {key}", add_typed)

    def _add_buttons(self) -> None:
        if self.is_forecast:
            words("The plan and the forecast are measured on this machine; nothing is kept.", classes="dim")
        else:
            words("This command makes no forecast; it says what it does as it works.", classes="dim")
        with ui.element("div").classes("row"):
            if self.is_forecast:
                button("Forecast", self.look)
                button("Stop the forecast", lambda: self.outlook.stop())
            button("Start", self.start, main=True)
        self.outlook = CommandChild()
        self.place = Slot()

    async def changed(self) -> None:
        """Make the command line follow the form."""
        self.line.text = shell_line("settle", *arguments(self.command, self.form.given()))
        self.form.show_error(None)

    def _checked(self) -> list[str]:
        given = self.form.given()
        check(self.command, given)
        return arguments(self.command, given)

    async def look(self) -> None:
        """Show the forecast."""
        with self.place.anew():
            try:
                result = await self.outlook.read([*self._checked(), "--dry"])
                show_outlook(result, "\n".join([*self.outlook.talk][-TALK_LINES:]))
            except SettleError as e:
                self._show(e)

    async def start(self) -> None:
        """Start the command, in a process of its own."""
        with self.place.anew():
            try:
                events = await start_command(self._checked(), has_begun, partial(setattr, self.outlook.status, "text"))
                show_begun(events)
            except SettleError as e:
                self._show(e)
            finally:
                self.outlook.status.text = ""

    def _show(self, error: SettleError) -> None:
        """At its field, or here where it is about none."""
        if not self.form.show_error(error):
            failure(error)


def has_begun(events: Sequence[Event]) -> bool:
    """Return whether the work of a command has begun: a run has its plan by then, and what was asked is in order."""
    first = _first_of(events)
    return isinstance(first, WorkStarted) or (first is not None and Run(Path(first.path)).has_begun)


def show_begun(events: Sequence[Event]) -> None:
    """Show what was started, by its own report, and where to watch it."""
    match _first_of(events):
        case RunStarted() as run:
            words("It has started, and continues when this page is closed.", classes="good")
            ui.link(f"Watch {run.name}", f"/runs/{Path(run.path).name}")
        case WorkStarted() as work:
            words(f"{work.what} {work.name} has started, and continues when this page is closed.", classes="good")
            ui.link(*WHERE[work.what])
        case None:
            words("It is done.", classes="good")


def _first_of(events: Sequence[Event]) -> RunStarted | WorkStarted | None:
    """Later ones are of runs that the work starts itself."""
    return next((event for event in events if isinstance(event, RunStarted | WorkStarted)), None)


def show_outlook(result: Mapping[str, Any], talk: str) -> None:
    """Show what a command with --dry returned: the forecast, the rows as they are learned; else its words."""
    forecast = comparison(result.get("forecast") or {}, None)
    if forecast.rows:
        Table.of(forecast, "Forecast")
    else:
        words(talk, "pre", "tall")
    if "previews" in result:
        words("Rows as they will be learned", "h3")
        words("The model learns what is marked; the rest it only reads.", classes="dim")
    for row in result.get("previews") or ():
        words(f"{row['origin']}: {row['num_supervised']:,} of {row['num_tokens']:,} tokens are learned", classes="dim")
        with ui.element("pre").classes("tall"):
            for text, is_learned in row["pieces"]:
                words(text, "mark" if is_learned else "span")

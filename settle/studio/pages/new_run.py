"""New run: the form of a command, what it will need, the rows as they will be learned, and the same in a terminal."""

import inspect
from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import quote

from nicegui import ui

from settle.base.errors import SettleError
from settle.base.events import Listing
from settle.base.files import home
from settle.base.registry import Part
from settle.base.words.figures import comparison
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.forms.arguments import arguments, check, shell_line
from settle.studio.forms.drop import Drop
from settle.studio.forms.form import Form, proposed_paths
from settle.studio.layout import button, card, failure, words
from settle.studio.pages import Page
from settle.studio.start_command import start_command
from settle.studio.table import Table
from settle.studio.visit import Visit

COPY = "(e) => navigator.clipboard.writeText(document.querySelector('.commandline').textContent)"
TALK_LINES = 14


class NewRun(Page):
    """The form of one command; the others are a link away."""

    path: ClassVar[str] = "/new"
    title: ClassVar[str] = "New run"
    place: ClassVar[int | None] = 30

    async def build(self, visit: Visit) -> None:
        commands = {name: c for name, c in visit.studio.commands().items() if getattr(c, "begins_work", False)}
        name = visit.query.get("command", "")
        command = commands.get(name) or commands["train"]
        with ui.element("ul").classes("chips").props('aria-label="Commands"'):
            for other in commands:
                with ui.element("li"):
                    link = ui.link(other, f"/new?command={quote(other)}")
                    if commands[other] is command:
                        link.classes("chosen").props('aria-current="page"')
        first, *more = inspect.cleandoc(str(command.__doc__)).replace("`", "").split("\n\n")
        words(" ".join(first.split()), classes="dim")
        if more:
            with ui.element("details"):
                words(f"About settle {command.part_name()}", "summary")
                for paragraph in more:
                    words(" ".join(paragraph.split()), classes="dim")
        await NewRunForm(command).build()


class NewRunForm:
    """The form, and beside it what will become of it."""

    def __init__(self, command: type[Part]) -> None:
        self.command, self.outlook = command, CommandChild()
        self.is_forecast = "dry" in command.model_fields

    async def build(self) -> None:
        with ui.element("div").classes("columns"):
            with card("Settings"):
                self._add_files()
                self.form = Form(self.command, self.changed)
            with ui.element("div").classes("beside"):
                with card("The same in a terminal"):
                    self.line = words("", "pre", "commandline")
                    words("Copy", "button", "act").props('type="button"').on("click", js_handler=COPY)
                with card("Before it starts"):
                    if self.is_forecast:
                        words("The plan and the forecast are measured on this machine; nothing is kept.", classes="dim")
                    else:
                        words("This command makes no forecast; it says what it does as it works.", classes="dim")
                    with ui.element("div").classes("row"):
                        if self.is_forecast:
                            button("Forecast", self.look)
                            button("Stop the forecast", self.outlook.stop)
                        button("Start", self.start, main=True)
                    self.place = ui.element("div").props('aria-live="polite"')
        self.line.text = shell_line(arguments(self.command, {}))

    def _add_files(self) -> None:
        """What is dropped or found by its path goes to the setting that takes files."""
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
            if str(typed.value).strip():
                await add(str(typed.value).strip())
                typed.put("")

        Drop(f"Files for {key}: drop them here, or choose", add)
        typed = Field("Or a file or folder of this machine", suggest=proposed_paths, hint="/home/…")
        typed.on("enter", add_typed)
        with ui.element("div").classes("row"):
            button(f"Add to {key}", add_typed)

    async def changed(self) -> None:
        """The command line follows the form."""
        self.line.text = shell_line(arguments(self.command, self.form.given()))
        self.form.show_error(None)

    def _checked(self) -> list[str]:
        given = self.form.given()
        check(self.command, given)
        return arguments(self.command, given)

    async def look(self) -> None:
        """The forecast."""
        try:
            line = self._checked()
            self.place.clear()
            with self.place:
                talk = words("starting …", "pre", "tall")
            result = await self.outlook.read([*line, "--dry"], lambda lines: _show_talk(talk, list(lines)))
        except SettleError as e:
            self._show(e)
            return
        with self.place:
            show_outlook(result, talk.text)
        talk.delete()

    async def start(self) -> None:
        """The command, in a process of its own."""
        try:
            before = _made()
            await start_command(self._checked(), lambda: bool(_made() - before))
        except SettleError as e:
            self._show(e)
            return
        self.place.clear()
        with self.place:
            words("It has started, and continues when this page is closed.", classes="good")
            ui.link("See the runs", "/")

    def _show(self, error: SettleError) -> None:
        self.place.clear()
        if not self.form.show_error(error):
            with self.place:
                failure(error)


def _made() -> set[str]:
    """Folders of work that has begun."""
    folders = [folder for kind in ("collections", "choices", "picks") for folder in (home() / kind).glob("*")]
    return {str(path) for path in [*folders, *(home() / "runs").glob("*/plan.json")]}


def _show_talk(element: ui.element, lines: Sequence[str]) -> None:
    element.text = "\n".join(lines[-TALK_LINES:])  # type: ignore[attr-defined]


def show_outlook(result: Mapping[str, object], talk: str) -> None:
    """What a command with --dry returned: the forecast, the rows as they are learned; where it has none, its words."""
    forecast, previews = result.get("forecast"), result.get("previews")
    listing = comparison(forecast, None) if isinstance(forecast, Mapping) else Listing(columns=[], rows=[])
    if listing.rows:
        table = Table("Forecast", listing.columns, listing.columns[1:])
        table.show([[str(cell) for cell in row] for row in listing.rows])
    else:
        words(talk, "pre", "tall")
    if isinstance(previews, list):
        words("Rows as they will be learned", "h3")
        words("The model learns what is marked; the rest it only reads.", classes="dim")
        for row in previews:
            head = f"{row['origin']}: {row['num_supervised']:,} of {row['num_tokens']:,} tokens are learned"
            words(head, classes="dim")
            with ui.element("pre").classes("tall"):
                for text, is_learned in row["pieces"]:
                    words(text, "mark" if is_learned else "span")

"""New run: choose what to learn from, a model and a time, see what that gives, and start it; forms of other work."""

import inspect
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

from nicegui import ui

from settle.base.command_line import Given
from settle.base.errors import SettleError
from settle.base.registry import Part
from settle.data.rows.preview import COLUMNS, KINDS, DataPreview, preview
from settle.studio.command_child import CommandChild, read_module
from settle.studio.field import Field
from settle.studio.forms.work import Work, WorkForm, add_files, show_row
from settle.studio.layout import Facts, Slot, button, card, failure, words
from settle.studio.pages import Page
from settle.studio.table import Cell, Table
from settle.studio.visit import Visit, in_thread, reported

TONES = {"yes": "good", "barely": "warn", "no": "bad"}
ESTIMATE_SECONDS = 90.0


class NewRun(Page):
    """A new run, or the form of another command."""

    path = "/new"
    title = "New run"
    place = 50

    async def build(self, visit: Visit) -> None:
        commands = {name: c for name, c in visit.studio.commands().items() if getattr(c, "begins_work", False)}
        others = {name: _purpose(c) for name, c in commands.items() if name not in ("train", "tune")}
        name = visit.query.get("command", "train")
        if name in others:
            words(others.pop(name), classes="dim")
            await WorkForm(commands[name], visit.query).build()
        else:
            await Start(commands, visit.query).build()
        with card("Other kinds of work"), ui.element("dl"):
            for other, purpose in sorted(others.items()):
                with words("", "dt"):
                    ui.link(other.capitalize(), f"/new?command={other}")
                words(purpose, "dd")


def _purpose(command: type[Part]) -> str:
    return " ".join(inspect.cleandoc(str(command.__doc__)).partition("\n\n")[0].replace("`", "").split())


class Start(Work):
    """What was chosen so far; each choice shows the next one."""

    found: DataPreview

    def __init__(self, commands: Mapping[str, type[Part]], asked: Mapping[str, str]) -> None:
        super().__init__(commands["tune"], asked, ("inputs", "model", "time"))
        self.commands, self.model = commands, asked.get("model", "")
        self.inputs = [line for line in asked.get("inputs", "").splitlines() if line]
        self.columns: dict[str, str] = {}
        self.about: Mapping[str, Any] = {}  # what `settle.plan.report.start_choices` prints

    async def build(self) -> None:
        """Add the elements."""
        with ui.element("div").classes("columns start"):
            with ui.element("div"):
                with card("What should it learn from?"):
                    path, self.data = add_files(self._add), Slot()
                self.choice, self.more = Slot(is_read=False), Slot(is_read=False)
            with ui.element("div").classes("beside"):
                self.end = Slot(is_read=False)
        path.run_method("begin")
        if self.inputs:
            path.put(self.inputs[0])
            ui.timer(0, reported(self._look), once=True)  # the page is there before they are read

    # --- what it is ---

    async def _add(self, path: str) -> None:
        self.inputs, self.columns = [path], {}
        await self._look()

    async def _look(self) -> None:
        for place in (self.choice, self.more, self.end):
            place.clear()
        with self.data.anew():
            words("Reading …", classes="dim")
            try:
                self.found = await in_thread(preview, self.inputs, self.columns)
            except SettleError as e:
                self.data.clear()
                failure(e)
                return
            self.data.clear()
            self._show_data(self.found)
        if self.found.num_rows:
            await self._show_models()

    def _show_data(self, found: DataPreview) -> None:
        words(KINDS[found.kind], "h3")
        words(found.amounts, classes="dim")
        self._add_columns(found)
        if found.samples:
            words("The model learns what is marked, and only reads the rest.", classes="dim")
        for where, pieces in found.samples:
            show_row(where, pieces)
        if found.left_out:
            words("Left out", "h3")
            rows = [[out.reason, f"{out.number:,}", out.first] for out in found.left_out]
            Table("Left out", ("why", "how many", "the first"), (1,), rows=rows)
        if found.is_text:
            ui.link("Ask questions about it instead", f"/new?command=index&paths={quote(self.inputs[0])}")

    def _add_columns(self, found: DataPreview) -> None:
        """Show which column is what; another choice is used at once."""

        async def use() -> None:
            columns = {part: field.text for part, field in fields.items() if field.text}
            self.columns = {"text": columns["completion"]} if [*columns] == ["completion"] else columns
            await self._look()

        with ui.element("div").classes("columns"):
            fields = {
                part: Field(COLUMNS[part], "choice", options=options, value=value, on_set=use)
                for part, (value, options) in found.parts.items()
            }
        if found.kind == "table":
            button("Use these columns", use)

    # --- the model ---

    async def _show_models(self) -> None:
        found = self.found
        with self.choice.anew(), card("Which model?"):
            state, self.getting = words("Looking at what fits on this machine …", classes="dim"), CommandChild()
            columns = ("model", "parameters", "licence", "memory", "fits here", "one pass", "")
            self.list = Table("Models", columns, (1, 3, 5), " ", on_act=self._choose).classes("tall")
            numbers = map(str, (found.characters, found.num_bytes, 0 if found.is_text else found.num_rows))
            try:
                about = await read_module("settle.plan.report.start_choices", *numbers, seconds=ESTIMATE_SECONDS)
            except SettleError as e:
                about = None
                if not state.is_deleted:
                    failure(e)
        if state.is_deleted:  # other files have been chosen meanwhile
            return
        state.delete()
        if about is not None:
            self.about = cast(Mapping[str, Any], about)
            self.model = self.model or self.about["proposed"]
            await self._show_end()

    async def _choose(self, name: str, act: str) -> None:
        if act != "Choose":
            await self.getting.read(["pull", name])
        self.model = name
        await self._show_end()

    def _row(self, one: Mapping[str, Any]) -> list[Cell]:
        *cells, fits, once = one["cells"]
        chosen: Cell = {"text": "✓ chosen", "tone": "good"}
        offer: Cell = {"text": "", "acts": [one["act"]] if one["act"] else []}
        return [*cells, {"text": fits, "tone": TONES[fits]}, once, chosen if one["name"] == self.model else offer]

    # --- the time, the forecast, and the start ---

    async def _show_end(self) -> None:
        """Show what follows from the choice of a model."""
        choices = self.about["choices"]
        self.list.show([self._row(one) for one in choices], [one["name"] for one in choices])
        self.is_new = self.found.is_text and self.model == self.about["proposed"]
        self.command, self.form = self.commands["train" if self.is_new else "tune"], None
        self.end.clear()
        if not self.model:
            return
        with self.end, card("How long?"):
            self.time = Field("At most", "slider", options=[*map(tuple, self.about["times"])],
                              value=self.asked.get("time", self.about["time"]), on_set=self.changed)  # fmt: skip
            self.facts = Facts()
            self.add_start()
        with self.more.anew(), ui.element("details").classes("panel").on("toggle", reported(self._open_settings)):
            words("All settings", "summary")
            self.settings = ui.element("div")
        await self.changed()

    async def _open_settings(self) -> None:
        """Add the fields when they are first looked at."""
        if not self.settings.default_slot.children:
            with self.settings:
                await self.add_settings()

    def given(self) -> dict[str, Given]:
        """Return what was chosen, and what the settings add to it."""
        own: dict[str, Given] = {} if self.is_new else {"model": self.model}
        own |= {"inputs": self.inputs} | ({"time": self.time.text} if self.time.text else {})
        if "rows" in self.command.model_fields:
            own |= {f"rows.columns.{part}": column for part, column in self.columns.items()}
            own |= {"rows.drop_broken": True} if self.found.refused else {}
        return own | super().given()

    async def changed(self) -> None:
        """Make the forecast and the command line follow what was chosen; another model leaves the time."""
        self.asked = {**self.asked, "time": self.time.text}
        outlooks: Mapping[str, Any] = next(
            (one["outlooks"] for one in self.about["choices"] if one["name"] == self.model), {}
        )
        self.facts.show(outlooks.get(self.time.text, []))
        await super().changed()

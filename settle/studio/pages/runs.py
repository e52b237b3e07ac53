"""Every run, newest first: what it made of which data, what it is doing now, and what can be done with several."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from nicegui import ui
from nicegui.events import GenericEventArguments

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.run.result import TONES
from settle.base.words.amounts import amount, when
from settle.jobs.run_reports import RunSummary, run_summaries, write_note
from settle.library.deletion import remove_runs
from settle.studio.field import Field
from settle.studio.layout import START, Slot, button, confirmed, empty_state, words
from settle.studio.pages import Page
from settle.studio.table import Cell, Table
from settle.studio.visit import Visit, in_thread

LIST_SECONDS = 2.0  # between two readings of the list: each looks into every run's folder
SUMMARY = ("verdict", "held-out loss", "bits per byte", "tokens", "time")
COLUMNS = ("run", "kind", "base", "data", "verdict", "held-out loss", "time", "size", "started")
ANY = "any"
PARTS = ("member", "refit")  # runs that another one made: shown where their kind is chosen
STATES: dict[str, Callable[[RunSummary], bool]] = {
    ANY: lambda run: True,
    "at work": lambda run: run.status == "running",
    "finished": lambda run: run.status == "finished",
    "unfinished or damaged": lambda run: run.status not in ("running", "finished"),
}


class Runs(Page):
    """The list of runs."""

    path = "/"
    title = "Runs"
    place = 10
    is_door = True

    async def build(self, visit: Visit) -> None:
        view = _Runs()
        await view.refresh()
        visit.every_tick(view.refresh)


class _Runs:
    """The list, what narrows it, and what is done with the runs that are chosen."""

    def __init__(self) -> None:
        self.runs: list[RunSummary] | None = None
        self.chosen: list[str] = []
        self._last = -LIST_SECONDS
        self.nothing = Slot()
        with ui.element("div") as self.all:
            with ui.element("div").classes("tools"):
                self.search = Field("Search", hint="name, data, note or #tag", on_set=self._show)
                self.kind = Field("Kind", "choice", options=[ANY], on_set=self._show)
                self.state = Field("State", "choice", options=list(STATES), on_set=self._show)
            self.search.on("typed", self._typed, throttle=0.2, leading_events=False)
            with ui.element("section").classes("panel"):
                with ui.element("div").classes("row selected") as self.tools:
                    self.about = words("").props('role="status"')
                    button("Compare", self._compare)
                    button("Note or tags", self._note)
                    button("Delete", self._delete, classes="danger")
                self.doing = Slot()
                empty = "No run is like that: clear the search, or choose another kind or state."
                numbers = [COLUMNS.index(name) for name in ("held-out loss", "time", "size")]
                self.table = Table("Runs", COLUMNS, numbers, empty, sorts=True, on_choice=self._chose)
        self.tools.set_visibility(False)

    async def refresh(self) -> None:
        """Read the list again, where it was not read a moment ago."""
        now = asyncio.get_running_loop().time()
        if now - self._last >= LIST_SECONDS:
            runs, self._last = await in_thread(run_summaries), now
            if runs != self.runs:
                self.runs = runs
                self.kind.offer([ANY, *sorted({run.kind for run in runs if run.kind})])
                await self._show()

    async def _typed(self, event: GenericEventArguments) -> None:
        self.search.value = str(event.args)
        await self._show()

    async def _show(self) -> None:
        runs = self.runs or []
        self.all.set_visibility(bool(runs))
        with self.nothing.anew():
            if not runs:
                text = "No runs yet. Train a model on your own text, or tune one on your own examples."
                empty_state(text, ("New run", START), ("Get a model", "/models"))
        wanted = self.search.text.lower().split()
        shown = [
            run for run in runs
            if STATES[self.state.text](run) and (run.kind == self.kind.text or self._is_any(run))
            and all(word in f"{run.name} {run.base} {run.data} {run.note} {run.state}".lower() for word in wanted)
        ]  # fmt: skip
        self.table.show([_row(run) for run in shown], [Path(run.path).name for run in shown])

    def _is_any(self, run: RunSummary) -> bool:
        return self.kind.text == ANY and run.kind not in PARTS

    async def _chose(self, keys: list[str]) -> None:
        self.chosen = keys
        self.tools.set_visibility(bool(keys))
        self.about.text = f"{len(keys)} chosen"
        self.doing.clear()

    async def _compare(self) -> None:
        if len(self.chosen) < 2:
            raise UsageError("one run has nothing to be compared with", "choose two runs or more")
        ui.navigate.to("/compare?runs=" + quote(",".join(self.chosen), safe=","))

    async def _note(self) -> None:
        chosen = self._of_chosen()
        with self.doing.anew():
            field = Field("Note", value=chosen[0].note if len(chosen) == 1 else "",
                          help="Words that begin with # are tags: #baseline. An empty note is deleted.")  # fmt: skip

            async def keep() -> None:
                for run in chosen:
                    await in_thread(write_note, Run(Path(run.path)), field.text)
                await self._done()

            field.on("enter", keep)
            button("Keep", keep)

    async def _delete(self) -> None:
        chosen = self._of_chosen()
        size = amount(sum(run.bytes for run in chosen), "bytes")
        names = ", ".join(run.name for run in chosen)
        question = f"Delete {names} with everything made: {size}?"

        async def delete() -> None:
            await in_thread(remove_runs, [Path(run.path).name for run in chosen], True, Events())
            await self._done()

        with self.doing.anew():
            confirmed(question, f"Delete {len(chosen)} for good", delete, self.doing.clear)

    def _of_chosen(self) -> list[RunSummary]:
        return [run for run in self.runs or () if Path(run.path).name in self.chosen]

    async def _done(self) -> None:
        self.doing.clear()
        self._last = -LIST_SECONDS
        await self.refresh()


def _row(run: RunSummary) -> list[Cell]:
    tags = " ".join(word for word in run.note.split() if word.startswith("#"))
    link: Cell = {"text": f"{run.name} {tags}".strip(), "href": f"/runs/{quote(run.name)}", "rank": run.name}
    started: Cell = {"text": when(run.started), "tone": "date", "rank": run.started or 0.0}
    size: Cell = {"text": amount(run.bytes, "bytes"), "rank": run.bytes}
    verdict, loss, _, _, seconds = summary_cells(run)
    return [link, run.kind, run.base, run.data, verdict, loss, seconds, size, started]


def summary_cells(run: RunSummary) -> list[Cell]:
    """Those of SUMMARY."""
    why = f": {run.damage.removeprefix(f'{run.path}/')}" if run.damage else f" · {run.left}" if run.left else ""
    unit = f" nats/{run.loss_of}" if run.loss is not None and run.kind != "shrink" else ""
    return [
        {"text": run.state + why, "tone": TONES.get(run.state, "dim")},
        _figure(run.loss, amount(run.loss) + unit),
        _figure(run.bits_per_byte, amount(run.bits_per_byte)),
        _figure(run.tokens, amount(run.tokens, "count")),
        _figure(run.seconds, amount(run.seconds, "s")),
    ]


def _figure(value: float | None, text: str) -> Cell:
    return {"text": text if value is not None else "", "rank": value if value is not None else -1.0}

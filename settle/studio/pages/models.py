"""Models: what is here and what can be done with it, how another one comes here, what fits and what was measured."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from nicegui import ui

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Event
from settle.base.files import home
from settle.base.run import Run
from settle.base.words.amounts import amount, three_digits
from settle.jobs.tradeoffs import MeasuredResult, measured_results, read_tradeoffs
from settle.library.catalogue import catalogue
from settle.library.deletion import folder_size, prunable_size
from settle.library.pull import origin_in_words
from settle.library.pull.hub import host
from settle.library.store import StoredModel, all_models, damaged_models
from settle.plan.fit.report import fit_models
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_list import USES, describe
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import Facts, Slot, button, card, confirmed, empty_state, failure, words
from settle.studio.pages import Page
from settle.studio.pareto import show_tradeoffs
from settle.studio.table import Cell, Table
from settle.studio.visit import Visit, in_thread, reported

PRUNABLE = "checkpoints of finished runs"
CONTEXTS = ("2k", "4k", "8k", "32k", "128k")
MOST_FITTING = 20  # models that are listed, the largest first
# what a button leads to, with the model's name
WAYS = {
    "Chat": "/chat?all=1&model={}",
    "Tune": "/new?command=tune&model={}",
    "Shrink": "/new?command=shrink&model={}",
    "Decide": "/new?command=tune&objective=decision&model={}",
}


class _Row(NamedTuple):
    """A model in the table. removal: the command that deletes it; frees: bytes; what: else that goes with it."""

    name: str
    cells: list[Cell]
    removal: list[str]
    frees: int
    what: str


class Models(Page):
    """The models of this machine, what fits, what was measured, and pulling with consent."""

    path = "/models"
    title = "Models"
    place = 40
    is_door = True

    async def build(self, visit: Visit) -> None:
        here = _Here()
        with card("Pull a model"):
            pull = _Pull(here)
        await here.show()
        with card("What fits on this machine"):
            fitting = _Fitting(pull)
        if results := {f"{one.kind} {one.name}": one for one in await in_thread(measured_results)}:
            with card("What was measured here"):
                await _show_results(results)
        ui.timer(0.1, fitting.show, once=True)


class _Here:
    """The models of the store and of runs, and the room that settle takes."""

    def __init__(self) -> None:
        self._nothing, self._all = Slot(), ui.element("div")
        with self._all, card("On this machine"):
            columns = ("name", "size", "parameters", "from", "license", "")
            self._table = Table("Models of this machine", columns, (1, 2), sorts=True, on_act=self._act)
            self._damaged = words("", classes="warn")
            self._doing, self._child = Slot(), CommandChild()
            self._room = Facts()
            self._prune = button("Delete checkpoints of finished runs", self._ask_for_checkpoints)
        self._rows: list[_Row] = []

    async def show(self) -> None:
        self._rows, room = await in_thread(_look)
        self._all.set_visibility(bool(self._rows))
        with self._nothing.anew():
            if not self._rows:
                text = "No models yet. Pull one by its name, such as smollm2, or train one on your own text."
                empty_state(text, ("Train a model", "/new?command=train"))
        self._table.show([row.cells for row in self._rows], [row.name for row in self._rows])
        self._damaged.text = " ".join(map(str, await in_thread(damaged_models)))
        self._room.show([(name, amount(size, "bytes")) for name, size in room.items()])
        self._prune.set_visibility(bool(room[PRUNABLE]))

    async def _act(self, name: str, act: str) -> None:
        if act in WAYS:
            ui.navigate.to(WAYS[act].format(quote(name, safe="")))
            return
        row = next(row for row in self._rows if row.name == name)
        self._ask(f"Delete {name} {row.what}: {amount(row.frees, 'bytes')}?", f"Delete {name} for good", row.removal)

    async def _ask_for_checkpoints(self) -> None:
        question = "Delete the checkpoints of finished runs? Their models and records stay."
        self._ask(question, "Delete the checkpoints", ["runs", "--yes", "prune"])

    def _ask(self, question: str, answer: str, line: Sequence[str]) -> None:
        async def delete() -> None:
            freed = (await self._child.read(line))["bytes"]
            self._doing.clear()
            await self.show()
            self._child.status.text = f"{amount(freed, 'bytes')} freed."

        with self._doing.anew():
            confirmed(question, answer, delete, self._doing.clear)


def _look() -> tuple[list[_Row], dict[str, int]]:
    """Return the models, and bytes by what takes them."""
    entries, runs, stored = ModelCatalogue().entries(), Run.all(), {model.name: model for model in all_models()}
    made, needed = {run.name: run for run in runs}, {entry.base for entry in entries}
    return [_row(entry, made, stored, entry.id in needed) for entry in entries], {
        "models, but for linked files": sum(folder_size(model.folder) for model in stored.values()),
        "runs": sum(folder_size(run.path) for run in runs),
        PRUNABLE: sum(map(prunable_size, runs)),
        "free on this disk": shutil.disk_usage(home()).free,
    }


def _row(entry: ModelEntry, made: Mapping[str, Run], stored: Mapping[str, StoredModel], is_base: bool) -> _Row:
    """Make the row of a model. is_base: of an adapter that is here."""
    info, origin = describe(entry), origin_in_words(entry.origin)
    run, model = made.get(entry.origin.rpartition("run ")[2]), stored.get(entry.id.removeprefix("store:"))
    removal, frees, what = list[str](), 0, "from this machine"
    if run:
        removal, frees = ["runs", "--yes", "--", "remove", run.name], folder_size(run.path)
        what = "with everything that its run made"
    elif model:
        removal, frees = ["models", "--yes", "--", "remove", model.name], folder_size(model.folder)
        what = "though adapters here cannot run without it" if is_base else what
    use = USES[info["kind"]] if "kind" in info else ""
    ways = [] if info["broken"] or use else ["Chat"] if entry.adapter else [*WAYS]
    size = entry.adapter.stat().st_size if entry.adapter else info.get("bytes", 0)
    cells: list[Cell] = [
        entry.id,
        {"text": amount(size, "bytes"), "rank": size},
        {"text": amount(info["parameters"], "count") if "kind" in info else "", "rank": info.get("parameters", 0)},
        {"text": origin, "href": f"/runs/{quote(run.name)}"} if run else origin,
        {"text": info["broken"], "tone": "warn"} if info["broken"] else use or (model.license if model else ""),
        {"text": "", "acts": [*ways, *(["Delete"] if removal else [])]},
    ]
    return _Row(entry.id, cells, removal, frees, what)


class _Pull:
    """Two steps: from where and how large, then the button that names both."""

    def __init__(self, here: _Here) -> None:
        self._here = here
        known = [(name, f"{name}: {entry.about}") for name, entry in catalogue().items()]
        self._wanted = Field("Name, owner/name of the hub, or a path", hint="smollm2", options=known,
                             help=f"Looked up on this machine; owner/name also asks the hub, {host()}.")  # fmt: skip
        self._wanted.on("enter", reported(self._look))
        button("Look up", self._look, main=True)
        self._offer, self._child = Slot(), CommandChild()

    async def look_up(self, name: str) -> None:
        self._wanted.put(name)
        await self._look()

    async def _look(self) -> None:
        what = self._wanted.required("no model is named", "write a name, such as smollm2")
        self._offer.clear()
        offer = await self._child.read(["pull", "--dry", "--", what])
        with self._offer.anew():
            self._show(what, offer)

    def _show(self, what: str, offer: Mapping[str, object]) -> None:
        source, size = str(offer["host"] or ""), offer["bytes"]
        known = amount(size, "bytes") if size is not None else "a size that only the download tells"
        Facts([("it is", origin_in_words(str(offer["origin"]))), ("called", str(offer["name"])),
               ("license", str(offer["license"])),
               ("from", source or "this machine: it is linked, and nothing is downloaded"),
               ("download", known if source else ""),
               ("here already", origin_in_words(str(offer["here"] or "")))])  # fmt: skip

        async def pull() -> None:
            result = await self._child.read(["pull", "--", what])
            self._offer.clear()
            await self._here.show()
            self._child.status.text = f"{result['name']} is here."

        button(f"Pull {known} from {source}" if source else "Link it", pull, main=True)


class _Fitting:
    """The table of `settle models fit`, made again for each machine and context."""

    def __init__(self, pull: _Pull) -> None:
        with ui.element("div").classes("columns"):
            self._machine = Field("Machine", hint="this one", help="or another, such as mac m4 pro 24gb",
                                  on_set=reported(self.show))  # fmt: skip
            self._context = Field("Context, tokens", "choice", value="4k", options=CONTEXTS, on_set=reported(self.show))

        async def act(name: str, _: str) -> None:
            await pull.look_up(name)

        self._about = words("", classes="dim").props('role="status"')
        columns = ("model", "type", "memory", "tokens/s", "longest context", "")
        self._table = Table("Models that fit", columns, (2, 3, 4), "", sorts=True, on_act=act)

    async def show(self) -> None:
        self._about.text = "working …"
        events, asked = list[Event](), (self._machine.text or None, self._context.text, 1, False, None, False, None)
        try:
            await in_thread(fit_models, [], *asked, Events(listeners=[events.append]))
        finally:
            self._about.text = ""
        rows: Any = next(event.result["rows"] for event in events if event.kind == "result")
        shown = f"; the {MOST_FITTING} largest are listed" if len(rows) > MOST_FITTING else ""
        self._about.text = (
            f"{len(rows)} models of the catalogue fit{shown}. Speeds are forecasts with an 80 % interval."
        )
        self._table.show(
            [_fitting_cells(row) for row in rows[:MOST_FITTING]], [row["model"] for row in rows[:MOST_FITTING]]
        )


def _fitting_cells(row: Mapping[str, Any]) -> list[Cell]:
    memory, speed, longest = row["memory"]["total"], row["decode"], row["longest_context"]
    interval = f"{three_digits(speed['value'])} ({three_digits(speed['low'])} – {three_digits(speed['high'])})"
    return [row["model"], row["type"], {"text": amount(memory, "bytes"), "rank": memory},
            {"text": interval, "rank": speed["value"]}, {"text": amount(longest, "count"), "rank": longest or 0},
            {"text": "", "acts": ["Look up"]}]  # fmt: skip


async def _show_results(results: Mapping[str, MeasuredResult]) -> None:
    """One of the results of pick and shrink, and the choice of another."""

    async def show() -> None:
        with place.anew():
            try:
                show_tradeoffs(await in_thread(read_tradeoffs, results[choice.text]))
            except SettleError as e:
                failure(e)

    choice = Field("Result", "choice", options=list(results), on_set=show)
    place = Slot()
    await show()

"""Models: what is here and how much room it takes, what fits and what was measured, and how another one comes here."""

import shutil
from collections.abc import Mapping

from nicegui import ui

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.files import home
from settle.base.run import Run
from settle.base.words.amounts import amount
from settle.library.deletion import folder_size, prunable_size
from settle.library.pull.hub import host
from settle.library.store import all_models, store
from settle.plan.fit.report import fit_models
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import Facts, Slot, button, card, failure, words
from settle.studio.pages import Page
from settle.studio.pareto import measured_results, read_tradeoffs, show_tradeoffs
from settle.studio.table import Table, show_listed
from settle.studio.visit import Visit, in_thread, reported


class Models(Page):
    """The store, what fits, what was measured, and pulling with consent."""

    path = "/models"
    title = "Models"
    place = 40
    is_door = True

    async def build(self, visit: Visit) -> None:
        with card("On this machine"):
            here = _Here()
        with ui.element("div").classes("columns"):
            with card("Pull a model"):
                _Pull(here)
            with card("Make room"):
                _removal(here)
        await here.show()
        with card("What was measured here"):
            await _results()
        with card("What fits on this machine"):

            async def fit() -> None:
                await show_listed(place, "Models that fit", _fit, "Nothing of the catalogue fits.")

            button("Show what fits", fit)
            place = Slot()


class _Here:
    """The models of the store, and the room that settle takes."""

    def __init__(self) -> None:
        self._room = Facts()
        empty = "No models yet. Pull one below, or train one."
        self._table = Table("Models of the store", ("name", "size", "from", "license"), (1,), empty)

    async def show(self) -> None:
        rows, room = await in_thread(_look)
        self._table.show(rows)
        self._room.show([(name, amount(size, "bytes")) for name, size in room.items()])


def _look() -> tuple[list[list[str]], dict[str, int]]:
    """Return a row for each model, and bytes by what takes them."""
    models, runs = all_models(), Run.all()
    sizes = {m.name: folder_size(store() / m.name) for m in models}
    return [[m.name, amount(sizes[m.name], "bytes"), m.origin, m.license] for m in models], {
        "models, but for linked files": sum(sizes.values()),
        "runs": sum(folder_size(run.path) for run in runs),
        "of them checkpoints of finished runs": sum(map(prunable_size, runs)),
        "free on this disk": shutil.disk_usage(home()).free,
    }


class _Pull:
    """Two steps: from where and how large, then the button that names both."""

    def __init__(self, here: _Here) -> None:
        self._here = here
        self._wanted = Field("Name, owner/name of the hub, or a path", hint="smollm2",
                             help=f"Looked up on this machine; owner/name also asks the hub, {host()}.")  # fmt: skip
        self._wanted.on("enter", reported(self._look))
        button("Look up", self._look, main=True)
        self._offer = Slot()
        self._child = CommandChild()

    async def _look(self) -> None:
        what = self._wanted.required("no model is named", "write a name, such as smollm2")
        self._offer.clear()
        offer = await self._child.read(["pull", "--dry", "--", what])
        with self._offer:
            self._show(what, offer)

    def _show(self, what: str, offer: Mapping[str, object]) -> None:
        source, size = str(offer["host"] or ""), offer["bytes"]
        known = amount(size, "bytes") if size is not None else "a size that only the download tells"
        Facts([("it is", str(offer["origin"])), ("called", str(offer["name"])), ("license", str(offer["license"])),
               ("from", source or "this machine: it is linked, and nothing is downloaded"),
               ("download", known if source else ""),
               ("here already", str(offer["here"] or ""))])  # fmt: skip

        async def pull() -> None:
            result = await self._child.read(["pull", "--", what])
            self._offer.clear()
            await self._here.show()
            self._child.status.text = f"{result['name']} is here."

        button(f"Pull {known} from {source}" if source else "Link it", pull, main=True)


def _removal(here: _Here) -> None:
    """Build the part that deletes models and checkpoints, once the user allowed it."""
    named = Field("Name of the model", suggest=_named)
    sure = Field("Delete its files", "switch", help="Files that are only linked stay where they are.")

    async def free(allowed: Field, line: list[str], text: str) -> None:
        result = await child.read([line[0], "--yes", *line[1:]])
        allowed.put(False)
        await here.show()
        child.status.text = f"{text}: {amount(result['bytes'], 'bytes')} freed."

    async def remove() -> None:
        if not (sure.value and named.text):
            raise UsageError("nothing was removed", "name the model, and allow its files to be deleted")
        await free(sure, ["models", "--", "remove", named.text], f"{named.text} is removed")
        named.put("")

    async def prune() -> None:
        if not sure_of_all.value:
            raise UsageError("nothing was deleted", "allow the checkpoints to be deleted")
        await free(sure_of_all, ["runs", "prune"], "The checkpoints of finished runs are deleted")

    button("Remove", remove)
    sure_of_all = Field("Delete checkpoints of finished runs", "switch", help="Their models and records stay.")
    button("Delete checkpoints", prune)
    child = CommandChild()


async def _results() -> None:
    """One of the results of pick and shrink, and the choice of another."""
    results = {f"{one.kind} {one.name}": one for one in await in_thread(measured_results)}
    if not results:
        words("Nothing yet: pick compares models on your prompts, shrink the sizes of one.", classes="empty")
        ui.link("Pick a model", "/new?command=pick")
        return

    async def show() -> None:
        with place.anew():
            try:
                show_tradeoffs(await in_thread(read_tradeoffs, results[choice.text]))
            except SettleError as e:
                failure(e)

    choice = Field("Result", "choice", options=list(results), on_set=show)
    place = Slot()
    await show()


def _fit(events: Events) -> None:
    fit_models([], None, "4k", 1, False, None, False, None, events)


def _named(typed: str) -> list[str]:
    return [model.name for model in all_models() if typed in model.name]

"""Models: what is here and how much room it takes, what fits on this machine, and how another one comes here."""

from typing import ClassVar

from nicegui import ui

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.words.amounts import amount
from settle.library.deletion import folder_size
from settle.library.store import all_models, store
from settle.plan.fit.report import fit_models
from settle.studio.command_child import CommandChild
from settle.studio.event_table import show_listed
from settle.studio.field import Field
from settle.studio.layout import button, card, words
from settle.studio.pages import Page
from settle.studio.table import Table
from settle.studio.visit import Visit, in_thread

FROM = "a file or another program of this machine, the package registry, or the model hub (huggingface.co)"


class Models(Page):
    """The store, the table of what fits, and pulling with consent."""

    path: ClassVar[str] = "/models"
    title: ClassVar[str] = "Models"
    place: ClassVar[int | None] = 70

    async def build(self, visit: Visit) -> None:
        child = CommandChild()
        with card("On this machine"):
            used = words("", classes="dim")
            empty = "No models yet. Pull one below, or train one."
            table = Table("Models of the store", ("name", "size", "from", "license"), ("size",), empty)

            async def refresh() -> None:
                sizes = await in_thread(lambda: {m.name: folder_size(store() / m.name) for m in all_models()})
                rows = [[m.name, amount(sizes.get(m.name, 0), "bytes"), m.origin, m.license] for m in all_models()]
                table.show(rows)
                used.text = f"The store takes {amount(sum(sizes.values()), 'bytes')}; linked files are not counted."

            await refresh()
        with ui.element("div").classes("columns"):
            with card("Pull a model"):
                wanted = Field("Name, owner/name of the hub, or a path", hint="smollm2")
                consent = Field("Allow the connection and the download", "switch", help=f"It comes from {FROM}.")

                async def pull() -> None:
                    if not str(wanted.value).strip():
                        raise UsageError("no model is named", "write a name, such as smollm2")
                    if not consent.value:
                        raise UsageError("nothing was pulled", "allow the connection first")
                    result = await child.read(
                        ["pull", str(wanted.value).strip()], lambda lines: setattr(status, "text", lines[-1])
                    )
                    status.text = f"{result['name']} is here."
                    consent.put(False)
                    await refresh()

                button("Pull", pull, main=True)
                status = words("", classes="dim").props('role="status"')
            with card("Remove a model"):
                named = Field("Name of the model", suggest=_named)
                sure = Field("Delete its files", "switch", help="Files that are only linked stay where they are.")

                async def remove() -> None:
                    if not sure.value or not str(named.value).strip():
                        raise UsageError("nothing was removed", "name the model, and allow its files to be deleted")
                    result = await child.read(["models", "remove", str(named.value).strip(), "--yes"])
                    freed.text = f"{result['removed']} is removed: {amount(result['bytes'], 'bytes')} freed."
                    named.put("")
                    sure.put(False)
                    await refresh()

                button("Remove", remove)
                freed = words("", classes="dim").props('role="status"')
        with card("What fits on this machine"):

            async def fit() -> None:
                place.clear()
                with place:
                    await show_listed("Models that fit", _fit, "Nothing of the catalogue fits.")

            button("Show what fits", fit)
            place = ui.element("div").props('aria-live="polite"')


def _fit(events: Events) -> None:
    fit_models([], None, "4k", 1, False, None, False, None, events)


def _named(typed: str) -> list[str]:
    return [model.name for model in all_models() if typed in model.name]

"""Every run, newest first, with what it is doing now."""

import asyncio
from urllib.parse import quote

from nicegui import ui

from settle.base.run.result import TONES
from settle.base.words.amounts import amount
from settle.jobs.run_reports import RunSummary, day, run_summaries
from settle.studio.layout import words
from settle.studio.pages import Page
from settle.studio.table import Cell, Table
from settle.studio.visit import Visit, in_thread

LIST_SECONDS = 2.0  # between two readings of the list: each looks into every run's folder
SUMMARY = ("state", "held-out loss", "bits per byte", "tokens", "time")


class Runs(Page):
    """The list of runs."""

    path = "/"
    title = "Runs"
    place = 10
    is_door = True

    async def build(self, visit: Visit) -> None:
        words("Every run of this machine, newest first. A run that is at work changes as you watch.", classes="dim")
        empty = "No runs yet. Start one in a terminal: settle train FOLDER"
        with ui.element("section").classes("panel"):
            table = Table("Runs", ("run", *SUMMARY, "size", "started"), range(2, 7), empty)
        last = -LIST_SECONDS

        async def refresh() -> None:
            nonlocal last
            now = asyncio.get_running_loop().time()
            if now - last >= LIST_SECONDS:
                table.show([_row(run) for run in await in_thread(run_summaries)])
                last = now

        await refresh()
        visit.every_tick(refresh)


def _row(run: RunSummary) -> list[Cell]:
    link: Cell = {"text": run.name, "href": f"/runs/{quote(run.name)}"}
    return [link, *summary_cells(run), amount(run.bytes, "bytes"), {"text": day(run.started), "tone": "date"}]


def summary_cells(run: RunSummary) -> list[Cell]:
    """Those of SUMMARY."""
    why = f": {run.damage.removeprefix(f'{run.path}/')}" if run.damage else ""
    return [
        {"text": run.state + why, "tone": TONES.get(run.state, "dim")},
        amount(run.loss), amount(run.bits_per_byte), amount(run.tokens, "count"), amount(run.seconds, "s"),
    ]  # fmt: skip

"""Every run, newest first, with what it is doing now."""

import asyncio
from typing import ClassVar
from urllib.parse import quote

from nicegui import ui

from settle.base.words.amounts import amount
from settle.jobs.run_reports import RunSummary, day, run_summaries
from settle.studio.layout import words
from settle.studio.pages import Page
from settle.studio.runs.report import TONES
from settle.studio.table import Cell, Table
from settle.studio.visit import Visit, in_thread

LIST_SECONDS = 2.0  # between two readings of the list: each looks into every run's folder


class Runs(Page):
    """The list of runs."""

    path: ClassVar[str] = "/"
    title: ClassVar[str] = "Runs"
    place: ClassVar[int | None] = 10

    async def build(self, visit: Visit) -> None:
        words("Every run of this machine, newest first. A run that is at work changes as you watch.", classes="dim")
        columns = ("run", "state", "held-out loss", "bits per byte", "tokens", "time", "size", "started")
        empty = "No runs yet. Start one in a terminal: settle train FOLDER"
        with ui.element("section").classes("panel"):
            table = Table("Runs", columns, ("held-out loss", "bits per byte", "tokens", "time", "size"), empty)
        table.show([_row(run) for run in await in_thread(run_summaries)])
        loop = asyncio.get_running_loop()
        last = loop.time()

        async def refresh() -> None:
            nonlocal last
            if loop.time() - last >= LIST_SECONDS:
                table.show([_row(run) for run in await in_thread(run_summaries)])
                last = loop.time()

        visit.every_tick(refresh)


def _row(run: RunSummary) -> list[Cell]:
    state = run.verdict or ("failed" if run.failure and run.status == "interrupted" else run.status)
    why = f": {run.damage.removeprefix(f'{run.path}/')}" if run.damage else ""
    return [
        {"text": run.name, "href": f"/runs/{quote(run.name)}"},
        {"text": state + why, "tone": TONES.get(state, "dim")},
        amount(run.loss), amount(run.bits_per_byte), amount(run.tokens, "count"), amount(run.seconds, "s"),
        amount(run.bytes, "bytes"), {"text": day(run.started), "tone": "date"},
    ]  # fmt: skip

"""Health: what is wrong with a run, a model or this machine, proven live and fixed, and what left the machine."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nicegui import ui

from settle.audit.ledger import began_at, command_of, overview_of_ledgers, show_ledger
from settle.base.words.amounts import when
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import Slot, button, card, words
from settle.studio.pages import Page
from settle.studio.table import Table, show_listed
from settle.studio.visit import Visit, in_thread

TONES = {"proven": "bad", "likely": "warn", "ruled out": "good"}


class Doctor(Page):
    """Findings of a subject with their states, and the ledgers."""

    path = "/doctor"
    title = "Health"
    place = 90

    async def build(self, visit: Visit) -> None:
        with card("What is wrong?"):
            _Looking(visit.query.get("subject", ""))
        with card("What left this machine"):
            await _audit()


async def _audit() -> None:
    """Say it in a line; list only the exceptions, each with its connections."""
    overview = await in_thread(overview_of_ledgers)
    words(overview.sentence)

    async def show(ledger: str, name: str) -> None:
        await show_listed(place, "Connections", partial(show_ledger, ledger), "It reached nothing.")

    if kept := overview.exceptions:
        table = Table("Exceptions", ("began", "command", "what left this machine", ""), on_act=show)
        table.show([[when(began_at(name)), command_of(name), {"text": overview.ledgers[name].sentence, "tone": "long"},
                     {"text": "", "acts": ["Connections"]}] for name in kept], kept)  # fmt: skip
    place = Slot()


class _Looking:
    """The look at one subject, and below it what it found, each with the buttons that prove and fix it."""

    def __init__(self, subject: str) -> None:
        with ui.element("div").classes("columns"):
            self._subject = Field("Subject", value=subject, hint="this machine",
                                  help="a run, a model, a .gguf file, a server, or the folder of a proof")  # fmt: skip
            self._only = Field("Only these checks", hint="all", help="numbers or names, apart by blanks")
        with ui.element("div").classes("row"):
            button("Look", self._look, main=True)
            button("Prove all", partial(self._look, ["--prove", "all"]))
            button("Stop", lambda: self._child.stop())
        self._child = CommandChild()
        self._place = Slot()

    async def _look(self, more: Sequence[str] = ()) -> None:
        """Examine, or examine and prove, and show all findings."""
        self._place.clear()
        result = await self._doctor(more)
        with self._place:
            for finding in result.get("findings", ()):
                with Slot(is_read=False) as place:
                    self._show(finding, place)
            if not result.get("findings"):
                words("No check finds anything wrong.", classes="good")
            for name, why in result.get("failed", {}).items():
                words(f"{name.replace('_', ' ')} could not look: {why}", classes="warn")

    async def _doctor(self, more: Sequence[str]) -> Mapping[str, Any]:
        """Return the result of the command."""
        only = [f"--only={check}" for check in self._only.text.split()]
        subject = ["--", self._subject.text] if self._subject.text else []
        return await self._child.read(["doctor", *only, *more, *subject])

    def _show(self, finding: Mapping[str, Any], place: Slot) -> None:
        """Show a finding with its state, its evidence, its fix, and what can be done about it."""
        number, state = str(finding["number"]), str(finding["state"])
        words(f"{number} · {finding['what']}", "h3")
        words(state, classes=TONES.get(state, "warn"))
        for line in (*finding["evidence"], *finding.get("proof", {}).get("sentences", ())):
            words(str(line))
        if finding.get("mended"):
            words(f"Fix: {finding['mended']}", classes="good")
        elif finding["fix"]:
            words(str(finding["fix"]), "pre")

        async def act(*options: str) -> None:
            (found,) = (await self._doctor(["--prove", number, *options]))["findings"]
            with place.anew():
                self._show(found, place)

        with ui.element("div").classes("row"):
            if state == "likely" and "proof" not in finding:
                button(f"Prove {number}", act)
            if state != "ruled out" and not finding.get("mended"):
                button(f"{'Fix' if state == 'proven' else 'Prove and fix'} {number}", partial(act, "--fix"))

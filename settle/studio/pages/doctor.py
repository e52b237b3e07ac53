"""Doctor and audit: what is wrong with a run, a model or this machine, proven live, and what left the machine."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nicegui import ui

from settle.audit.ledger import list_ledgers, show_ledger
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import Slot, button, card, words
from settle.studio.pages import Page
from settle.studio.table import show_listed
from settle.studio.visit import Visit

TONES = {"proven": "bad", "likely": "warn", "ruled out": "good"}
DONE = re.compile(r"^A/B.*?\b(\d[\d,]*) of (\d[\d,]*)\b")  # in a line about progress


class Doctor(Page):
    """Findings of a subject with their states, and the ledgers."""

    path = "/doctor"
    title = "Health"
    place = 90

    async def build(self, visit: Visit) -> None:
        with card("What is wrong?"):
            _Looking(visit.query.get("subject", ""))
        with card("What left this machine"):
            await show_listed(Slot(), "Ledgers", list_ledgers, "No command has left a ledger yet.")
            named = Field("Connections of", hint="serve", help="a run, or a command such as serve")

            async def show() -> None:
                name = named.required("no run or command is named", "write the name of one in the list")
                await show_listed(connections, "Connections", partial(show_ledger, name), "It reached nothing.")

            button("Show", show)
            connections = Slot()


class _Looking:
    """The look at one subject, and below it what it found, each with the button that proves it."""

    def __init__(self, subject: str) -> None:
        self._subject = Field("Subject", value=subject, hint="this machine",
                              help="a run, a model, a .gguf file, a server, or the folder of a proof")  # fmt: skip
        self._only = Field("Only these checks", hint="all", help="numbers or names, apart by blanks")
        help = "into new files where it can, tested again, and taken back where it does not help"
        self._fix = Field("Write the fix of what is proven", "switch", help=help)
        with ui.element("div").classes("row"):
            button("Look", self._look, main=True)
            button("Prove all", self._prove_all)
            button("Stop", lambda: self._child.stop())
        self._child = CommandChild()
        self._bar = ui.element("progress").props('aria-label="How far the proof is"')
        self._bar.set_visibility(False)
        self._place = Slot()

    async def _look(self, more: Sequence[str] = ()) -> None:
        """Examine, or examine and prove, and show all findings."""
        self._place.clear()
        result = await self._doctor(more)
        with self._place:
            for finding in result.get("findings", ()):
                self._show(finding)
            if not result.get("findings"):
                words("No check finds anything wrong.", classes="good")
            for name, why in result.get("failed", {}).items():
                words(f"{name.replace('_', ' ')} could not look: {why}", classes="warn")

    async def _prove_all(self) -> None:
        await self._look(["--prove", "all"])

    async def _doctor(self, more: Sequence[str]) -> Mapping[str, Any]:
        """Return the result of the command."""
        only = [f"--only={check}" for check in self._only.text.split()]
        subject = ["--", self._subject.text] if self._subject.text else []
        fix = ["--fix"] if more and self._fix.value else []
        try:
            return await self._child.read(["doctor", *only, *more, *fix, *subject], self._show_progress)
        finally:
            self._bar.set_visibility(False)

    def _show_progress(self, line: str) -> None:
        if done := DONE.match(line):
            self._bar.set_visibility(True)
            value, most = (int(number.replace(",", "")) for number in done.groups())
            self._bar.props.update({"value": value, "max": most})

    def _show(self, finding: Mapping[str, Any]) -> None:
        """Show a finding with its state, its evidence and its fix."""

        async def prove() -> None:
            result = await self._doctor(["--prove", str(finding["number"])])
            with place.anew():
                for proven in result["findings"]:
                    _describe(proven)

        with Slot(is_read=False) as place:
            _describe(finding)
            if finding["state"] == "likely":
                button(f"Prove {finding['number']}", prove)


def _describe(finding: Mapping[str, Any]) -> None:
    words(f"{finding['number']} · {finding['what']}", "h3")
    words(str(finding["state"]), classes=TONES.get(str(finding["state"]), "warn"))
    for line in (*finding["evidence"], *finding.get("proof", {}).get("sentences", ())):
        words(str(line))
    if finding.get("mended"):
        words(f"Fix: {finding['mended']}", classes="good")
    elif finding["fix"]:
        words(str(finding["fix"]), "pre")

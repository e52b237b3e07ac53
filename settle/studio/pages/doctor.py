"""Doctor and audit: what is wrong with a run, a model or this machine, proven live, and what left the machine."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nicegui import ui

from settle.audit.report import list_ledgers, show_ledger
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.studio.command_child import CommandChild
from settle.studio.event_table import show_listed
from settle.studio.field import Field
from settle.studio.layout import button, card, words
from settle.studio.pages import Page
from settle.studio.visit import Visit

TONES = {"proven": "bad", "likely": "warn", "ruled out": "good"}
DONE = re.compile(r"\b(\d[\d,]*) of (\d[\d,]*)\b")  # in a line about progress


class Doctor(Page):
    """Findings of a subject with their states, and the ledgers."""

    path: ClassVar[str] = "/doctor"
    title: ClassVar[str] = "Doctor and audit"
    place: ClassVar[int | None] = 80

    async def build(self, visit: Visit) -> None:
        with card("What is wrong?"):
            _Looking(visit.query.get("subject", ""))
        with card("What left this machine"):
            await show_listed("Ledgers", list_ledgers, "No command has left a ledger yet.")
            named = Field("Connections of", hint="serve", help="a run, or a command such as serve")

            async def show() -> None:
                name = str(named.value).strip()
                if not name:
                    raise UsageError("no run or command is named", "write the name of one in the list")

                def read(events: Events) -> None:
                    show_ledger(name, events)

                connections.clear()
                with connections:
                    await show_listed("Connections", read, "It reached nothing.")

            button("Show", show)
            connections = ui.element("div").props('aria-live="polite"')


class _Looking:
    """The look at one subject, and below it what it found, each with the button that proves it."""

    def __init__(self, subject: str) -> None:
        self._child = CommandChild()
        self._subject = Field("Subject", value=subject, hint="this machine",
                              help="a run, a model, a .gguf file, a server, or the folder of a proof")  # fmt: skip
        self._only = Field("Only these checks", hint="all", help="numbers or names, apart by blanks")
        help = "into new files where it can, tested again, and taken back where it does not help"
        self._fix = Field("Write the fix of what is proven", "switch", help=help)
        with ui.element("div").classes("row"):
            button("Look", self._look, main=True)
            button("Prove all", self._prove_all)
            button("Stop", self._child.stop)
        self._status = words("", classes="dim").props('role="status"')
        self._bar = ui.element("progress").props('aria-label="How far the proof is"')
        self._bar.set_visibility(False)
        self._place = ui.element("div").props('aria-live="polite"')

    async def _look(self) -> None:
        await self._run([])

    async def _prove_all(self) -> None:
        await self._run(["--prove", "all"])

    async def _run(self, more: Sequence[str]) -> None:
        """Looks, or looks and proves, and shows all that was found."""
        self._place.clear()
        result = await self._doctor(more)
        findings = result.get("findings")
        with self._place:
            if not findings:
                words("No check finds anything wrong.", classes="good")
            for finding in findings or ():
                self._show(finding)
            for name, why in result.get("failed", {}).items():
                words(f"{name.replace('_', ' ')} could not look: {why}", classes="warn")

    async def _doctor(self, more: Sequence[str]) -> Mapping[str, Any]:
        """The result of the command, whose talk is shown as it works."""
        named = [str(self._subject.value).strip()] if str(self._subject.value).strip() else []
        only = [word for check in str(self._only.value).split() for word in ("--only", check)]
        line = ["doctor", *named, *only, *more, *(["--fix"] if more and self._fix.value else [])]
        self._status.text = "looking …"
        try:
            return await self._child.read(line, self._show_talk)
        finally:
            self._status.text = ""
            self._bar.set_visibility(False)

    def _show_talk(self, lines: Sequence[str]) -> None:
        self._status.text = lines[-1]
        if lines[-1].startswith("A/B") and (done := DONE.search(lines[-1])):
            self._bar.set_visibility(True)
            self._bar.props.update({"value": _int(done[1]), "max": _int(done[2])})

    def _show(self, finding: Mapping[str, Any]) -> None:
        """A finding with its state, its evidence and its fix."""
        place = ui.element("div")

        async def prove() -> None:
            result = await self._doctor(["--prove", str(finding["number"])])
            place.clear()
            with place:
                for proven in result["findings"]:
                    _describe(proven)

        with place:
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


def _int(text: str) -> int:
    return int(text.replace(",", ""))

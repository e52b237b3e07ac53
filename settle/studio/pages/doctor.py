"""Doctor and audit: what is wrong with a run, a model or this machine, proven live, and what left the machine."""

from collections.abc import Mapping
from typing import ClassVar

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


class Doctor(Page):
    """Findings of a subject with their states, and the ledgers."""

    path: ClassVar[str] = "/doctor"
    title: ClassVar[str] = "Doctor and audit"
    place: ClassVar[int | None] = 80

    async def build(self, visit: Visit) -> None:
        child = CommandChild()
        with card("What is wrong?"):
            subject = Field("Subject", value=visit.query.get("subject", ""), hint="this machine",
                            help="a run, a model, a .gguf file, a server, or the folder of a proof")  # fmt: skip
            check = Field("Prove", help="number or name of one check, or all; left empty, it only looks")

            async def look() -> None:
                line = ["doctor", *filter(None, [str(subject.value).strip()])]
                line += ["--prove", str(check.value).strip()] if str(check.value).strip() else []
                place.clear()
                with place:
                    talk = words("looking …", "pre", "tall")
                result = await child.read(line, lambda lines: setattr(talk, "text", "\n".join(list(lines)[-12:])))
                with place:
                    _show(result)

            with ui.element("div").classes("row"):
                button("Look", look, main=True)
                button("Stop looking", child.stop)
            place = ui.element("div").props('aria-live="polite"')
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


def _show(result: Mapping[str, object]) -> None:
    """Each finding with its state, its evidence and its fix."""
    findings = result.get("findings")
    if not isinstance(findings, list) or not findings:
        words("Nothing is wrong.", classes="good")
        return
    for finding in findings:
        words(f"{finding['number']} · {finding['what']}", "h3")
        words(str(finding["state"]), classes=TONES.get(str(finding["state"]), "warn"))
        for line in finding["evidence"]:
            words(str(line))
        if finding["fix"]:
            words(str(finding["fix"]), "pre")

"""A control with its label: what a person types, chooses or switches, and what is wrong with it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from settle.base.errors import UsageError
from settle.base.visible import visible_line
from settle.studio.visit import in_thread

Kind = Literal["text", "lines", "choice", "switch", "slider"]


class Field(Element, component="field.js"):
    """One setting or question on a page, with its control.

    value: of a choice, its first option where it is none of them. options: of a choice or a slider, (value, label), or
    a value that is its own label; of a text, proposed values. hint: the effective value when it is left empty. suggest:
    proposes values for the typed text, in a thread. on_set: called when `value` changes. sends: of lines: Enter emits
    "enter" and begins no line.
    """

    def __init__(
        self,
        label: str,
        kind: Kind = "text",
        *,
        value: str | bool = "",
        options: Sequence[str | tuple[str, str]] = (),
        hint: str = "",
        help: str = "",
        on_set: Callable[[], Awaitable[None]] | None = None,
        suggest: Callable[[str], Sequence[str]] | None = None,
        sends: bool = False,
    ) -> None:
        super().__init__()
        pairs = [(option, option) if isinstance(option, str) else option for option in options]
        if kind in ("choice", "slider") and value not in dict(pairs):
            value = pairs[0][0]
        self.value, self.on_set, self._suggest = value, on_set, suggest
        self.props.update({"name": f"field{self.id}", "label": label, "kind": kind, "value": value, "puts": 0})
        self.props.update({"hint": visible_line(hint), "help": help, "error": "", "sends": sends})
        self.offer(options)
        self.on("set", self._receive)
        if suggest:
            self.on("typed", self._complete, throttle=0.2, leading_events=False)

    @property
    def text(self) -> str:
        """What was typed or chosen, without the blanks around it."""
        return str(self.value).strip()

    def required(self, what: str, fix: str) -> str:
        """Return the text. Raises UsageError where there is none."""
        if not self.text:
            raise UsageError(what, fix)
        return self.text

    def as_option(self, flag: str) -> list[str]:
        """Return the text as the value of an option, whatever it begins with; nothing where there is none."""
        return [f"{flag}={self.text}"] if self.text else []

    def put(self, value: str | bool) -> None:
        """Replace the value."""
        self.value = self.props["value"] = value
        self.props["puts"] += 1

    def show_error(self, text: str) -> None:
        if self.props["error"] != text:
            self.props["error"] = text

    async def _receive(self, event: GenericEventArguments) -> None:
        value = event.args
        if isinstance(value, str | bool) and value != self.value:
            self.value = value
            if self.on_set:
                await self.on_set()

    async def _complete(self, event: GenericEventArguments) -> None:
        suggest, typed = self._suggest, event.args
        if suggest and isinstance(typed, str):
            self.offer(await in_thread(suggest, typed))

    def offer(self, options: Sequence[str | tuple[str, str]]) -> None:
        """Replace what may be chosen, or is proposed; the value stays."""
        pairs = [(option, option) if isinstance(option, str) else option for option in options]
        shown = [{"value": value, "label": visible_line(label)} for value, label in pairs]
        if shown != self.props.get("options"):
            self.props["options"] = shown

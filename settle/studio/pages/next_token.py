"""What a model holds likely, token by token: branch at any of them, and see a second model beside it."""

from collections.abc import Callable
from typing import TypeVar

from nicegui import ui
from nicegui.element import Element
from pydantic import BaseModel
from pydantic import Field as Limit

from settle.base.python_command import shell_line
from settle.base.visible import visible_line
from settle.infer.next_token import Sampler
from settle.infer.token_reader import ReadingPair, TextReading, TokenReader
from settle.infer.token_session import beside, branch, summary
from settle.library.resolve import resolve
from settle.studio.field import Field
from settle.studio.layout import button, card, words
from settle.studio.open_models import OPEN_MODELS, model_names
from settle.studio.pages import Page
from settle.studio.visit import Visit, in_thread, reported


class TokenChoice(BaseModel):
    """What a person chose: rank `rank` at place `at`, and how the text continues behind it, for `count` tokens."""

    at: int = Limit(ge=0)
    rank: int = Limit(ge=1)
    temperature: float = Limit(ge=0)
    top_k: int = Limit(ge=0)
    top_p: float = Limit(gt=0, le=1)
    count: int = Limit(ge=0, le=256)


class TokenView(Element, component="token_view.js"):
    """on_place: called with the place whose alternatives the person wants to see. on_choice: with one of them."""

    def __init__(self, on_place: Callable[[int], object], on_choice: Callable[[TokenChoice], object]) -> None:
        super().__init__()
        self.props["tokens"], self.props["place"] = [], None
        self.on("place", lambda event: on_place(int(event.args)))
        self.on("choice", lambda event: on_choice(TokenChoice.model_validate(event.args)))

    def show(self, reading: TextReading, pair: ReadingPair | None) -> None:
        """Replace the text, and show what comes after it."""
        gains = list(pair.gains) if pair and pair.gains else [None] * len(reading.ids)
        self.props["tokens"] = [
            {**reading.figures_json(at), "text": visible_line(text.text), "special": text.is_special,
             "whole": visible_line(text.whole), "gain": gains[at]}
            for at, text in enumerate(reading.texts)
        ]  # fmt: skip
        self.show_place(reading, len(reading.ids))

    def show_place(self, reading: TextReading, at: int) -> None:
        """Show what could have been at token `at`; N is what comes after the text."""
        place = reading.place_json(at)
        for entry in place["top"]:
            entry["text"] = visible_line(entry["text"])
        self.props["place"] = {**place, "at": at}


T = TypeVar("T")

NONE = ""  # no second model
TEXT = "The capital of France is"


class NextToken(Page):
    """A text as tokens of a model."""

    path = "/tokens"
    title = "Next token"
    place = 70

    async def build(self, visit: Visit) -> None:
        Reading(await model_names(), visit.query.get("model", ""), visit.query.get("text", TEXT))


class Reading:
    """The form, and what was read by it; every branch can be taken back."""

    def __init__(self, names: list[str], name: str, text: str) -> None:
        self._history: list[TextReading] = []
        self._pair: ReadingPair | None = None
        self._draws = 0
        with card("A text"):
            with ui.element("div").classes("columns"):
                self._model = Field("Model", "choice", value=name, options=names)
                self._other = Field("A second model beside it", "choice", options=[(NONE, "none"), *names])
            self._input = Field("Text", "lines", value=text)
            self._is_question = Field("It is a question: put it into the model's chat template", "switch")
            with ui.element("div").classes("row"):
                button("Read it", self._read, main=True)
                self._back = button("Take the last branch back", self._take_back)
            self._note = words("", classes="dim").props('role="status"')
        with card("Its tokens"):
            words(
                "Each token with its probability after what stands before it: the redder, the less likely. Choose one "
                "to see what else could have stood there, and one of those to continue the text with it.",
                classes="dim",
            )  # fmt: skip
            self._view = TokenView(self._look, reported(self._branch))
            self._command = words("", classes="code")
        self._back.set_visibility(False)

    async def _read(self) -> None:
        name, other, text = self._model.text, self._other.text, str(self._input.value)
        is_question = bool(self._is_question.value)

        def read() -> tuple[TextReading, ReadingPair | None]:
            with OPEN_MODELS.use(TokenReader, *map(resolve, dict.fromkeys([name, other or name]))) as readers:
                ids = readers[0].question(text) if is_question else readers[0].encode(text)
                reading = readers[0].read(ids)
                return reading, beside(reading, readers[-1], text) if other else None

        reading, self._pair = await self._wait_for("reading …", read)
        self._history, self._name = [], name
        self._show(reading)
        options = [*(["--template"] if is_question else []), *self._other.as_option("--with")]
        line = ["tokens", *options, "--", name, text] if text.startswith("-") else ["tokens", name, text, *options]
        self._command.text = shell_line("settle", *line)

    async def _wait_for(self, what: str, work: Callable[[], T]) -> T:
        """Return what slow work returns, while the note says what is done."""
        self._note.text = what
        try:
            return await in_thread(work)
        finally:
            self._note.text = ""

    def _show(self, reading: TextReading) -> None:
        self._history.append(reading)
        shown = self._pair if self._pair and self._pair.one is reading else None
        self._view.show(reading, shown)
        self._note.text = summary(reading, shown)
        self._back.set_visibility(len(self._history) > 1)

    def _look(self, at: int) -> None:
        if self._history and 0 <= at <= len(self._history[-1].ids):
            self._view.show_place(self._history[-1], at)

    async def _branch(self, choice: TokenChoice) -> None:
        """Continues the text with another token."""
        if not self._history:
            return
        reading, name, seed = self._history[-1], self._name, self._draws
        distribution = reading.before(choice.at) if choice.at <= len(reading.ids) else None
        if distribution is None or choice.rank > len(distribution.ids):
            return
        sampler = Sampler(choice.temperature, choice.top_k, choice.top_p)
        token = int(distribution.ids[choice.rank - 1])

        def write() -> TextReading:
            with OPEN_MODELS.use(TokenReader, resolve(name)) as (reader,):
                return branch(reader, reading, choice.at, token, choice.count, sampler, seed)

        self._draws += 1
        self._show(await self._wait_for("writing …", write))

    async def _take_back(self) -> None:
        if len(self._history) > 1:
            self._history.pop()
            self._show(self._history.pop())

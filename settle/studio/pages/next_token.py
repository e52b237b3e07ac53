"""What a model holds likely, token by token: branch at any of them, and see a second model beside it."""

from typing import ClassVar

from nicegui import ui

from settle.base.errors import SettleError
from settle.infer.tokens.next_token import Sampler
from settle.infer.tokens.session import beside, branch, summary
from settle.infer.tokens.text_reading import ReadingPair, TextReading
from settle.studio.field import Field
from settle.studio.forms.arguments import shell_line
from settle.studio.layout import button, card, words
from settle.studio.pages import Page
from settle.studio.tokens.open_models import OPEN_MODELS, model_names, token_reader
from settle.studio.tokens.token_view import Choice, TokenView
from settle.studio.visit import Visit, in_thread, report

NONE = ""  # no second model
TEXT = "The capital of France is"
MOST_WRITTEN = 256  # tokens at once


class NextToken(Page):
    """A text as tokens of a model."""

    path: ClassVar[str] = "/tokens"
    title: ClassVar[str] = "Next token"
    place: ClassVar[int | None] = 40

    async def build(self, visit: Visit) -> None:
        names = await model_names()
        asked = visit.query.get("model", "")
        Reading(names, asked if asked in names else names[0], visit.query.get("text", TEXT)).build()


class Reading:
    """The form, and what was read by it; every branch can be taken back."""

    def __init__(self, names: list[str], name: str, text: str) -> None:
        self._names, self._name, self._text = names, name, text
        self._history: list[TextReading] = []
        self._pair: ReadingPair | None = None
        self._draws = 0

    def build(self) -> None:
        with card("A text"):
            options = [(name, name) for name in self._names]
            with ui.element("div").classes("columns"):
                self._model = Field("Model", "choice", value=self._name, options=options)
                self._other = Field("A second model beside it", "choice", options=[(NONE, "none"), *options])
            self._input = Field("Text", "lines", value=self._text)
            self._is_question = Field("It is a question: put it into the model's chat template", "switch", value=False)
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
            self._view = TokenView(self._look, self._branch)
            self._command = words("", classes="code")
        self._back.set_visibility(False)

    async def _read(self) -> None:
        name, other, text = str(self._model.value), str(self._other.value), str(self._input.value)
        is_question = bool(self._is_question.value)

        def read() -> tuple[TextReading, ReadingPair | None]:
            with OPEN_MODELS.use(token_reader, name, *([other] if other and other != name else [])) as readers:
                ids = readers[0].question(text) if is_question else readers[0].encode(text)
                reading = readers[0].read(ids)
                return reading, beside(reading, readers[-1], text) if other else None

        self._note.text = "reading …"
        try:
            reading, pair = await in_thread(read)
        except SettleError:
            self._note.text = ""
            raise
        self._history, self._pair, self._name = [], pair, name
        self._show(reading)
        line = ["tokens", name, text, *(["--template"] if is_question else []), *(["--with", other] if other else [])]
        self._command.text = shell_line(line)

    def _show(self, reading: TextReading) -> None:
        self._history.append(reading)
        shown = self._pair if self._pair and self._pair.one is reading else None
        self._view.show(reading, shown)
        self._note.text = summary(reading, shown)
        self._back.set_visibility(len(self._history) > 1)

    def _look(self, at: int) -> None:
        if self._history and 0 <= at <= len(self._history[-1].ids):
            self._view.show_place(self._history[-1], at)

    async def _branch(self, choice: Choice) -> None:
        """Continues the text with another token."""
        if not self._history:
            return
        reading, name, seed = self._history[-1], self._name, self._draws
        distribution = reading.before(choice.at) if choice.at <= len(reading.ids) else None
        if distribution is None or not 1 <= choice.rank <= len(distribution.ids):
            return
        sampler = Sampler(max(0.0, choice.temperature), max(0, choice.top_k), min(1.0, max(0.01, choice.top_p)))
        token, count = int(distribution.ids[choice.rank - 1]), min(max(0, choice.count), MOST_WRITTEN)

        def write() -> TextReading:
            with OPEN_MODELS.use(token_reader, name) as (reader,):
                return branch(reader, reading, choice.at, token, count, sampler, seed)

        self._draws += 1
        self._note.text = "writing …"
        try:
            self._show(await in_thread(write))
        except SettleError as e:
            self._note.text = ""
            report(e)

    async def _take_back(self) -> None:
        if len(self._history) > 1:
            self._history.pop()
            self._show(self._history.pop())

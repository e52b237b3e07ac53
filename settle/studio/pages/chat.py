"""Chat with a model, or compare two without knowing which of them wrote what, and vote."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Event, Warn
from settle.base.python_command import shell_line
from settle.base.registry import Part
from settle.base.settings import resolve
from settle.base.visible import visible
from settle.evaluate.blind.session import Answers, BlindSession, engine_beside
from settle.evaluate.blind.votes import FEWEST, VOTES, AnswerPair, Ballots, Vote, list_votes, preferences
from settle.infer.chat_session import ChatSession, Sampling
from settle.infer.engine import Engine
from settle.library.resolve import resolve_gguf
from settle.studio.field import Field
from settle.studio.forms.arguments import Given, arguments
from settle.studio.forms.form import Form
from settle.studio.forms.settings import describe
from settle.studio.layout import START, Slot, button, card, empty_state, words
from settle.studio.open_models import OPEN_MODELS, chat_models
from settle.studio.pages import Page
from settle.studio.table import show_listed
from settle.studio.visit import Visit, in_thread

SHOW_SECONDS = 0.1  # between two looks at what has been written
FIRST = ("temperature", "max_tokens", "system")
WITHOUT = ("name", "prompt", "with_", "draft", "context", "threads")  # the page asks for them, or has its own
NOTHING = "(it ended the text at once)"
BLIND = (
    "A and B are the two models, in an order that is drawn for each pair. Both get the same messages; the answer that "
    "you prefer continues the conversation. Once you ask who wrote what, the votes are final."
)


class Chat(Page):
    """A conversation with one model, or with two."""

    path = "/chat"
    title = "Chat"
    place = 20
    is_door = True

    async def build(self, visit: Visit) -> None:
        chats, others = await in_thread(chat_models)
        one, two = (visit.query.get(key, "") for key in ("model", "with"))
        is_all = not chats or "all" in visit.query
        names = chats + [name for name in others if is_all or name in (one, two)]
        if not names:
            empty_state("No model to chat with yet.", ("Pull SmolLM2", "/models"), ("Train one", START))
            return
        talk = Talk()
        with ui.element("div").classes("talk"):
            with card("Models"):
                talk.choice = ModelChoice(visit.studio.commands()["chat"], names, one, two, talk.changed)
                if not is_all:
                    ui.link("Show models that only complete text, too", "/chat?all=1")
            with ui.element("div"):
                talk.build()
        with card("Votes"):
            talk.votes = Slot(is_read=False)
        await talk.show_votes()
        ui.context.client.on_delete(talk.stop)


class ModelChoice:
    """Which models, and how their answers are drawn: the settings of `settle chat`."""

    def __init__(
        self, command: type[Part], names: list[str], one: str, two: str, on_change: Callable[[], Awaitable[None]]
    ) -> None:
        self.command = command
        self.one = Field("Model", "choice", value=one, options=names, on_set=on_change)
        others: list[str | tuple[str, str]] = [("", "no other model"), *names]
        self.two = Field("Compare with", "choice", value=two, options=others, on_set=on_change)
        self.form = Form(command, describe(command), on_change, FIRST, WITHOUT)
        words("The same in a terminal", "h3")
        self.line = words("", "pre", "commandline")
        self.show()

    @property
    def names(self) -> list[str]:
        return [field.text for field in (self.one, self.two) if field.text]

    def show(self) -> None:
        self.line.text = shell_line("settle", *arguments(self.command, self._given()))
        self.form.show_error(None)

    def values(self) -> Mapping[str, Any]:
        """Return all settings. Raises UsageError for one that is wrong, which is shown at its field, too."""
        try:
            return resolve(self.command, [("asked", self._given())]).value.model_dump()
        except SettleError as e:
            self.form.show_error(e)
            raise

    def _given(self) -> dict[str, Given]:
        return dict(zip(("name", "with_"), self.names, strict=False)) | self.form.given()


@dataclass
class Turn:
    """A message and its answers on the page. below: the place of what can be done with them."""

    place: ui.element
    heads: list[TextElement]
    answers: list[TextElement]
    below: ui.element
    pair: AnswerPair | None = None

    @classmethod
    def add(cls, text: str, heads: Sequence[str]) -> "Turn":
        with ui.element("div").classes("turn") as place:
            words("You", "h3")
            words(text, classes="message mine")
            with ui.element("div").classes("columns"):
                sides = []
                for head in heads:
                    with ui.element("div"):
                        sides.append((words(head, "h3"), words("…", classes="message")))
            below = ui.element("div").classes("row")
        return cls(place, [head for head, _ in sides], [answer for _, answer in sides], below)

    def show(self, texts: Sequence[str], if_empty: str) -> None:
        for element, text in zip(self.answers, texts, strict=True):
            shown = visible(text).lstrip("\n") or if_empty
            if element.text != shown:
                element.text = shown


class Talk:
    """What was said since the page was opened. messages: of a conversation with one model; blind: with two."""

    choice: ModelChoice
    votes: Slot

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.blind: BlindSession | None = None
        self.models: list[str] = []  # of the latest turn
        self.turns: list[Turn] = []
        self.answers: Answers | None = None
        self.is_stopping = False

    def build(self) -> None:
        with card("Conversation"):
            self.about = words("", classes="dim")
            self.proof = words("", classes="good").props('role="status"')
            with ui.element("div").classes("log").props('tabindex="0" role="region" aria-label="What was said"'):
                self.log = ui.element("div").props('role="log"')
            self.message = Field("Message", "lines", help="Enter sends, Shift+Enter begins a line", sends=True)
            with ui.element("div").classes("row"):
                send = button("Send", self._send, main=True)
                self.stopper = button("Stop", self.stop)
                button("New conversation", self._forget)
                self.revealer = button("Show who wrote what", self._end)
            self.note = words("", classes="dim").props('role="status"')
        self.message.on("enter", js_handler=f"() => getHtmlElement({send.id}).click()")
        self.stopper.set_visibility(False)
        self._show()

    async def changed(self) -> None:
        if self.models and self.models != self.choice.names:
            await self._end()
        self.choice.show()
        self._show()

    def _show(self) -> None:
        self.about.text = BLIND if len(self.choice.names) == 2 else "" if self.turns else "Nothing was said yet."
        self.revealer.set_visibility(bool(self.blind and self.blind.pairs))

    async def _send(self) -> None:
        settings, self.models = self.choice.values(), self.choice.names
        text = self.message.required("there is nothing to answer", "write a message")
        if len(self.models) == 2 and self.blind is None:
            self.blind = BlindSession([resolve_gguf(name) for name in self.models], settings["seed"])
        with self.log:
            turn = Turn.add(text, "AB" if self.blind else self.models)
        self.message.put("")
        self.log.props["aria-busy"] = "true"  # read aloud once it is whole
        try:
            turn.pair = await self._answer(turn, text, settings)
            self.turns.append(turn)
            if turn.pair:
                with turn.below:
                    for choice, label in VOTES.items():
                        button(label, partial(self._vote, turn, choice))
                await self._count()
        except SettleError:
            if turn not in self.turns:
                turn.place.delete()
                self.message.put(text)
            raise
        finally:  # together with the button that sends: a message typed from now on is not lost
            self.log.props["aria-busy"] = "false"
            self._show()

    async def _answer(self, turn: Turn, text: str, settings: Mapping[str, Any]) -> AnswerPair | None:
        """Show the answers as they are written; return the pair where two models answer."""
        session, messages, events = self.blind, [*self.messages], list[Event]()
        sampling = Sampling(**{each.name: settings[each.name] for each in fields(Sampling)})
        system, template = settings["system"], settings["template"]
        self.answers, self.is_stopping = None, False

        def work() -> AnswerPair | None:
            with OPEN_MODELS.use(engine_of_two if session else engine, *self.models) as engines:
                if session:
                    self.answers = session.ask(engines, text, sampling, system, template)
                    return session.keep(self.answers)
                log = Events(listeners=[events.append])
                chat = ChatSession(engines[0], sampling, log, system, template, messages)
                self.answers = Answers([partial(chat.answer, text)])
                self.answers.wait()
                return None

        self.stopper.set_visibility(True)
        task = asyncio.ensure_future(in_thread(work))
        try:
            while not task.done():
                await asyncio.sleep(SHOW_SECONDS)
                self._show_answers(turn, "…")
            pair = await task
            self._show_answers(turn, NOTHING)
        finally:
            self.stopper.set_visibility(False)
            self.note.text = " ".join(event.text for event in events if isinstance(event, Warn))
        self.messages = messages
        return pair

    def _show_answers(self, turn: Turn, if_empty: str) -> None:
        self.note.text = "answering …" if self.answers else "waiting for the model …"
        if self.is_stopping:
            self.note.text = "stopping …"
        if self.blind and self.blind.difference:
            self.proof.text = self.blind.difference.sentence
        if self.answers:
            if self.is_stopping:  # asked for before there was an answer
                self.answers.stop()
            turn.show(self.answers.shown, if_empty)

    async def stop(self) -> None:
        self.is_stopping = True
        self.note.text = "stopping …"
        if self.answers:
            self.answers.stop()

    async def _vote(self, turn: Turn, choice: Vote) -> None:
        assert self.blind and turn.pair
        self.blind.vote(turn.pair.id, choice)
        turn.below.clear()
        with turn.below:
            words(f"Your vote: {VOTES[choice]}.", classes="dim")
        self.message.run_method("focus")
        await self._count()

    async def _count(self) -> None:
        """How many votes there are, and not for whom: that would say who wrote what."""
        assert self.blind
        found = [one for one in preferences(await in_thread(Ballots.read)) if set(one.models) == set(self.blind.models)]
        votes = sum(one.votes for one in found)
        missing = f"; an interval needs {FEWEST - votes} more" if votes < FEWEST else ""
        self.note.text = f"Votes on these two models so far: {votes}{missing}."

    async def _forget(self) -> None:
        self.messages = []
        if self.blind:
            self.blind.forget()
        if self.turns:
            with self.log:
                words("A new conversation", "h3", "begins")

    async def _end(self) -> None:
        """Show who wrote what, and begin anew with the next message."""
        await self._forget()
        session, self.blind = self.blind, None
        self.models, self.proof.text, self.note.text = [], "", ""
        if session:
            session.reveal()
            for turn in self.turns:
                if turn.pair and turn.pair.session == session.id:
                    for head, letter, name in zip(turn.heads, "AB", turn.pair.names, strict=True):
                        head.text = visible(f"{letter}: {name}")
                    if turn.pair.id not in session.votes:
                        turn.below.clear()
            await self.show_votes()
        self._show()

    async def show_votes(self) -> None:
        """Show all votes so far."""
        empty = "There are no votes to show. Choose a model to compare with."
        await show_listed(self.votes, "Votes", list_votes, empty)


def engine(name: str) -> Engine:
    ref = resolve_gguf(name)
    return Engine(ref.weights, adapter=ref.adapter)


def engine_of_two(name: str) -> Engine:
    return engine_beside(resolve_gguf(name))

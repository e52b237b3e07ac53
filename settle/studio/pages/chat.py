"""Chat with a model; or compare two without knowing which of them wrote what, and vote."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlencode

from nicegui import ui
from nicegui.element import Element
from nicegui.events import GenericEventArguments

from settle.base.command_line import Given, arguments
from settle.base.described_settings import describe
from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Event, Warn
from settle.base.python_command import shell_line
from settle.base.registry import Part
from settle.base.settings import resolve
from settle.base.visible import visible, visible_line
from settle.base.words.amounts import when
from settle.documents.markdown_tree import markdown_tree
from settle.evaluate.blind.session import Answers, BlindSession, engine_beside
from settle.evaluate.blind.votes import VOTES, AnswerPair, Vote, count_sentence, list_votes
from settle.infer.chat_session import ChatSession, Sampling
from settle.infer.conversations import Conversation, Exchange, conversations
from settle.infer.engine import engine_of
from settle.library.facts import chat_models, sampling_of
from settle.library.resolve import resolve as resolve_model
from settle.library.resolve import resolve_gguf
from settle.studio.field import Field
from settle.studio.forms.form import Form
from settle.studio.layout import START, Slot, button, confirmed, empty_state, words
from settle.studio.open_models import OPEN_MODELS
from settle.studio.pages import Page
from settle.studio.table import show_listed
from settle.studio.visit import Visit, in_thread, reported

SHOW_SECONDS, SECONDS_PER_CHARACTER = 0.1, 5e-6  # between two looks at what has been written
FIRST = ("temperature", "max_tokens", "system")
WITHOUT = ("name", "prompt", "with_", "draft", "context", "threads", "votes", "vote")  # the page has its own
EMPTY = "Nothing was said yet. Write a message below; what you both say stays on this machine."
NOTHING = "(it ended the text at once)"
MOST_LISTED = 100  # conversations
LIST = "conversations"  # the id of their list, which a phone shows when it is asked for
BLIND = (
    "A and B are the two models, in an order that is drawn for each pair. Both get the same messages; the answer that "
    "you prefer continues the conversation. Once you ask who wrote what, the votes are final."
)

T = TypeVar("T")


class Chat(Page):
    """A conversation with one model, or with two."""

    path = "/chat"
    title = "Chat"
    place = 20
    is_door = True

    async def build(self, visit: Visit) -> None:
        chats, others = await in_thread(chat_models)
        known, id = chats + others, visit.query.get("chat", "")
        one, two = [await in_thread(listed_name, visit.query.get(key, ""), known) for key in ("model", "with")]
        kept = await in_thread(Conversation.read, id) if id else Conversation(model=one)
        is_all = not chats or "all" in visit.query
        names = chats + [name for name in others if is_all or name in (kept.model, two)]
        if not names:
            empty_state("No model to chat with yet.", ("Pull SmolLM2", "/models"), ("Train one", START))
            return
        with ui.element("div").classes("talk"):
            place = ui.element("nav")
            with ui.element("div").classes("room"):
                talk = Talk(kept, ModelChoice(visit.studio.commands()["chat"], names, kept.model, two))
        with place.classes("history").props(f'id="{LIST}" popover="auto" aria-label="Chats"'):
            talk.history = History(kept, talk.choice)
        await talk.history.show()
        await talk.choice.changed()
        if talk.is_blind:
            await talk.show_votes()
        talk.message.run_method("begin")
        ui.context.client.on_delete(talk.stop)


def listed_name(name: str, names: Collection[str]) -> str:
    """Return what the list of models calls the one of that name: an adapter, `BASE:RUN`, has its run's name, too."""
    if name and name not in names:
        with contextlib.suppress(SettleError):
            return resolve_model(name).id
    return name


class ModelChoice:
    """Which models, and how their answers are drawn: the settings of `settle chat`."""

    def __init__(self, command: type[Part], names: list[str], one: str, two: str) -> None:
        self.command = command
        with ui.element("div").classes("models"):
            words("Chats", "button", "act aside").props(f'type="button" popovertarget="{LIST}"')
            self.one = Field("Model", "choice", value=one, options=names, on_set=self.changed)
            others: list[str | tuple[str, str]] = [("", "no other model"), *names]
            self.two = Field("Compare with", "choice", value=two, options=others, on_set=self.changed)
            self._two = self.two.text
            with ui.element("details").classes("settings"):
                words("Settings", "summary", "act")
                with ui.element("div").classes("panel"):
                    self.form = Form(command, describe(command), self.changed, FIRST, WITHOUT)
                    words("The same in a terminal", "h3")
                    self.line = words("", "pre", "commandline")
                    ui.link("Show models that only complete text, too", f"{Chat.path}?all=1")

    @property
    def names(self) -> list[str]:
        return [field.text for field in (self.one, self.two) if field.text]

    async def changed(self) -> None:
        if self.two.text != self._two:
            await self.begin()
        self.line.text = shell_line("settle", *arguments(self.command, self._given()))
        self.form.show_error(None)
        usual = await in_thread(sampling_of, self.one.text)
        for key in ("temperature", "top_p", "top_k"):
            self.form.fields[key].props["hint"] = f"{usual[key]:g}, as recommended" if key in usual else ""

    async def begin(self) -> None:
        """Open a new conversation with these models."""
        ui.navigate.to(f"{Chat.path}?{urlencode(dict(zip(('model', 'with'), self.names, strict=False)))}")

    def values(self) -> Mapping[str, Any]:
        """Return all settings. Raises UsageError for one that is wrong, which is shown at its field, too."""
        try:
            return resolve(self.command, [("asked", self._given())]).value.model_dump()
        except SettleError as e:
            self.form.show_error(e)
            raise

    def _given(self) -> dict[str, Given]:
        return dict(zip(("name", "with_"), self.names, strict=False)) | self.form.given()


class History:
    """The conversations that are kept, with a search; the one that is open can be deleted."""

    def __init__(self, kept: Conversation, choice: ModelChoice) -> None:
        self._kept, self._choice, self._asked = kept, choice, ""
        button("New chat", choice.begin)
        Field("Search chats").on("typed", self._search, throttle=0.3, leading_events=False)
        self._list = Slot(is_read=False)

    async def show(self) -> None:
        found = await in_thread(conversations, self._asked)
        with self._list.anew():
            if not found:
                words("None holds these words." if self._asked else "Chats are kept here.", classes="dim")
            with ui.element("ul"):
                for one in found[:MOST_LISTED]:
                    is_open = one.id == self._kept.id
                    with ui.element("li").classes("open" if is_open else ""):
                        link = ui.link(visible_line(one.title), f"{Chat.path}?chat={one.id}")
                        words(when(one.time), "small", "dim")
                        if is_open:
                            link.props('aria-current="true"')
                            with Slot() as place:
                                button("Delete", partial(self._ask, place))
            if len(found) > MOST_LISTED:
                words(f"{len(found) - MOST_LISTED} older ones: search for them.", classes="dim")

    async def _search(self, event: GenericEventArguments) -> None:
        self._asked = str(event.args)
        await self.show()

    async def _ask(self, place: Slot) -> None:
        async def delete() -> None:
            await in_thread(self._kept.delete)
            await self._choice.begin()

        with place.anew():
            confirmed(f"Delete {len(self._kept.messages)} messages?", "Delete for good", delete, place.clear)


class MessageView(Element, component="message.js"):
    """One message. mine: the user's own, which is shown as it is; on_act: called with an act and a text."""

    def __init__(self, head: str, text: str, mine: bool, on_act: Callable[[str, str], Awaitable[None]]) -> None:
        super().__init__()
        self.props.update({"head": visible_line(head), "mine": mine, "acts": [], "edit": [], "versions": [], "at": 0})
        self.text: str | None = None
        self.show(text)
        acted = reported(on_act)  # the framework passes no event to a function of *args
        self.on("act", lambda event: acted(*map(str, event.args)))

    def show(self, text: str, if_empty: str = "") -> None:
        """Replace its text; nothing is sent where it is the same."""
        if (text or if_empty) != self.text:
            self.text = text or if_empty
            nodes = markdown_tree(text.lstrip("\n")) if not self.props["mine"] else [visible(text)]
            self.props["nodes"] = nodes if text else [["p", {}, [if_empty]]]

    def offer(
        self, text: str, acts: Mapping[str, str], edit: tuple[str, ...], at: int, versions: Sequence[int]
    ) -> None:
        """Offer acts, by name, with their labels, and "show", with the index of another version.

        text: to copy or edit. edit: the name and label of the act that changes it, and labels of its text and its end.
        """
        self.props.update({"text": text, "acts": [*acts.items()], "edit": edit, "at": at, "versions": versions})


@dataclass
class Turn:
    """A message and its answers on the page. below: the place of what can be done with those of two models."""

    exchange: Exchange
    place: ui.element
    mine: MessageView
    answers: list[MessageView]
    below: Slot
    pair: AnswerPair | None = None


class Talk:
    """The conversation that is open, kept as it grows; or, blind, one with two models, of which votes are kept."""

    history: History

    def __init__(self, kept: Conversation, choice: ModelChoice) -> None:
        self.kept, self.choice = kept, choice
        self.is_blind = len(choice.names) == 2
        self.blind: BlindSession | None = None
        self.turns: list[Turn] = []
        self.answers: Answers | None = None
        self.is_busy = self.is_stopping = False
        scrolls = ui.element("div").classes("log").props('tabindex="0" role="region" aria-label="What was said"')
        with scrolls, ui.element("div"):
            words(BLIND if self.is_blind else EMPTY, classes="dim about")
            self.votes = Slot(is_read=False)
            self.log = ui.element("div").props('role="log"')
        with ui.element("div").classes("composer"):
            self.proof = words("", classes="good").props('role="status"')
            self.message = Field(
                "Message", "lines", hint="Message", help="Enter sends, Shift+Enter begins a line", sends=True
            )
            with ui.element("div").classes("row"):
                send = button("Send", self._send, main=True)
                self.stopper = button("Stop", self.stop)
                if self.is_blind:
                    button("Show who wrote what", self._reveal)
            self.note = words("", classes="dim").props('role="status"')
        self.message.on("enter", js_handler=f"() => getHtmlElement({send.id}).click()")
        self.stopper.set_visibility(False)
        self._draw()

    def _draw(self) -> None:
        """Show the conversation as it is kept."""
        self.turns.clear()
        self.log.clear()
        for exchange in self.kept.exchanges:
            self._show_kept(self._add_turn(exchange, [""]))

    def _add_turn(self, exchange: Exchange, heads: Sequence[str]) -> Turn:
        async def act(name: str, text: str) -> None:
            if self.is_busy:
                raise UsageError("an answer is being written", "wait for its end, or stop it")
            await self._act(turn, name, text)

        with self.log, ui.element("div").classes("turn") as place:
            mine = MessageView("You", exchange.text, True, act)
            with ui.element("div").classes("columns pairs"):
                answers = [MessageView(head, "", False, act) for head in heads]
            turn = Turn(exchange, place, mine, answers, Slot(is_read=False))
        self.turns.append(turn)
        return turn

    def _show_kept(self, turn: Turn) -> None:
        """Show the answer that is kept, and offer what can be done with it and with its question."""
        question, answer, (view,) = turn.exchange.question, turn.exchange.answer, turn.answers
        if question is None or answer is None:
            return
        shown, versions = self.kept.messages[answer], self.kept.versions
        view.show(shown.content, NOTHING)
        view.props["head"] = visible_line(shown.by)
        acts = {"again": "Answer again"} | ({"more": "Continue"} if shown.is_cut else {})
        turn.mine.offer(turn.exchange.text, {}, ("edit", "Edit", "Your message", "Send"), question, versions(question))
        edit = "correct", "Correct", "This answer should have been", "Keep as an example"
        view.offer(shown.content, acts, edit, answer, versions(answer))

    async def _act(self, turn: Turn, name: str, text: str) -> None:
        exchange = turn.exchange
        match name:
            case "show":
                await in_thread(self.kept.show, int(text))
                self._draw()
            case "edit":
                self.kept.last = exchange.after
                self._draw()
                await self._ask(text.strip() or exchange.text)
            case "correct" if exchange.answer is not None:
                file = await in_thread(self.kept.correct, exchange.answer, text, self.choice.values()["system"])
                self._draw()
                line = shell_line("settle", "tune", self.choice.one.text, str(file))
                self.note.text = f"The example is kept. To learn from all of them: {line}"
            case "again" | "more":
                await self._reply(turn, replace(exchange, answer=exchange.answer if name == "more" else None))

    async def _send(self) -> None:
        if self.is_busy:
            raise UsageError("an answer is being written", "wait for its end, or stop it")
        text = self.message.required("there is nothing to answer", "write a message")
        self.choice.values()  # what is wrong with them is shown before the message goes
        self.message.put("")
        await self._ask(text)

    async def _ask(self, text: str) -> None:
        self.answers, exchange = None, Exchange(text, self.kept.last)
        turn = self._add_turn(exchange, "AB" if self.is_blind else [self.choice.one.text])
        try:
            await (self._compare(turn) if self.is_blind else self._reply(turn, exchange))
        except SettleError:
            if not (self.answers and any(self.answers.shown)):  # what was written stays in sight
                self.message.put(text)
                self.turns.remove(turn)
                turn.place.delete()
            raise

    async def _reply(self, turn: Turn, exchange: Exchange) -> None:
        """Let the model answer, once more, or to the end. It is kept as it is written."""
        settings, kept, name, events = self.choice.values(), self.kept, self.choice.one.text, list[Event]()
        rest = Events(listeners=[events.append]), settings["system"], settings["template"]

        def work() -> None:
            with OPEN_MODELS.use(engine_of, resolve_gguf(name)) as (model,):
                begin = partial(ChatSession, model, Sampling.of(settings), *rest)
                self.answers = Answers([partial(kept.reply, exchange, name, begin)])
                self.answers.wait()

        try:
            await self._written(turn, in_thread(work))
        finally:
            turn.exchange = turn.exchange if exchange.answer is None else exchange
            self._show_kept(turn)
        self.note.text = " ".join(event.text for event in events if isinstance(event, Warn))
        ui.navigate.history.replace(f"{Chat.path}?chat={kept.id}")
        await self.history.show()

    async def _compare(self, turn: Turn) -> None:
        """Let both models answer, and offer the votes."""
        settings = self.choice.values()

        def work() -> AnswerPair:
            refs = [resolve_gguf(name) for name in self.choice.names]
            session = self.blind = self.blind or BlindSession(refs, settings["seed"])
            with OPEN_MODELS.use(engine_beside, *refs) as engines:
                given = Sampling.of(settings), settings["system"], settings["template"]
                self.answers = session.ask(engines, turn.exchange.text, *given)
                return session.keep(self.answers)

        turn.pair = await self._written(turn, in_thread(work))
        for view, answer in zip(turn.answers, turn.pair.answers, strict=True):
            view.show(answer, NOTHING)
        with turn.below.anew(), ui.element("div").classes("row"):
            for choice, label in VOTES.items():
                button(label, partial(self._vote, turn, choice))
        self.note.text = await in_thread(count_sentence, turn.pair.models)

    async def _written(self, turn: Turn, work: Coroutine[Any, Any, T]) -> T:
        """Show the answers as `work` writes them, until it has ended."""
        self.answers, self.is_busy, self.is_stopping = None, True, False
        self.log.props["aria-busy"] = "true"  # read aloud once it is whole
        self.stopper.set_visibility(True)
        task = asyncio.ensure_future(work)
        try:
            self._show_answers(turn)
            while not task.done():
                length = sum(map(len, self.answers.texts)) if self.answers else 0
                await asyncio.wait([task], timeout=SHOW_SECONDS + SECONDS_PER_CHARACTER * length)
                self._show_answers(turn)
            return await task
        finally:  # together with the button that sends: a message typed from now on is not lost
            self.is_busy = False
            self.stopper.set_visibility(False)
            self.note.text = ""
            self.log.props["aria-busy"] = "false"

    def _show_answers(self, turn: Turn) -> None:
        self.note.text = "answering …" if self.answers else "waiting for the model …"
        if self.is_stopping:
            self.note.text = "stopping …"
        if self.blind and self.blind.difference:
            self.proof.text = self.blind.difference.sentence
        if self.answers and self.is_stopping:  # asked for before there was an answer
            self.answers.stop()
        for number, view in enumerate(turn.answers):
            view.show(self.answers.shown[number] if self.answers else "", "…")

    async def stop(self) -> None:
        self.is_stopping = True
        self.note.text = "stopping …"
        if self.answers:
            self.answers.stop()

    async def _vote(self, turn: Turn, choice: Vote) -> None:
        assert self.blind and turn.pair
        self.blind.vote(turn.pair.id, choice)
        with turn.below.anew():
            words(f"Your vote: {VOTES[choice]}.", classes="dim")
        self.message.run_method("focus")
        self.note.text = await in_thread(count_sentence, turn.pair.models)

    async def _reveal(self) -> None:
        """Show who wrote what; the next message begins anew."""
        session, self.blind = self.blind, None
        self.proof.text, self.note.text = "", ""
        if session:
            session.reveal()
            for turn in self.turns:
                if turn.pair and turn.pair.session == session.id:
                    for view, letter, name in zip(turn.answers, "AB", turn.pair.names, strict=True):
                        view.props["head"] = visible_line(f"{letter}: {name}")
                    if turn.pair.id not in session.votes:
                        turn.below.clear()
        await self.show_votes()

    async def show_votes(self) -> None:
        """Show all votes so far."""
        await show_listed(self.votes, "Votes", list_votes, "There are no votes to show yet.")

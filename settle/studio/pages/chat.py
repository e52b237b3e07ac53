"""Chat with a model, alone or about documents; or compare two without knowing which of them wrote what, and vote."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from nicegui import ui
from nicegui.events import GenericEventArguments

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Event, Warn
from settle.base.python_command import shell_line
from settle.base.registry import Part
from settle.base.settings import resolve
from settle.base.visible import visible_line
from settle.base.words.amounts import when
from settle.evaluate.blind.session import Answers, BlindSession, engine_beside
from settle.evaluate.blind.votes import FEWEST, VOTES, AnswerPair, Ballots, Vote, list_votes, preferences
from settle.infer.chat_session import ChatSession, Sampling
from settle.infer.conversations import Conversation, Message, conversations
from settle.infer.engine import Engine
from settle.library.resolve import resolve_gguf
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.forms.arguments import Given, arguments
from settle.studio.forms.drop import Drop
from settle.studio.forms.form import Form
from settle.studio.forms.settings import describe
from settle.studio.layout import START, Slot, button, confirmed, empty_state, words
from settle.studio.message import MessageView
from settle.studio.open_models import OPEN_MODELS, chat_models, recommended
from settle.studio.pages import Page
from settle.studio.pages.documents import show_answer
from settle.studio.table import show_listed
from settle.studio.visit import Visit, in_thread, reported

SHOW_SECONDS, SECONDS_PER_CHARACTER = 0.1, 5e-6  # between two looks at what has been written
FIRST = ("temperature", "max_tokens", "system")
WITHOUT = ("name", "prompt", "with_", "draft", "context", "threads", "votes", "vote")  # the page has its own
NOTHING = "(it ended the text at once)"
MOST_LISTED = 100  # conversations
LIST = "conversations"  # the id of their list, which a phone shows when it is asked for
BLIND = (
    "A and B are the two models, in an order that is drawn for each pair. Both get the same messages; the answer that "
    "you prefer continues the conversation. Once you ask who wrote what, the votes are final."
)
CITING = "Answers come from these documents, with their places; each question is answered on its own."

T = TypeVar("T")


class Chat(Page):
    """A conversation with one model, or with two."""

    path = "/chat"
    title = "Chat"
    place = 20
    is_door = True

    async def build(self, visit: Visit) -> None:
        chats, others = await in_thread(chat_models)
        one, two, id = (visit.query.get(key, "") for key in ("model", "with", "chat"))
        kept = await in_thread(Conversation.read, id) if id else Conversation(model=one)
        is_all = not chats or "all" in visit.query
        names = chats + [name for name in others if is_all or name in (kept.model, two)]
        if not names:
            empty_state("No model to chat with yet.", ("Pull SmolLM2", "/models"), ("Train one", START))
            return
        talk = Talk(kept)
        with ui.element("div").classes("talk"):
            talk.history = History(talk)
            with ui.element("div").classes("room"):
                talk.choice = ModelChoice(visit.studio.commands()["chat"], names, kept.model, two, talk.changed)
                talk.build()
        await talk.history.show()
        await talk.changed()
        ui.context.client.on_delete(talk.stop)


class ModelChoice:
    """Which models, and how their answers are drawn: the settings of `settle chat`."""

    def __init__(
        self, command: type[Part], names: list[str], one: str, two: str, on_change: Callable[[], Awaitable[None]]
    ) -> None:
        self.command = command
        with ui.element("div").classes("models"):
            words("Chats", "button", "act aside").props(f'type="button" popovertarget="{LIST}"')
            self.one = Field("Model", "choice", value=one, options=names, on_set=on_change)
            others: list[str | tuple[str, str]] = [("", "no other model"), *names]
            self.two = Field("Compare with", "choice", value=two, options=others, on_set=on_change)
            with ui.element("details").classes("settings"):
                words("Settings", "summary", "act")
                with ui.element("div").classes("panel"):
                    self.form = Form(command, describe(command), on_change, FIRST, WITHOUT)
                    words("The same in a terminal", "h3")
                    self.line = words("", "pre", "commandline")
                    ui.link("Show models that only complete text, too", f"{Chat.path}?all=1")

    @property
    def names(self) -> list[str]:
        return [field.text for field in (self.one, self.two) if field.text]

    async def show(self) -> None:
        self.line.text = shell_line("settle", *arguments(self.command, self._given()))
        self.form.show_error(None)
        usual = await in_thread(recommended, self.one.text)
        for key in ("temperature", "top_p", "top_k"):
            self.form.fields[key].props["hint"] = f"{usual[key]:g}, as recommended" if key in usual else ""

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

    def __init__(self, talk: "Talk") -> None:
        self._talk, self._asked = talk, ""
        with ui.element("nav").classes("history").props(f'id="{LIST}" popover="auto" aria-label="Chats"'):
            button("New chat", self._begin)
            Field("Search chats").on("typed", self._search, throttle=0.3, leading_events=False)
            self._list = Slot(is_read=False)

    async def show(self) -> None:
        found = await in_thread(conversations, self._asked)
        with self._list.anew():
            if not found:
                words("None holds these words." if self._asked else "Chats are kept here.", classes="dim")
            with ui.element("ul"):
                for one in found[:MOST_LISTED]:
                    is_open = one.id == self._talk.kept.id
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

    async def _begin(self) -> None:
        ui.navigate.to(f"{Chat.path}?model={quote(self._talk.choice.one.text)}")

    async def _ask(self, place: Slot) -> None:
        kept = self._talk.kept
        documents = f" and {len(kept.files)} documents" if kept.files else ""
        with place.anew():
            question = f"Delete {len(kept.messages)} messages{documents}?"
            confirmed(question, "Delete for good", self._delete, lambda: asyncio.ensure_future(self.show()))

    async def _delete(self) -> None:
        self._talk.require_rest()
        kept = self._talk.kept
        if kept.files:
            await self._talk.child.read(["index", "--delete", "--", kept.collection])
        await in_thread(kept.delete)
        await self._begin()


@dataclass
class Turn:
    """A message and its answers on the page. below: the place of what can be done with them.

    after, question, answer: indices in the conversation: of the message before, and of its own once they are kept.
    """

    text: str
    after: int | None
    place: ui.element
    mine: MessageView
    answers: list[MessageView]
    below: Slot
    question: int | None = None
    answer: int | None = None
    pair: AnswerPair | None = None

    def show(self, texts: Sequence[str], if_empty: str) -> None:
        for view, text in zip(self.answers, texts, strict=True):
            view.show(text, if_empty)


class Talk:
    """The conversation that is open, kept as it grows; or, blind, one with two models, of which votes are kept."""

    choice: ModelChoice
    history: History
    child: CommandChild

    def __init__(self, kept: Conversation) -> None:
        self.kept = kept
        self.blind: BlindSession | None = None
        self.turns: list[Turn] = []
        self.answers: Answers | None = None
        self.is_busy = self.is_stopping = False

    def build(self) -> None:
        scrolls = ui.element("div").classes("log").props('tabindex="0" role="region" aria-label="What was said"')
        with scrolls, ui.element("div"):
            self.about = words("", classes="dim")
            self.votes = Slot(is_read=False)
            self.log = ui.element("div").props('role="log"')
        with ui.element("div").classes("composer"):
            self.proof = words("", classes="good").props('role="status"')
            self.message = Field("Message", "lines", help="Enter sends, Shift+Enter begins a line", sends=True)
            with ui.element("div").classes("row"):
                send = button("Send", self._send, main=True)
                self.stopper = button("Stop", self.stop)
                self.beginner = button("New conversation", self._begin)
                self.revealer = button("Show who wrote what", self._end)
                self.drop = Drop("Add documents", reported(self._add_document))
                self.files = words("", classes="dim")
            self.note = words("", classes="dim").props('role="status"')
            self.child = CommandChild()
        self.message.on("enter", js_handler=f"() => getHtmlElement({send.id}).click()")
        self.stopper.set_visibility(False)
        self._draw()

    async def changed(self) -> None:
        if self.blind and list(self.blind.models) != self.choice.names:
            await self._end()
        if len(self.choice.names) == 2 and not self.blind:
            await self._begin()
            await self.show_votes()
        await self.choice.show()
        self._show()

    def require_rest(self) -> None:
        """Raise UsageError while an answer is written."""
        if self.is_busy:
            raise UsageError("an answer is being written", "wait for its end, or stop it")

    def _show(self) -> None:
        are_two = len(self.choice.names) == 2
        self.about.text = BLIND if are_two else "" if self.turns else "Nothing was said yet."
        self.beginner.set_visibility(are_two)
        self.drop.set_visibility(not are_two)
        self.revealer.set_visibility(bool(self.blind and self.blind.pairs))
        names = ", ".join(visible_line(Path(file).name) for file in self.kept.files)
        self.files.text = f"{names}. {CITING}" if names else ""

    def _draw(self) -> None:
        """Show the conversation as it is kept."""
        self.turns.clear()
        self.log.clear()
        messages, path = self.kept.messages, self.kept.path(self.kept.last)
        for question, answer in zip(path[::2], path[1::2], strict=False):
            turn = self._add_turn(messages[question].content, messages[question].after, [messages[answer].by])
            self._show_kept(turn, question, answer)

    def _add_turn(self, text: str, after: int | None, heads: Sequence[str]) -> Turn:
        async def act(is_mine: bool, name: str, edited: str) -> None:
            self.require_rest()
            await self._act(turn, is_mine, name, edited)

        with self.log, ui.element("div").classes("turn") as place:
            mine = MessageView("You", text, True, partial(act, True))
            with ui.element("div").classes("columns pairs"):
                answers = [MessageView(head, "", False, partial(act, False)) for head in heads]
            turn = Turn(text, after, place, mine, answers, Slot(is_read=False))
        self.turns.append(turn)
        return turn

    def _show_kept(self, turn: Turn, question: int, answer: int) -> None:
        """Show the answer that is kept, and offer what can be done with it and with its question."""
        turn.question, turn.answer, versions = question, answer, self.kept.versions
        shown = self.kept.messages[answer]
        with turn.below.anew():
            if shown.cited:
                show_answer(shown.cited)
        turn.show(["" if shown.cited else shown.content], "" if shown.cited else NOTHING)
        acts = {"again": "Answer again"} | ({"more": "Continue"} if shown.is_cut else {}) | {"edit": "Correct"}
        turn.mine.offer(turn.text, {"edit": "Edit"}, ("Your message", "Send"), question, versions(question))
        edits = "This answer should have been", "Keep as an example"
        turn.answers[0].offer(shown.content, acts, edits, answer, versions(answer))

    async def _act(self, turn: Turn, is_mine: bool, act: str, edited: str) -> None:
        index = turn.question if is_mine else turn.answer
        assert index is not None
        if act in ("back", "next"):
            versions = self.kept.versions(index)
            number = versions.index(index) + (1 if act == "next" else -1)
            await in_thread(self.kept.show, versions[number % len(versions)])
            self._draw()
        elif act != "edit":
            await self._reply(turn, is_more=act == "more")
        elif is_mine:
            for later in self.turns[self.turns.index(turn) :]:
                later.place.delete()
            await self._ask(edited.strip() or turn.text, turn.after)
        else:
            file = await in_thread(self.kept.correct, index, edited, self.choice.values()["system"])
            self._draw()
            line = shell_line("settle", "tune", self.choice.one.text, str(file))
            self.note.text = f"The example is kept. To learn from all of them: {line}"

    async def _send(self) -> None:
        self.require_rest()
        text = self.message.required("there is nothing to answer", "write a message")
        self.choice.values()  # what is wrong with them is shown before the message goes
        self.message.put("")
        await self._ask(text, self.kept.last)

    async def _ask(self, text: str, after: int | None) -> None:
        names, self.answers = self.choice.names, None
        try:
            if len(names) == 2 and self.blind is None:
                self.blind = BlindSession([resolve_gguf(name) for name in names], self.choice.values()["seed"])
            turn = self._add_turn(text, after, "AB" if self.blind else names)
            await (self._compare(turn, self.blind) if self.blind else self._reply(turn))
        except SettleError:
            if not (self.answers and any(self.answers.shown)):  # what was written stays in sight
                self.message.put(text)
                if self.blind:
                    self.turns.pop().place.delete()
                else:
                    self._draw()
            raise
        finally:
            self._show()

    async def _reply(self, turn: Turn, is_more: bool = False) -> None:
        """Let the model answer, once more, or to the end. It is kept as it is written."""
        settings, kept, name, events = self.choice.values(), self.kept, self.choice.one.text, list[Event]()
        new = [Message(role="assistant", content="", after=turn.question, by=name, is_cut=True)]
        if is_more:
            new = [kept.messages[turn.answer or 0]]
        elif turn.question is None:
            new.insert(0, Message(role="user", content=turn.text, after=turn.after))
        answer, begun, before = new[-1], new[-1].content, kept.turns(turn.after)
        is_first, kept.model = not kept.messages, name

        def pieces(model: Engine) -> Generator[str, None, None]:
            log = Events(listeners=[events.append])
            chat = ChatSession(model, _sampling(settings), log, settings["system"], settings["template"], before)
            answer.is_cut = yield from chat.answer(turn.text, begun)

        def work() -> None:
            with OPEN_MODELS.use(engine, name) as (model,):
                self.answers = Answers([partial(kept.record, pieces(model), *([] if is_more else new))])
                self.answers.wait()

        turn.below.clear()
        if kept.files:
            answer.cited = dict(
                await self._written(turn, self.child.read(["ask", f"--model={name}", "--", kept.collection, turn.text]))
            )
            answer.content, answer.is_cut = str(answer.cited["answer"]), False
            await in_thread(kept.add, *new)
        else:
            await self._written(turn, in_thread(work), begun)
        self.note.text = " ".join(event.text for event in events if isinstance(event, Warn))
        if kept.last is not None and (question := kept.messages[kept.last].after) is not None:
            self._show_kept(turn, question, kept.last)
        if is_first:
            ui.navigate.history.replace(f"{Chat.path}?chat={kept.id}")
        await self.history.show()

    async def _compare(self, turn: Turn, session: BlindSession) -> None:
        """Let both models answer, and offer the votes."""
        settings = self.choice.values()

        def work() -> AnswerPair:
            with OPEN_MODELS.use(engine_of_two, *session.models) as engines:
                told = settings["system"], settings["template"]
                self.answers = session.ask(engines, turn.text, _sampling(settings), *told)
                return session.keep(self.answers)

        turn.pair = await self._written(turn, in_thread(work))
        turn.show(turn.pair.answers, NOTHING)
        with turn.below.anew(), ui.element("div").classes("row"):
            for choice, label in VOTES.items():
                button(label, partial(self._vote, turn, choice))
        await self._count()

    async def _written(self, turn: Turn, work: Coroutine[Any, Any, T], begun: str = "") -> T:
        """Show the answers as `work` writes them, until it has ended."""
        self.answers, self.is_busy, self.is_stopping = None, True, False
        self.log.props["aria-busy"] = "true"  # read aloud once it is whole
        self.stopper.set_visibility(True)
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._show_answers(turn, begun)
                length = sum(map(len, self.answers.texts)) if self.answers else 0
                await asyncio.wait([task], timeout=SHOW_SECONDS + SECONDS_PER_CHARACTER * length)
            return await task
        finally:  # together with the button that sends: a message typed from now on is not lost
            self.is_busy = False
            self.stopper.set_visibility(False)
            self.note.text = ""
            self.log.props["aria-busy"] = "false"

    def _show_answers(self, turn: Turn, begun: str) -> None:
        self.note.text = "answering …" if self.answers else "waiting for the model …"
        if self.is_stopping:
            self.note.text = "stopping …"
        if self.blind and self.blind.difference:
            self.proof.text = self.blind.difference.sentence
        if self.answers and self.is_stopping:  # asked for before there was an answer
            self.answers.stop()
        turn.show([begun + text for text in self.answers.shown] if self.answers else ["" for _ in turn.answers], "…")

    async def stop(self) -> None:
        self.is_stopping = True
        self.note.text = "stopping …"
        if self.answers:
            self.answers.stop()
        if self.kept.files:
            await self.child.stop()

    async def _add_document(self, path: str) -> None:
        """Index a file that was dropped; from now on its documents answer."""
        self.require_rest()
        kept, is_first = self.kept, not self.kept.files
        try:
            named = [f"--name={kept.collection}", "--"] if is_first else ["--", kept.collection]
            await self.child.read(["index", *named, path])
        except SettleError:
            Path(path).unlink(missing_ok=True)
            raise
        await in_thread(kept.add_file, path)
        ui.navigate.history.replace(f"{Chat.path}?chat={kept.id}")
        self._show()
        await self.history.show()

    async def _vote(self, turn: Turn, choice: Vote) -> None:
        assert self.blind and turn.pair
        self.blind.vote(turn.pair.id, choice)
        with turn.below.anew():
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

    async def _begin(self) -> None:
        """Begin a conversation with the next message; what was said before stays in sight."""
        self.kept = Conversation()
        if self.blind:
            self.blind.forget()
        if self.turns:
            with self.log:
                words("A new conversation", "h3", "begins")

    async def _end(self) -> None:
        """Show who wrote what, and begin anew with the next message."""
        await self._begin()
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
        self._show()

    async def show_votes(self) -> None:
        """Show all votes so far."""
        await show_listed(self.votes, "Votes", list_votes, "There are no votes to show yet.")


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    return Sampling(**{each.name: settings[each.name] for each in fields(Sampling)})


def engine(name: str) -> Engine:
    ref = resolve_gguf(name)
    return Engine(ref.weights, adapter=ref.adapter)


def engine_of_two(name: str) -> Engine:
    return engine_beside(resolve_gguf(name))

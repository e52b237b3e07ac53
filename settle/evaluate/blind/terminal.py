"""`settle chat`: with one model a conversation, with a second one a blind comparison in the terminal."""

import sys

from settle.base.errors import EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, ResultReady, Say, Warn
from settle.evaluate.blind.session import BlindSession, engine_beside
from settle.evaluate.blind.votes import AnswerPair
from settle.infer.chat_session import Sampling, chat
from settle.infer.engine import Engine
from settle.library.resolve import resolve_gguf

HELP = "/reset begins a conversation, /bye leaves and shows who wrote what; Ctrl-C stops an answer"
ASK = "better: a, b, same or bad (Enter: no vote)? "


class BlindChat:
    """Pairs of answers on a terminal, or one pair for a prompt."""

    def __init__(
        self, session: BlindSession, engines: tuple[Engine, Engine], sampling: Sampling, events: Events,
        system: str | None, template: bool,
    ) -> None:  # fmt: skip
        self._session, self._engines, self._sampling, self._events = session, engines, sampling, events
        self._system, self._template = system, template

    def pair(self, text: str) -> AnswerPair:
        """Both answers, shown when both are there: how fast each came would say who it is. Raises SettleError."""
        answers = self._session.ask(self._engines, text, self._sampling, self._system, self._template)
        try:
            answers.wait()
        except KeyboardInterrupt:
            answers.stop()
        pair = self._session.keep(answers)
        for letter, answer in zip("AB", pair.answers, strict=True):
            self._events.emit(AnswerText(text=f"{letter} ──────────\n{answer.strip() or '(nothing)'}\n\n"))
        return pair

    def converse(self) -> None:
        """Take turns until the user leaves; then show who wrote what."""
        while (line := self._read("> ")) is not None and line not in ("/bye", "/exit", "/quit"):
            try:
                if line == "/reset":
                    self._session.forget()
                elif line.startswith("/"):
                    raise UsageError(f"there is no {line.partition(' ')[0]}", HELP)
                elif line:
                    self._vote(self.pair(line))
            except (UsageError, EngineError) as e:
                if not all(engine.alive() for engine in self._engines):
                    raise
                self._events.emit(Warn(text=str(e)))
        self._session.reveal()
        for number, pair in enumerate(self._session.pairs, 1):
            choice = self._session.votes.get(pair.id, "no vote")
            self._events.emit(Say(text=f"{number}. {pair.reveal_text}; your vote: {choice}"))

    def _vote(self, pair: AnswerPair) -> None:
        while choice := self._read(ASK):
            try:
                return self._session.vote(pair.id, choice.lower())
            except UsageError as e:
                self._events.emit(Warn(text=str(e)))
        return None

    def _read(self, prompt: str) -> str | None:
        """Read a line; None where the user leaves."""
        try:
            return input(prompt).strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            return ""


def talk(
    name: str,
    beside: str | None,
    prompt: str | None,
    sampling: tuple[int, float | None, float | None, int | None, int | None],
    events: Events,
    system: str | None = None,
    template: bool = False,
    draft: str | None = None,
    context: int | None = None,
) -> int:
    """Chat with one model, or compare it with a model `beside`; return the exit code.

    sampling: the fields of `Sampling`. Raises SettleError.
    """
    drawn = Sampling(*sampling)
    if beside is None:
        return chat(name, prompt, drawn, events, system=system, template=template, draft=draft, context=context)
    if draft:
        raise UsageError("a draft proposes tokens for one model only", "leave --draft out, or --with")
    return compare((name, beside), prompt, drawn, events, system, template, context)


def compare(
    names: tuple[str, str],
    prompt: str | None,
    sampling: Sampling,
    events: Events,
    system: str | None = None,
    template: bool = False,
    context: int | None = None,
) -> int:
    """Let two models answer as A and B; return the exit code.

    They answer `prompt`, or text on stdin, or take turns on the terminal. Raises SettleError.
    """
    one, two = (resolve_gguf(name) for name in names)
    session = BlindSession((one, two), sampling.seed)
    with engine_beside(one, context) as first, engine_beside(two, context) as second:
        chat = BlindChat(session, (first, second), sampling, events, system, template)
        if prompt is None and sys.stdin.isatty():
            events.emit(Say(text=f"{one.id} and {two.id} answer as A and B, in an order that is drawn. {HELP}"))
            chat.converse()
            return 0
        text = sys.stdin.read() if prompt is None else prompt
        if not text:
            raise UsageError("there is no prompt to answer", f"settle chat {names[0]} 'some text' --with {names[1]}")
        pair = chat.pair(text)
    assert session.difference
    events.emit(Say(text=session.difference.sentence))
    events.emit(Say(text=f"`settle chat --vote {pair.id}=a` votes for A; b, same or bad likewise"))
    answers = dict(zip("ab", pair.answers, strict=True))
    result = {"prompt": text, "pair": pair.id, "answers": answers, "difference_nats": pair.nats}
    events.emit(ResultReady(result=result))
    return 0 if any(pair.answers) else 3

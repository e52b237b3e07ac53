"""A blind comparison: two models answer the same messages as A and B, in an order that is drawn for each pair."""

import contextlib
import math
import secrets
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from random import Random
from typing import NamedTuple

from settle.base.errors import EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, ResultReady, Say, Warn
from settle.evaluate.blind.votes import AnswerPair, add_pair, reveal, vote
from settle.formats.gguf.metadata import TOKENS, texts
from settle.infer.chat_session import ChatSession, Sampling, chat
from settle.infer.engine import Engine
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf
from settle.library.store import stamp_of
from settle.machine import num_threads

Writer = Callable[[], Generator[str, None, object]]  # begins an answer: its pieces as they come


class Answers:
    """Answers being written, each in a thread, from the start.

    Of several, all are shown at the pace of the slowest: how fast a model writes would say which one it is.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.texts = [""] * len(writers)
        self.is_stopped = False
        self._longest: int | None = None  # characters of each that are shown, once it was stopped
        pool = ThreadPoolExecutor(len(writers))
        self._work = [pool.submit(self._write, number, writer) for number, writer in enumerate(writers)]
        pool.shutdown(wait=False)

    @property
    def shown(self) -> list[str]:
        """What there is of each answer."""
        ready = [len(text) for text, work in zip(self.texts, self._work, strict=True) if not work.done()]
        longest = self._longest if self.is_stopped else min(ready, default=None)
        return [text[:longest] for text in self.texts]

    def stop(self) -> None:
        """End all of them where they are, at the next token."""
        if not self.is_stopped and not all(work.done() for work in self._work):
            self._longest = max(map(len, self.shown), default=0)
            self.is_stopped = True

    def wait(self) -> list[str]:
        """Return the answers as far as they are shown, once all have ended. Raises what one of them has ended with."""
        for work in self._work:
            work.result()
        return self.shown

    def _write(self, number: int, writer: Writer) -> None:
        try:
            with contextlib.closing(writer()) as pieces:
                for piece in pieces:
                    self.texts[number] += piece
                    if self.is_stopped:
                        break
        except BaseException:
            self.is_stopped = True  # without it, the others would write for nothing
            raise


Messages = list[dict[str, str]]


class BlindSession:
    """Pairs of answers of two models, until it is revealed who wrote what.

    The answer that was preferred continues the conversation of both; where none was, one of the two that is drawn.
    seed: of what is drawn; the same seed, the same order. difference: None until both models have run. votes: by pair.
    """

    def __init__(self, models: Sequence[ModelRef], seed: int | None = None) -> None:
        """Begin a comparison. Raises UsageError for one model twice, and for two of one name."""
        one, two = models
        if (one.weights, one.adapter) == (two.weights, two.adapter):
            raise UsageError(f"{one.id} would be compared with itself", "choose two models")
        if one.id == two.id:
            raise UsageError(f"both are called {one.id}, and votes go by names", "give one of the files another name")
        self.models, self.weights = (one.id, two.id), (stamp(one), stamp(two))
        self.seed = secrets.randbits(31) if seed is None else seed
        self.id = secrets.token_hex(4)
        self.difference: WeightDifference | None = None
        self.pairs: list[AnswerPair] = []
        self.votes: dict[str, str] = {}
        self._proven: tuple[Engine, ...] = ()
        self._pair: AnswerPair  # that is being answered
        self._begins = True  # a conversation, with the next message

    def ask(
        self,
        engines: Sequence[Engine],
        text: str,
        sampling: Sampling,
        system: str | None = None,
        template: bool = False,
    ) -> Answers:
        """Ask both models. Returns the answers of A and of B.

        engines: of `models`, which are first proven to be different weights. Raises SettleError.
        """
        one, two = engines
        if self.difference is None or (one, two) != self._proven:
            self.difference = require_different_weights(one, two, self.models)
            self._proven = one, two
        before = self._context() if template or (one.takes_turns and two.takes_turns) else []
        sampling = replace(sampling, seed=secrets.randbits(31) if sampling.seed is None else sampling.seed)
        turn = len(self.pairs)
        self._pair = AnswerPair(
            time=time.time(),
            id=secrets.token_hex(4),
            session=self.id,
            conversation=self.pairs[-1].conversation + (not before) if self.pairs else 0,
            seed=self.seed,
            turn=turn,
            models=self.models,
            weights=self.weights,
            a=1 if self._draws(turn, "is A") else 0,
            system=system,
            messages=[*before, {"role": "user", "content": text}],
            answers=("", ""),
            sampling=asdict(sampling),
            nats=self.difference.nats if math.isfinite(self.difference.nats) else None,
        )
        sessions = [
            ChatSession(engine, sampling, Events(), system, template, [*before], forgets=False)
            for engine in ((two, one) if self._pair.a else (one, two))
        ]
        return Answers([partial(session.answer, text) for session in sessions])

    def keep(self, answers: Answers) -> AnswerPair:
        """Wait for both answers, and write the pair to the file of votes. Raises SettleError."""
        a, b = answers.wait()
        pair = self._pair.model_copy(update={"answers": (a, b), "stopped": answers.is_stopped})
        add_pair(pair)
        self.pairs.append(pair)
        self._begins = False
        return pair

    def vote(self, name: str, choice: str) -> None:
        """Votes on a pair. Raises UsageError, ResourceError."""
        vote(name, choice)
        self.votes[name] = choice

    def forget(self) -> None:
        """Begin a new conversation with the next message."""
        self._begins = True

    def reveal(self) -> None:
        """End the comparison: its votes are final. Raises ResourceError."""
        reveal([pair.id for pair in self.pairs])

    def _context(self) -> Messages:
        """Return the conversation so far, with one of the latest answers."""
        if self._begins:
            return []
        latest = self.pairs[-1]
        choice = self.votes.get(latest.id)
        number = "ab".index(choice) if choice in ("a", "b") else self._draws(latest.turn, "continues")
        return [*latest.messages, {"role": "assistant", "content": latest.answers[number]}]

    def _draws(self, turn: int, what: str) -> int:
        return Random(f"{self.seed}:{turn}:{what}").randrange(2)


def engine_beside(model: ModelRef, context: int | None = None) -> Engine:
    """Start a model that runs next to another one, with half of the threads."""
    return Engine(model.weights, context, max(1, num_threads() // 2), adapter=model.adapter)


def stamp(model: ModelRef) -> str:
    """Tells the files of a model, and of the adapter over it, from others of the same name."""
    whole = model.base.source if model.adapter and model.base else model.source
    return "+".join([whole.recorded or stamp_of(whole.path), *([stamp_of(model.adapter)] if model.adapter else [])])


TEXTS = ("The capital of France is", "12 + 30 =", "def main():\n    ")
LIKELIEST = 256  # tokens after each text whose probabilities are compared
SAME_NATS = 1e-3  # below it two models are one, but for rounding: no answers would tell them apart


class WeightDifference(NamedTuple):
    """How far two models' weights differ.

    nats: the largest difference of a token's log-probability after any of the texts; infinite where the models hold no
    token likely that both know.
    """

    nats: float

    @property
    def sentence(self) -> str:
        apart = f"up to {self.nats:.3g} nats" if math.isfinite(self.nats) else "all they hold likely"
        return f"They are different weights: after {len(TEXTS)} fixed texts their log-probabilities differ by {apart}."


def require_different_weights(one: Engine, two: Engine, names: tuple[str, str]) -> WeightDifference:
    """Asks the very processes that will answer. Raises UsageError where they are the same weights, EngineError."""
    nats = 0.0
    for text in TEXTS:
        first, second = _likeliest(one, text), _likeliest(two, text)
        apart = (abs(first[token] - second[token]) for token in first.keys() & second.keys())
        nats = max(nats, max(apart, default=math.inf))
    if nats < SAME_NATS:
        raise UsageError(
            f"{names[0]} and {names[1]} are the same weights: after {len(TEXTS)} fixed texts no log-probability "
            f"differs by more than {nats:.1g} nats",
            "choose another model to compare with",
        )
    return WeightDifference(nats)


def _likeliest(engine: Engine, text: str) -> dict[str, float]:
    """Log-probabilities of the likeliest tokens after a text, by how they are spelled: ids depend on the tokenizer."""
    tokens = texts(engine.metadata, TOKENS)
    found = engine.next_token_logprobs(engine.plain(text), LIKELIEST, reuse=False)
    return {tokens[token]: logprob for token, logprob in found.items() if math.isfinite(logprob)}


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
    if session.difference:
        events.emit(Say(text=session.difference.sentence))
    events.emit(Say(text=f"`settle chat --vote {pair.id}=a` votes for A; b, same or bad likewise"))
    answers = dict(zip("ab", pair.answers, strict=True))
    result = {"prompt": text, "pair": pair.id, "answers": answers, "difference_nats": pair.nats}
    events.emit(ResultReady(result=result))
    return 0 if any(pair.answers) else 3

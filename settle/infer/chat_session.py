"""A conversation with a model in llama.cpp: one answer, or turns on a terminal until the person leaves."""

import sys
from collections.abc import Generator
from dataclasses import dataclass, fields
from pathlib import Path

from settle.base.errors import EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, ResultReady, Say, Warn
from settle.base.files import JsonObject, write_json
from settle.formats import Metadata
from settle.infer.engine import Engine, draft_for
from settle.library.catalogue import recommended_sampling
from settle.library.facts import TEMPLATE_KEY, takes_turns
from settle.library.resolve import resolve_gguf

HELP = (
    "/help shows this, /reset forgets, /system TEXT sets a system prompt, /save FILE saves the conversation, /bye "
    "leaves; Ctrl-C stops an answer"
)


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn: see `LlamaClient.complete`.

    seed: None draws one; None of the others is what is recommended for the model.
    """

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    @classmethod
    def of(cls, settings: JsonObject) -> "Sampling":
        """Take those of `settle chat` that say how an answer is drawn."""
        return cls(**{each.name: settings[each.name] for each in fields(cls)})

    def settings(self, metadata: Metadata) -> dict[str, float]:
        """Under llama.cpp's names, for the model of a GGUF file."""
        asked = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in asked.items() if value is not None}
        recommended = recommended_sampling(metadata, takes_turns(metadata)).settings
        return given if self.temperature == 0 else {**recommended, **given}  # 0: the likeliest token as it is


def chat(
    name: str,
    prompt: str | None,
    sampling: Sampling,
    events: Events,
    system: str | None = None,
    template: bool = False,
    draft: str | None = None,
    context: int | None = None,
) -> int:
    """Answer `prompt`, or text on stdin, or talk on the terminal; return the exit code.

    template: take turns by the chat template, even if the model was trained on plain text. Raises SettleError.
    """
    model = resolve_gguf(name)
    proposing = draft_for(model, draft, events) if draft else None
    with Engine(model.weights, context, adapter=model.adapter, draft=proposing) as engine:
        if context and context > engine.context:
            events.emit(Warn(text=f"{model.name} was trained for {engine.context:,} tokens: that is its context here"))
        session = ChatSession(engine, sampling, events, system, template)
        if prompt is None and sys.stdin.isatty():
            events.emit(Say(text=f"{model.name}, {engine.context} tokens of context. {session.description}"))
            events.emit(Say(text=HELP))
            session.converse()
            return 0
        text = prompt if prompt is not None else sys.stdin.read()
        if not text:
            raise UsageError("there is no prompt to answer", f"settle chat {name} 'some text', or text on stdin")
        answer = "".join(session.answer(text))
        events.emit(AnswerText(text="\n"))
        events.emit(ResultReady(result={"prompt": text, "answer": answer}))
        return 0 if answer else 3


class ChatSession:
    """The messages so far, and how the next answer is made from them.

    messages: what was said before; each turn is added to them. forgets: leaves out the oldest that no longer fit into
    the context; without it, that is a UsageError.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        events: Events,
        system: str | None = None,
        template: bool = False,
        messages: list[dict[str, str]] | None = None,
        forgets: bool = True,
    ) -> None:
        """Prepare a conversation. Raises UsageError for settings that the model cannot follow."""
        if template and not engine.metadata.get(TEMPLATE_KEY):
            raise UsageError(f"{engine.path.name} has no chat template", "leave --template out")
        self._engine, self._sampling, self._events = engine, sampling, events
        self._takes_turns = template or engine.takes_turns
        if system and not self._takes_turns:
            raise UsageError(
                f"{engine.path.name} was trained on plain text and takes no system prompt", "add --template"
            )
        self._system = system
        self._messages = [] if messages is None else messages
        self._forgets = forgets

    @property
    def description(self) -> str:
        """How the model answers, in a sentence."""
        if self._takes_turns:
            return "It takes turns by its chat template."
        return "It was trained on plain text and completes what you write (--template makes it take turns)."

    def converse(self) -> None:
        """Take turns on the terminal until the user leaves."""
        try:
            import readline  # noqa: F401  line editing and history for input()
        except ImportError:
            pass
        while True:
            line = None
            try:
                line = input("> ")
                if line.strip() in ("/bye", "/exit", "/quit"):
                    return
                self._obey(line) if line.startswith("/") else self._turn(line)
            except EOFError:
                self._events.emit(AnswerText(text="\n"))
                return
            except KeyboardInterrupt:  # at the prompt, or in the moment before the answer begins
                self._events.emit(AnswerText(text="\n" if line is None else " …\n"))
                if line is None:
                    self._events.emit(Say(text="/bye or Ctrl-D leaves"))
            except (UsageError, EngineError) as e:
                if not self._engine.alive():
                    raise
                self._events.emit(Warn(text=str(e)))

    def answer(self, text: str, begun: str = "") -> Generator[str, None, bool]:
        """Pieces of the answer, emitted as they come; the answer is remembered, cut off or not.

        begun: the beginning of an answer that was cut off, which is continued. Returns whether the answer is as long as
        it may be, and not ended by the model. Raises UsageError when there is no room for it.
        """
        self._messages.append({"role": "user", "content": text})
        prompt = self._prompt(text) + (self._engine.tokenize(begun) if begun else [])
        sampling, answer = self._sampling, begun
        room = min(sampling.max_tokens, self._engine.context - len(prompt))
        if room < 1:
            raise UsageError(f"the context of {self._engine.context:,} tokens is full", "begin a new conversation")
        drawn = sampling.settings(self._engine.metadata)
        pieces = self._engine.complete(prompt, room, seed=sampling.seed, sampling=drawn)
        try:
            while True:
                piece = next(pieces)
                answer += piece
                self._events.emit(AnswerText(text=piece))
                yield piece
        except StopIteration as end:
            return bool(end.value.get("stop_type") == "limit")
        finally:
            pieces.close()
            self._messages.append({"role": "assistant", "content": answer})

    def _turn(self, line: str) -> None:
        """One turn on a terminal; Ctrl-C ends the answer only."""
        if not line.strip():
            return
        try:
            for _ in self.answer(line):
                pass
        except KeyboardInterrupt:
            self._events.emit(AnswerText(text=" …"))
        self._events.emit(AnswerText(text="\n"))

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/reset":
            self._messages.clear()
            self._events.emit(Say(text="forgotten"))
        elif command == "/system":
            if not self._takes_turns:
                raise UsageError("a model that completes plain text has no system prompt", "start with --template")
            self._system = rest or None
            self._messages.clear()
            self._events.emit(
                Say(text="a new conversation with that system prompt" if rest else "no system prompt now")
            )
        elif command == "/help":
            self._events.emit(Say(text=HELP))
        elif command == "/save":
            path = Path(rest or f"{self._engine.path.stem}-chat.json").expanduser()
            try:
                write_json(path, {"model": str(self._engine.path), "messages": self._all()})
            except OSError as e:
                raise UsageError(f"cannot write {path}: {e.strerror}", "/save another file") from None
            self._events.emit(Say(text=f"wrote {path}"))
        else:
            raise UsageError(f"there is no {command}", HELP)

    def _all(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self._system}, *self._messages] if self._system else list(self._messages)

    def _prompt(self, text: str) -> list[int]:
        """Ids of the prompt with room for an answer; warns when the oldest part no longer fits."""
        most = self._engine.context - min(self._sampling.max_tokens, self._engine.context // 2)
        if not self._takes_turns:
            ids = self._engine.plain(text)
            if len(ids) > most:
                self._require_forgetting(len(ids), most)
                self._events.emit(Warn(text=f"only the last {most} of {len(ids)} tokens fit into the context"))
            return ids[-most:]
        ids = self._engine.turns(self._all())
        while len(ids) > most and len(self._messages) > 1:
            self._require_forgetting(len(ids), most)
            del self._messages[: min(2, len(self._messages) - 1)]
            self._events.emit(Warn(text="the oldest turns no longer fit into the context and are forgotten"))
            ids = self._engine.turns(self._all())
        if len(ids) > most:
            self._messages.pop()
            raise UsageError(f"that is {len(ids)} tokens, and {most} fit into the context", "make it shorter")
        return ids

    def _require_forgetting(self, num_tokens: int, most: int) -> None:
        if not self._forgets:
            raise UsageError(
                f"that is {num_tokens:,} tokens with what was said before, and {most:,} fit into the context of "
                f"{self._engine.path.name}",
                "begin a new conversation, or make it shorter",
            )

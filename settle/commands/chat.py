"""Talk to a trained model, in llama.cpp."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from settle.base.errors import EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, ResultReady, Say, Warn
from settle.base.run import write_json
from settle.commands import Command
from settle.commands._drafts import ABOUT as DRAFT
from settle.commands._drafts import draft_for
from settle.infer.resolve import served

if TYPE_CHECKING:
    from settle.infer.engine import Engine

HELP = (
    "/reset forgets, /system TEXT sets a system prompt, /save FILE keeps the talk, /bye leaves; Ctrl-C stops an answer"
)


class Chat(Command):
    """Talk to a run's model, to one of the store, or to any GGUF file. With a PROMPT, or text on stdin: one answer.

    A model trained on plain text goes on with what you write; --template makes it take turns all the same.
    """

    positional: ClassVar[tuple[str, ...]] = ("name", "prompt")

    name: str = Field(description="a run, a model of the store (`settle pull`), or a .gguf file")
    prompt: str | None = Field(None, description="what to answer, then leave")
    template: bool = Field(False, description="take turns by the chat template, even if trained on plain text")
    system: str | None = Field(None, description="system prompt")
    max_tokens: int = Field(400, gt=0, description="longest answer, in tokens")
    temperature: float = Field(0.8, ge=0, description="0 always takes the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="draw from the likeliest tokens with this much of the mass")
    top_k: int = Field(40, ge=0, description="draw from this many likeliest tokens; 0: no limit")
    draft: str | None = Field(None, description=DRAFT)
    context: int | None = Field(
        None, gt=0, description="tokens kept in mind; what the model was trained with if not given"
    )
    seed: int | None = Field(None, ge=0, description="same seed, same answers")

    def run(self, events: Events) -> int:
        from settle.infer.engine import Engine

        model = served(self.name)
        draft = draft_for(model, self.draft, events) if self.draft else None
        with Engine(model.path, self.context, adapter=model.adapter, draft=draft) as engine:
            talk = _Talk(self, engine, events)
            if self.prompt is not None or not sys.stdin.isatty():
                return self._once(talk, events)
            events.emit(Say(text=f"{model.name}, {engine.context} tokens of context. {talk.nature}\n{HELP}"))
            self._converse(talk, events)
        return 0

    def _once(self, talk: "_Talk", events: Events) -> int:
        prompt = self.prompt if self.prompt is not None else sys.stdin.read()
        if not prompt:
            raise UsageError("there is nothing to answer", f"settle chat {self.name} 'some text', or text on stdin")
        text = "".join(talk.answer(prompt))
        events.emit(AnswerText(text="\n"))
        events.emit(ResultReady(result={"prompt": prompt, "answer": text}))
        return 0 if text else 3

    def _converse(self, talk: "_Talk", events: Events) -> None:
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
                talk.obey(line) if line.startswith("/") else talk.speak(line)
            except EOFError:
                events.emit(AnswerText(text="\n"))
                return
            except KeyboardInterrupt:  # at the prompt, or in the moment before the answer begins
                events.emit(AnswerText(text="\n" if line is None else " …\n"))
                if line is None:
                    events.emit(Say(text="/bye or Ctrl-D leaves"))
            except (UsageError, EngineError) as e:
                if not talk.alive():
                    raise
                events.emit(Warn(text=str(e)))


class _Talk:
    """What was said so far, and what may be said with it."""

    def __init__(self, settings: Chat, engine: "Engine", events: Events) -> None:
        self.settings, self.engine, self.events = settings, engine, events
        if settings.template and not engine.metadata.get("tokenizer.chat_template"):
            raise UsageError(f"{engine.path.name} has no chat template", "leave --template out")
        self.turns = settings.template or engine.takes_turns
        if settings.system and not self.turns:
            raise UsageError(
                f"{engine.path.name} was trained on plain text and takes no system prompt", "add --template"
            )
        self.system = settings.system
        self.messages: list[dict[str, str]] = []

    @property
    def nature(self) -> str:
        if self.turns:
            return "It takes turns by its chat template."
        return "It was trained on plain text: it goes on with what you write (--template makes it take turns)."

    def alive(self) -> bool:
        return self.engine.alive()

    def speak(self, line: str) -> None:
        """One turn on a terminal; Ctrl-C ends the answer only."""
        if not line.strip():
            return
        try:
            for _ in self.answer(line):
                pass
        except KeyboardInterrupt:
            self.events.emit(AnswerText(text=" …"))
        self.events.emit(AnswerText(text="\n"))

    def answer(self, text: str) -> Iterator[str]:
        """Pieces of the answer, emitted as they come; what was said is kept, cut off or not."""
        self.messages.append({"role": "user", "content": text})
        prompt = self._prompt(text)
        settings, said = self.settings, ""
        room = min(settings.max_tokens, self.engine.context - len(prompt))
        pieces = self.engine.complete(prompt, room, settings.temperature, settings.top_p, settings.top_k, settings.seed)
        try:
            for piece in pieces:
                said += piece
                self.events.emit(AnswerText(text=piece))
                yield piece
        finally:
            pieces.close()
            self.messages.append({"role": "assistant", "content": said})

    def obey(self, line: str) -> None:
        """A /command."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/reset":
            self.messages.clear()
            self.events.emit(Say(text="forgotten"))
        elif command == "/system":
            if not self.turns:
                raise UsageError("a model that goes on with plain text has no system prompt", "start with --template")
            self.system = rest or None
            self.messages.clear()
            self.events.emit(Say(text="a new talk with that system prompt" if rest else "no system prompt now"))
        elif command == "/save":
            self._save(Path(rest or f"{self.engine.path.stem}-chat.json").expanduser())
        else:
            raise UsageError(f"there is no {command}", HELP)

    def _save(self, path: Path) -> None:
        try:
            write_json(path, {"model": str(self.engine.path), "messages": self._all()})
        except OSError as e:
            raise UsageError(f"cannot write {path}: {e.strerror}", "/save another file") from None
        self.events.emit(Say(text=f"wrote {path}"))

    def _all(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, *self.messages] if self.system else list(self.messages)

    def _prompt(self, text: str) -> list[int]:
        """Ids of the prompt with room for an answer; says so when the oldest part no longer fits."""
        most = self.engine.context - min(self.settings.max_tokens, self.engine.context // 2)
        if not self.turns:
            ids = self.engine.plain(text)
            if len(ids) > most:
                self._forgot(f"only the last {most} of {len(ids)} tokens fit into the context")
            return ids[-most:]
        ids = self._rendered()
        while len(ids) > most and len(self.messages) > 1:
            del self.messages[: min(2, len(self.messages) - 1)]
            self._forgot("the oldest turns no longer fit into the context and are forgotten")
            ids = self._rendered()
        if len(ids) > most:
            self.messages.pop()
            raise UsageError(f"that is {len(ids)} tokens, and {most} fit into the context", "say it shorter")
        return ids

    def _rendered(self) -> list[int]:
        return self.engine.turns(self._all())

    def _forgot(self, text: str) -> None:
        self.events.emit(Warn(text=text))

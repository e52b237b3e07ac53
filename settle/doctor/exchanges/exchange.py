"""One request to a model and its answer, in one form for every API that they were recorded from."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from settle.base.files import parse_json

Message = Mapping[str, object]  # OpenAI's: role and content, with tool_calls, tool_call_id or reasoning_content
Tool = Mapping[str, object]  # {"type": "function", "function": {"name", "parameters", …}}
Finish = Literal["stop", "length", "tool_calls", ""]

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.S)


@dataclass(frozen=True)
class Request:
    """What a client sent. settings: how to answer, in llama.cpp's words where it has one, else in OpenAI's, such as
    max_tokens and temperature; `thinking` says whether to reason first. context: tokens that the client asked for, or
    None. layout: the part that read it, which knows how its API spells a setting. body: as it was sent."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    model: str = ""
    context: int | None = None
    layout: str = "openai"
    body: Mapping[str, object] = field(default_factory=dict)

    def having(self, **settings: object) -> "Request":
        """The same with other settings; None leaves one out."""
        changed = {**self.settings, **settings}
        return replace(self, settings={key: value for key, value in changed.items() if value is not None})

    @property
    def system(self) -> tuple[Message, ...]:
        """The messages that instruct the model."""
        return tuple(message for message in self.messages if message.get("role") == "system")

    @property
    def turns(self) -> tuple[Message, ...]:
        """All the others."""
        return tuple(message for message in self.messages if message.get("role") != "system")

    @property
    def instructions(self) -> str:
        """The text of the system prompt."""
        return "\n".join(map(text_of, self.system))

    def instructed_as(self, other: "Request") -> "Request":
        """The same turns behind the system prompt of another."""
        return replace(self, messages=(*other.system, *self.turns))

    @property
    def question(self) -> str:
        """The last thing that a person said, or nothing."""
        questions = [text_of(message) for message in self.messages if message.get("role") == "user"]
        return questions[-1] if questions else ""

    def asking(self, question: str) -> "Request":
        """The same with another last question, and without what followed it."""
        places = [at for at, message in enumerate(self.messages) if message.get("role") == "user"]
        before = self.messages[: places[-1]] if places else self.messages
        return replace(self, messages=(*before, {"role": "user", "content": question}))


@dataclass(frozen=True)
class Call:
    """A call of a tool. arguments: JSON, as it was written; of a call without a name, the next piece in a stream."""

    name: str
    arguments: str = ""

    @property
    def values(self) -> Mapping[str, object] | None:
        """The arguments, or None where what was written is no JSON object."""
        try:
            values = parse_json(self.arguments) if self.arguments.strip() else {}
        except ValueError:
            return None
        return values if isinstance(values, Mapping) else None


@dataclass(frozen=True)
class Reply:
    """What came back. reasoning: what the model thought, where the server gives it apart. prompt_tokens,
    written_tokens: as the server counted, or None. logprobs: of each token, in nats, where they were asked for."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish: Finish = ""
    prompt_tokens: int | None = None
    written_tokens: int | None = None
    logprobs: tuple[float, ...] = ()

    @property
    def answer(self) -> str:
        """The text without thoughts that lie in it."""
        return _THOUGHT.sub("", self.text).strip()

    @property
    def thought(self) -> str:
        """The reasoning, also where it lies in the text."""
        return self.reasoning.strip() or "".join(match[0] for match in _THOUGHT.finditer(self.text))

    @property
    def is_answered(self) -> bool:
        return bool(self.answer or self.calls)

    def then(self, piece: "Reply") -> "Reply":
        """This with what came after it in a stream."""
        calls, finish = _joined(self.calls, piece.calls), piece.finish or self.finish
        return Reply(
            self.text + piece.text,
            self.reasoning + piece.reasoning,
            calls,
            "tool_calls" if calls and finish == "stop" else finish,
            piece.prompt_tokens if piece.prompt_tokens is not None else self.prompt_tokens,
            piece.written_tokens if piece.written_tokens is not None else self.written_tokens,
            self.logprobs + piece.logprobs,
        )


@dataclass(frozen=True)
class Exchange:
    """reply: None where only the request was recorded. where: in the file, in words."""

    request: Request
    reply: Reply | None
    where: str


Change = Callable[[Request], Request]


def _joined(calls: tuple[Call, ...], more: tuple[Call, ...]) -> tuple[Call, ...]:
    for call in more:
        if call.name or not calls:
            calls = (*calls, call)
        else:
            calls = (*calls[:-1], Call(calls[-1].name, calls[-1].arguments + call.arguments))
    return calls


def text_of(message: Message) -> str:
    """The text of a message; of one in blocks, that of its blocks."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content if isinstance(block, Mapping))
    return "" if content is None else str(content)

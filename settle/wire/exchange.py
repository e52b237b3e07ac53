"""One request to a model and its answer, in one form for every API that they were recorded from."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from settle.base.files import parse_json

Fields = Mapping[str, object]  # of an object, as it was recorded
Message = Fields  # OpenAI's: role and content, with tool_calls, tool_call_id or reasoning_content
Tool = Fields  # {"type": "function", "function": {"name", "parameters", …}}
Finish = Literal["stop", "length", "tool_calls", ""]

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.S)


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    # how to answer, in llama.cpp's words where it has one, else in OpenAI's: max_tokens, temperature, …; `thinking` is
    # whether to reason first
    settings: Fields = field(default_factory=dict)
    model: str = ""
    context: int | None = None  # tokens that the client asked for
    api: str = "openai"  # the wire format that it was read from
    body: Fields = field(default_factory=dict)  # as it was sent

    def having(self, **settings: object) -> "Request":
        """Return this request with other settings; None leaves one out."""
        changed = {**self.settings, **settings}
        return replace(self, settings={key: value for key, value in changed.items() if value is not None})

    @property
    def system(self) -> tuple[Message, ...]:
        """Messages that instruct the model."""
        return tuple(message for message in self.messages if message.get("role") == "system")

    @property
    def turns(self) -> tuple[Message, ...]:
        """Messages that do not instruct the model."""
        return tuple(message for message in self.messages if message.get("role") != "system")

    @property
    def instructions(self) -> str:
        """Text of the system prompt."""
        return "\n".join(map(text_of, self.system))

    def instructed_as(self, other: "Request") -> "Request":
        """Return these turns after the system prompt of another request."""
        return replace(self, messages=(*other.system, *self.turns))

    @property
    def question(self) -> str:
        """Text of the last message of the user, or nothing."""
        questions = [text_of(message) for message in self.messages if message.get("role") == "user"]
        return questions[-1] if questions else ""

    def asking(self, question: str) -> "Request":
        """Return this request with another last question, and without what followed it."""
        places = [at for at, message in enumerate(self.messages) if message.get("role") == "user"]
        before = self.messages[: places[-1]] if places else self.messages
        return replace(self, messages=(*before, {"role": "user", "content": question}))


@dataclass(frozen=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: str = ""  # JSON, as it was written; of a call without a name, the next piece in a stream

    @property
    def values(self) -> Fields | None:
        """Arguments as an object, or None where what was written is none."""
        try:
            values = parse_json(self.arguments) if self.arguments.strip() else {}
        except ValueError:
            return None
        return values if isinstance(values, Mapping) else None


@dataclass(frozen=True)
class Reply:
    """What came back."""

    text: str = ""
    reasoning: str = ""  # where the server returns it apart from the text
    calls: tuple[Call, ...] = ()
    finish: Finish = ""
    prompt_tokens: int | None = None  # as the server counted
    written_tokens: int | None = None
    logprobs: tuple[float, ...] = ()  # of each token, in nats, where they were asked for

    @property
    def answer(self) -> str:
        """Text without the reasoning in it."""
        return _THOUGHT.sub("", self.text).strip()

    @property
    def thought(self) -> str:
        """Reasoning, also where it is part of the text."""
        return self.reasoning.strip() or "".join(match[0] for match in _THOUGHT.finditer(self.text))

    @property
    def is_answered(self) -> bool:
        return bool(self.answer or self.calls)

    def then(self, piece: "Reply") -> "Reply":
        """Return this reply with the next piece of its stream added."""
        calls, finish = self.calls, piece.finish or self.finish
        for call in piece.calls:
            if call.name or not calls:
                calls = (*calls, call)
            else:
                calls = (*calls[:-1], Call(calls[-1].name, calls[-1].arguments + call.arguments))
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
    """A request with its reply."""

    request: Request
    reply: Reply | None  # None where only the request was recorded
    where: str  # place in the file, in words


Change = Callable[[Request], Request]


def text_of(message: Message) -> str:
    """Return the text of a message."""
    return content_text(message.get("content"))


def content_text(content: object) -> str:
    """Return the text of a message's content, also where it is written in blocks."""
    if not isinstance(content, list):
        return "" if content is None else str(content)
    blocks = [block if isinstance(block, str) else _block_text(fields_of(block)) for block in content]
    return "\n".join(text for text in blocks if text)


def _block_text(block: Fields) -> str:
    return str(block.get("text") or block.get("input_text") or block.get("output_text") or "")


def fields_of(value: object) -> Fields:
    """Return the fields of a recorded object; none of any other value."""
    return value if isinstance(value, Mapping) else {}


def objects_in(value: object) -> list[Fields]:
    """Return the objects in a recorded list; none in any other value."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []

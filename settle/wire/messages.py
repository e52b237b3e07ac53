"""The messages of a chat: checked, so that nothing in them is lost, and their contents made texts."""

import json
import secrets
from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import Field

from settle.infer.tool_calls import function_call
from settle.wire.errors import invalid, unsupported
from settle.wire.exchange import fields_of
from settle.wire.fields import Body, validated
from settle.wire.types import ChatMessage, JsonObject, Tool, ToolCall, ToolChoice


class TextPart(Body):
    """A text of the user, and a mark beside it that is of no use to a model."""

    type: Literal["text", "input_text"]
    text: str
    cache_control: object = None


class OutputPart(Body):
    """A text of the model, and what a server said of it."""

    type: Literal["output_text"]
    text: str
    annotations: object = None
    logprobs: object = None


class RefusalPart(Body):
    """A text in which the model refused."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


PARTS: dict[str, type[TextPart | OutputPart | RefusalPart]] = {
    "text": TextPart,
    "input_text": TextPart,
    "output_text": OutputPart,
    "refusal": RefusalPart,
}


class CalledFunction(Body):
    """The function of a call. arguments: JSON as text, or what it says."""

    name: str
    arguments: object = "{}"


class WrittenCall(Body):
    """A call that a model made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: object = None

    def to_openai(self) -> ToolCall:
        """Return it with an id, and its arguments as JSON text."""
        arguments = self.function.arguments
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return function_call(self.id or f"call_{secrets.token_hex(12)}", self.function.name, written)


class ChatTurn(Body):
    """A message of OpenAI's chats. reasoning: another name of reasoning_content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: object = None
    name: str | None = None
    tool_calls: list[WrittenCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None

    def checked(self, where: str) -> ChatMessage:
        """Return it with one text as its content. Raises ApiError."""
        text = text_of(self.content, f"{where}.content") + (self.refusal or "")
        checked: ChatMessage = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if reasoning := self.reasoning_content or self.reasoning:
            checked["reasoning_content"] = reasoning
        if self.name is not None:
            checked["name"] = self.name
        if self.tool_call_id is not None:
            checked["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            checked["tool_calls"] = [call.to_openai() for call in self.tool_calls]
            if self.role != "assistant":
                raise invalid(f"{where}.tool_calls", "only messages of the role assistant have calls")
        elif self.role != "assistant" and self.content is None:
            raise invalid(f"{where}.content", "is missing")
        return checked


def check_messages(messages: Sequence[object]) -> list[ChatMessage]:
    """Return OpenAI's messages, with texts as their contents. Raises ApiError for anything that would be lost."""
    if not messages:
        raise invalid("messages", "must not be empty")
    places = ((message, f"messages.{number}") for number, message in enumerate(messages))
    return [validated(ChatTurn, message, where).checked(where) for message, where in places]


def text_of(content: object, where: str) -> str:
    """Return the text of a message's content: a text, or OpenAI's list of parts.

    Raises ApiError for parts that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid(where, "must be a text or a list of parts")
    return "\n".join(_part_text(part, f"{where}.{number}") for number, part in enumerate(content))


def _part_text(part: object, where: str) -> str:
    kind = fields_of(part).get("type")
    if str(kind) not in PARTS:
        why = f"{str(kind)[:40]} is not supported; this model reads text" if kind else "must have a type"
        raise unsupported(where, why)
    return validated(PARTS[str(kind)], part, where).text


def merge_turns(messages: list[ChatMessage], roles: Collection[str]) -> list[ChatMessage]:
    """Merge neighbouring messages of the same role. roles: those to merge."""
    merged: list[ChatMessage] = []
    for message in messages:
        if merged and message["role"] in roles and merged[-1]["role"] == message["role"]:
            merged[-1] = _merge(merged[-1], message)
        else:
            merged.append(message)
    return merged


def _merge(one: ChatMessage, two: ChatMessage) -> ChatMessage:
    merged = one | {"content": "\n".join(message["content"] for message in (one, two) if message["content"])}
    reasoning = [message["reasoning_content"] for message in (one, two) if message.get("reasoning_content")]
    calls = [*one.get("tool_calls", ()), *two.get("tool_calls", ())]
    if reasoning:
        merged["reasoning_content"] = "\n".join(reasoning)
    if calls:
        merged["tool_calls"] = calls
    return merged


class Function(Body):
    """A function that may be called."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]
    description: str | None = None
    parameters: JsonObject | None = None  # a JSON schema
    strict: object = None


class FunctionTool(Body):
    """The only kind of tool that is supported."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The function of a choice in OpenAI's chats."""

    name: str


class FunctionChoice(Body):
    """The choice of one function: {type, function: {name}}, or {type, name} in OpenAI's Responses."""

    type: str | None = None
    function: NamedFunction | None = None
    name: str | None = None

    def chosen(self) -> str:
        """Return the name. Raises ApiError."""
        name = self.function.name if self.function else self.name
        if name is None or self.function and self.name is not None:
            raise invalid("tool_choice", "the function has no name, or two")
        return name


class AllowedTools(Body):
    """The choice `allowed_tools`. OpenAI's two APIs have the list in two places."""

    type: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[FunctionChoice] | None = None
    allowed_tools: "AllowedTools | None" = None


def check_tools(tools: Sequence[object]) -> list[Tool]:
    """Return OpenAI's list of tools, each a function. Raises ApiError."""
    functions = [validated(FunctionTool, tool, f"tools.{number}").function for number, tool in enumerate(tools)]
    if len({function.name for function in functions}) < len(functions):
        raise invalid("tools", "two of them have the same name")
    return [
        {
            "type": "function",
            "function": {
                "name": function.name,
                "description": function.description or "",
                "parameters": function.parameters or {"type": "object", "properties": {}},
            },
        }
        for function in functions
    ]


def choose(tools: list[Tool], choice: object) -> tuple[list[Tool], ToolChoice]:
    """Apply OpenAI's `tool_choice`: return the tools that may be called, and whether one must be. Raises ApiError."""
    if choice is None or choice == "auto":
        return tools, "auto" if tools else "none"
    if choice == "none":
        return [], "none"
    if choice == "required":
        if not tools:
            raise invalid("tool_choice", "required, but there are no tools")
        return tools, "required"
    kind = fields_of(choice).get("type")
    if kind == "allowed_tools":
        return _allowed(tools, choice)
    if kind == "function":
        return _only(tools, [validated(FunctionChoice, choice, "tool_choice").chosen()]), "required"
    raise invalid("tool_choice", "must be none, auto, required, or {type: function, function: {name}}")


def may_repeat(asked: bool | None, choice: object) -> bool:
    """Return whether an answer may hold several calls. asked: `parallel_tool_calls`.

    By default it may, as in OpenAI's API, unless the function is named: then it is one call."""
    return asked if asked is not None else fields_of(choice).get("type") != "function"


def _allowed(tools: list[Tool], choice: object) -> tuple[list[Tool], ToolChoice]:
    outer = validated(AllowedTools, choice, "tool_choice")
    inner = outer.allowed_tools or outer
    if inner is not outer and outer.model_fields_set != {"type", "allowed_tools"}:
        raise invalid("tool_choice", "has two lists of tools")
    if inner.tools is None or inner.allowed_tools:
        raise invalid("tool_choice.tools", "must be a list")
    return choose(_only(tools, [tool.chosen() for tool in inner.tools]), inner.mode)


def _only(tools: list[Tool], names: list[str]) -> list[Tool]:
    known = {tool["function"]["name"]: tool for tool in tools}
    missing = [name for name in names if name not in known]
    if missing:
        raise invalid("tool_choice", f"there is no tool {missing[0][:100]!r}")
    return [known[name] for name in names]

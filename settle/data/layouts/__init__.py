"""Layouts: one file a way to write examples. A layout recognises its rows by their columns, and reads them.

The turns of a conversation are read here, from the several forms in use into one.
"""

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from settle.base.registry import Part
from settle.documents.rows import Values

# role, content; with tool_calls, tool_call_id, reasoning_content, name or weight where the row has them
Message = dict[str, Any]
Tool = dict[str, Any]  # the JSON schema of a function
Kind = Literal["chat", "text", "preference", "decision"]


class Broken(Exception):
    """A row that cannot be used; the reason is a short phrase, the same for every row that it applies to."""


@dataclass(frozen=True)
class Example:
    """One row, whatever it was written as.

    messages: of a chat all turns, of a preference those before the answer. chosen, rejected: the two answers' turns.
    text: of plain text. single: whether the row is one prompt and one completion. mended: what was changed in reading
    it.
    """

    kind: Kind
    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    text: str = ""
    chosen: list[Message] = field(default_factory=list)
    rejected: list[Message] = field(default_factory=list)
    single: bool = False
    mended: str = ""


class RowLayout(Part):
    """One way to write rows. Its settings name its columns; layouts are tried in the order of `rank`.

    usual: what a column holds → the names it usually has. needed: what every row of this layout has.
    """

    rank: ClassVar[int]
    kind: ClassVar[Kind] = "chat"
    usual: ClassVar[Mapping[str, Sequence[str]]]
    needed: ClassVar[tuple[str, ...]]

    def columns(self, record: Values) -> dict[str, str] | None:
        """Return which column holds what, or None when the record is not a row of this layout."""
        found = {what: find(record, getattr(self, what, None), names) for what, names in self.usual.items()}
        columns = {what: column for what, column in found.items() if column is not None}
        return columns if columns.keys() >= {*self.needed} else None

    @abstractmethod
    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        """Return the example in a row. Raises Broken with what is wrong with it."""


# columns that several layouts read
SYSTEM, TOOLS = ("system", "system_prompt"), ("tools", "functions")


def find(record: Values, column: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that is asked for, or the first of the usual names that is there, whatever its case."""
    if column is not None:
        return column if column in record else None
    lowered = {str(key).lower(): key for key in record}
    return next((lowered[name] for name in usual if name in lowered), None)


def text_of(record: Values, column: str, what: str) -> str:
    """Return a column's text. Raises Broken for other values; a number is text too, and nothing is empty text."""
    value = record[column]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Broken(f"{what} is no text")
    return str(value)


_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
    "call": ("function_call", "tool_call"),
}
_ROLE = {name: role for role, names in _ROLES.items() for name in names}
_CONTENTS = ("content", "value", "text")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
# of an answer: kept for the templates that render them
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def with_system(record: Values, columns: Mapping[str, str], messages: list[Message]) -> list[Message]:
    """Return the turns with the row's system prompt in front, if it has one of its own."""
    prompt = record.get(columns.get("system", ""))
    if isinstance(prompt, str) and prompt.strip() and messages[0]["role"] != "system":
        return [{"role": "system", "content": prompt}, *messages]
    return messages


def read_turns(value: object) -> list[Message]:
    """Return messages from a list of turns (or the JSON of one) in OpenAI's or ShareGPT's form. Raises Broken."""
    value = parsed(value)
    if not isinstance(value, list) or not value:
        raise Broken("no list of turns")
    messages: list[Message] = []
    for turn in value:
        if not isinstance(turn, dict):
            raise Broken("a turn without role and content")
        _add(messages, turn)
    _name_calls(messages)
    return messages


def read_dialogue(text: str) -> list[Message]:
    """Return messages from one text that names speakers, as Anthropic's preference data has it. Raises Broken."""
    before, *spoken = _SPEAKER.split(f"\n\n{text.strip()}")
    if before.strip() or not spoken:
        raise Broken("a text in which nobody is named as speaking")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(spoken[::2], spoken[1::2], strict=True)
    return [{"role": roles[speaker], "content": text.strip()} for speaker, text in turns]


def check_turns(messages: Sequence[Message], answered: bool = True) -> None:
    """Refuse a conversation that no chat could have had. answered: it has to hold an answer. Raises Broken."""
    before = ""
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "system" and number:
            raise Broken("a system turn in the middle")
        if role == "assistant":
            if before == "assistant":
                raise Broken("two assistant turns in a row")
            if before in ("", "system"):
                raise Broken("an answer before any question")
            if not (message["content"].strip() or message.get("tool_calls")):
                raise Broken("an empty answer")
        if role == "tool" and not (before == "tool" or messages[number - 1].get("tool_calls")):
            raise Broken("a tool's result without a call")
        before = role
    if answered and not any(m["role"] == "assistant" for m in messages):
        raise Broken("no answer")


def read_tools(value: object) -> list[Tool]:
    """Return tools as JSON schemas of functions, from a list of them (or the JSON of one). Raises Broken."""
    value = parsed(value) if value else []
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Broken("tools that are no list of functions")
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]
    if any(not isinstance(tool["function"], dict) or "name" not in tool["function"] for tool in tools):
        raise Broken("a tool without a name")
    return tools


def parsed(value: object) -> object:
    """Return a list or an object that a table holds as JSON, or as numpy gives it back; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def parsed_turns(value: object) -> object:
    """Return a value as `parsed` does, but JSON stays text unless it is turns: an answer may itself be JSON."""
    inner = parsed(value)
    match inner:
        case {"messages": [*turns]} | [*turns]:
            are_turns = bool(turns) and all(map(_is_turn, turns))
        case _:
            are_turns = _is_turn(inner)
    return inner if are_turns or not isinstance(value, str) else value


def _is_turn(value: object) -> bool:
    """Return whether a value names who speaks, and holds what is said."""
    match value:
        case {"role": name, **rest} | {"from": name, **rest}:
            return isinstance(name, str) and (_holds_calls(rest) or any(key in rest for key in _CONTENTS))
        case _:
            return False


def _add(messages: list[Message], turn: Message) -> None:
    name = turn.get("role", turn.get("from"))
    role = _ROLE.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Broken(f"an unknown role {name!r}"[:80] if name is not None else "a turn without a role")
    content = next((turn[key] for key in _CONTENTS if key in turn), None)
    if role == "call":
        calls = parsed(content)
        _add_calls(messages, calls if isinstance(calls, list) else [calls])
        return
    message: Message = {"role": role, "content": _text(content, may_be_missing=_holds_calls(turn))}
    message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    thought = next((turn[key] for key in _THOUGHTS if isinstance(turn.get(key), str)), None)
    if thought is not None:
        message["reasoning_content"] = thought
    if turn.get("weight") == 0 or turn.get("train") is False:
        message["weight"] = 0
    messages.append(message)
    if _holds_calls(turn):
        own_calls = turn.get("tool_calls") or [turn["function_call"]]
        _add_calls(messages, own_calls)


def _holds_calls(turn: Mapping[Any, Any]) -> bool:
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def _text(content: Any, may_be_missing: bool) -> str:
    match content:
        case str():
            return content
        case None if may_be_missing:
            return ""
        case [*parts]:
            with suppress(TypeError, KeyError, IndexError):
                return "".join(part["text"] for part in parts)
    raise Broken("a turn without content" if content is None else "content that is no text")


def _add_calls(messages: list[Message], calls: object) -> None:
    """Add calls to the answer that they belong to, or the one before them."""
    if not isinstance(calls, list):
        raise Broken("tool calls that are no list")
    if not messages or messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]:
        messages.append({"role": "assistant", "content": ""})
    messages[-1]["tool_calls"] = [_call(call) for call in calls]


def _call(call: Any) -> Tool:
    function = call.get("function", call) if isinstance(call, dict) else None
    match function:
        case {"name": str(name), **given}:
            arguments = parsed(given.get("arguments", given.get("parameters", {})) or {})
        case _:
            raise Broken("a tool call without a name")
    if not isinstance(arguments, dict):
        raise Broken("a tool call whose arguments are no JSON object")
    named = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return named | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _name_calls(messages: list[Message]) -> None:
    """Give calls and results ids where they have none: nine digits, as the strictest of templates wants them."""
    count = 0
    waiting: list[tuple[str, str]] = []
    for message in messages:
        for call in message.get("tool_calls", []):
            call.setdefault("id", f"{count:09d}")
            waiting.append((call["id"], call["function"]["name"]))
            count += 1
        if message["role"] == "tool" and waiting:
            identity, name = waiting.pop(0)
            message.setdefault("tool_call_id", identity)
            message.setdefault("name", name)

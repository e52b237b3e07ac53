"""Tools: checked, chosen from, and emulated for models whose chat template does not support them.

To emulate tools, the system prompt lists them, a grammar lets the model write valid calls only, and the answer is
parsed. llama.cpp alone silently drops the tools of such a template.
"""

import json
import re
from collections.abc import Sequence
from typing import Literal

from settle.base.files import parse_json
from settle.server.errors import invalid, reject_unknown
from settle.server.grammar.grammars import CLOSE, OPEN
from settle.server.wire_types import ChatMessage, JsonObject, Tool

FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.:/-]{1,128}")

ToolChoice = Literal["auto", "none", "required"]


def check_tools(tools: Sequence[object]) -> list[Tool]:
    """OpenAI's list of tools, each a function. Raises ApiError."""
    checked: list[Tool] = []
    for number, tool in enumerate(tools):
        where = f"tools.{number}"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise invalid(f"{where}.type", "only functions are supported")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise invalid(f"{where}.function", "is missing")
        reject_unknown(tool, ("type", "function"), where)
        reject_unknown(function, ("name", "description", "parameters", "strict"), where)
        name, parameters = function.get("name"), function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
            raise invalid(f"{where}.function.name", "1 to 128 letters, digits, and _ . : / -")
        if not isinstance(parameters, dict):
            raise invalid(f"{where}.function.parameters", "must be a JSON schema")
        description = function.get("description") or ""
        if not isinstance(description, str):
            raise invalid(f"{where}.function.description", "must be a text")
        checked.append(
            {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
        )
    names = [tool["function"]["name"] for tool in checked]
    if len(set(names)) < len(names):
        raise invalid("tools", "two of them have the same name")
    return checked


def choose(tools: list[Tool], choice: object) -> tuple[list[Tool], ToolChoice]:
    """Applies OpenAI's `tool_choice`: the tools that may be called, and whether one must be. Raises ApiError."""
    if choice is None or choice == "auto":
        return tools, "auto" if tools else "none"
    if choice == "none":
        return [], "none"
    if choice == "required":
        if not tools:
            raise invalid("tool_choice", "required, but there are no tools")
        return tools, "required"
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return _allowed(tools, choice)
    if isinstance(choice, dict) and choice.get("type") == "function":
        return _only(tools, [_named(choice)]), "required"
    raise invalid("tool_choice", "must be none, auto, required, or {type: function, function: {name}}")


def may_repeat(asked: bool | None, choice: object) -> bool:
    """Whether an answer may hold several calls. asked: `parallel_tool_calls`. By default it may, as in OpenAI's API,
    unless the function is named: then it is one call."""
    return asked if asked is not None else not (isinstance(choice, dict) and choice.get("type") == "function")


def with_instructions(
    messages: list[ChatMessage], tools: list[Tool], choice: ToolChoice, has_system: bool
) -> list[ChatMessage]:
    """Messages with the list of tools in the system prompt, and calls and their results as text.

    has_system: whether the template supports a system prompt; else the first message of the user begins with it.
    """
    turns = [_as_text(message) for message in messages]
    if not tools:
        return turns
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    when = "Call a function now." if choice == "required" else "If none of them is of use, answer without them."
    text = (
        f"You may call functions. To call one, write\n{OPEN}"
        '{"name": "the function", "arguments": {"its": "arguments"}}'
        f"{CLOSE}\nand nothing else. These are the functions:\n{listed}\n{when}"
    )
    if turns and turns[0]["role"] == "system":
        return [turns[0] | {"content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    if has_system or not turns:
        return [{"role": "system", "content": text}, *turns]
    return [turns[0] | {"content": f"{text}\n\n{turns[0]['content']}"}, *turns[1:]]


def _allowed(tools: list[Tool], choice: JsonObject) -> tuple[list[Tool], ToolChoice]:
    """The choice `allowed_tools`. OpenAI's two APIs have the list in two places."""
    allowed = choice.get("allowed_tools", choice)
    listed = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(allowed, dict) or not isinstance(listed, list):
        raise invalid("tool_choice.tools", "must be a list")
    reject_unknown(
        choice, ("type", *(("allowed_tools",) if allowed is not choice else ("mode", "tools"))), "tool_choice"
    )
    reject_unknown(allowed, ("type", "mode", "tools"), "tool_choice")
    if allowed.get("mode", "auto") not in ("auto", "required"):
        raise invalid("tool_choice.mode", "auto or required")
    return choose(_only(tools, [_named(tool) for tool in listed]), allowed.get("mode", "auto"))


def _named(tool: object) -> str:
    """The name in {type, function: {name}} or {type, name}."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise invalid("tool_choice", "the function has no name")
    reject_unknown(tool, ("type", "name") if inner is tool else ("type", "function"), "tool_choice")
    reject_unknown(inner, ("type", "name") if inner is tool else ("name",), "tool_choice")
    return str(inner["name"])


def _only(tools: list[Tool], names: list[str]) -> list[Tool]:
    known = {tool["function"]["name"]: tool for tool in tools}
    missing = [name for name in names if name not in known]
    if missing:
        raise invalid("tool_choice", f"there is no tool {missing[0][:100]!r}")
    return [known[name] for name in names]


def _as_text(message: ChatMessage) -> ChatMessage:
    """A call, or the result of one, as a message that every template supports."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = "\n".join(f"{OPEN}{json.dumps(_plain(call['function']), ensure_ascii=False)}{CLOSE}" for call in calls)
    content = message.get("content")
    return {"role": message["role"], "content": f"{content}\n{written}" if content else written}


def _plain(function: dict[str, str]) -> JsonObject:
    try:
        arguments = parse_json(function.get("arguments") or "{}")
    except ValueError:
        arguments = function["arguments"]
    return {"name": function["name"], "arguments": arguments}

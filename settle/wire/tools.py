"""Tools: checked, chosen from, and emulated for models whose chat template does not support them.

To emulate tools, the system prompt lists them, a grammar lets the model write valid calls only, and the answer is
parsed. llama.cpp alone silently drops the tools of such a template.
"""

import re
from collections.abc import Sequence
from typing import Literal

from settle.wire.errors import invalid, reject_unknown
from settle.wire.types import JsonObject, Tool

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
    """Apply OpenAI's `tool_choice`: return the tools that may be called, and whether one must be. Raises ApiError."""
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
    """Return whether an answer may hold several calls. asked: `parallel_tool_calls`.

    By default it may, as in OpenAI's API, unless the function is named: then it is one call."""
    return asked if asked is not None else not (isinstance(choice, dict) and choice.get("type") == "function")


def _allowed(tools: list[Tool], choice: JsonObject) -> tuple[list[Tool], ToolChoice]:
    """Apply the choice `allowed_tools`. OpenAI's two APIs have the list in two places."""
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
    """Return the name in {type, function: {name}} or {type, name}."""
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

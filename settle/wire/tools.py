"""Tools that a model may call: checked, and chosen from."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from settle.wire.errors import invalid
from settle.wire.exchange import fields_of
from settle.wire.fields import Body, validated
from settle.wire.types import JsonObject, Tool

ToolChoice = Literal["auto", "none", "required"]


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

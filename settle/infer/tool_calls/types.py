"""Tools and calls in OpenAI's form, as a reader of answers gives them."""

from typing import Any, Literal, TypedDict

JsonObject = dict[str, object]


class ToolCall(TypedDict, total=False):
    """function: its name, and its arguments as JSON, in pieces where they are streamed."""

    index: int
    id: str
    type: Literal["function"]
    function: dict[str, str]


class Tool(TypedDict):
    """function: its name, description and parameters, which are a JSON schema."""

    type: Literal["function"]
    function: dict[str, Any]


class Delta(TypedDict, total=False):
    """What a chunk adds to a message; also a whole message of an answer."""

    role: str
    content: str | None
    reasoning_content: str
    reasoning: str
    tool_calls: list[ToolCall]
    annotations: list[dict[str, Any]]


def function_call(id: str, name: str, arguments: str) -> ToolCall:
    """arguments: JSON."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

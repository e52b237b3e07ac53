"""Function calls for models whose chat template knows none, and wherever a grammar has to see to it.

What may be called is told in the system prompt, a grammar lets the model write calls that fit their schemas only, and
the answer is parsed. llama.cpp alone would drop the tools of such a template without a word.
"""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from settle.server.errors import invalid, only
from settle.server.requests.grammar import CLOSE, OPEN

FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.:/-]{1,128}")

Choice = Literal["auto", "none", "required"]


def check_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """OpenAI's list of tools, every one a function. Raises Refusal."""
    checked = []
    for number, tool in enumerate(tools):
        where = f"tools.{number}"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise invalid(f"{where}.type", "only functions can be called here")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise invalid(f"{where}.function", "is missing")
        only(tool, ("type", "function"), where)
        only(function, ("name", "description", "parameters", "strict"), where)
        name, parameters = function.get("name"), function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
            raise invalid(f"{where}.function.name", "1 to 128 letters, digits, and _ . : / -")
        if not isinstance(parameters, dict):
            raise invalid(f"{where}.function.parameters", "must be a JSON schema")
        if not isinstance(function.get("description") or "", str):
            raise invalid(f"{where}.function.description", "must be a text")
        told = {"name": name, "description": function.get("description") or "", "parameters": parameters}
        checked.append({"type": "function", "function": told})
    names = [tool["function"]["name"] for tool in checked]
    if len(set(names)) < len(names):
        raise invalid("tools", "two of them have the same name")
    return checked


def choose(tools: list[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], Choice]:
    """The tools that may be called, and whether one has to be, of OpenAI's `tool_choice`. Raises Refusal."""
    if choice is None or choice == "auto":
        return tools, "auto" if tools else "none"
    if choice == "none":
        return [], "none"
    if choice == "required":
        if not tools:
            raise invalid("tool_choice", "there are no tools to require one of")
        return tools, "required"
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return _allowed(tools, choice)
    if isinstance(choice, dict) and choice.get("type") == "function":
        return _only(tools, [_named(choice)]), "required"
    raise invalid("tool_choice", "none, auto, required, or {type: function, function: {name}}")


def instructed(messages: list[dict], tools: list[dict], choice: Choice, has_system: bool) -> list[dict]:
    """Messages with what may be called in the system prompt, and calls and their results as text.

    has_system: whether the template knows a system prompt; else the first message of the user begins with it.
    """
    told = [_as_text(message) for message in messages]
    if not tools:
        return told
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    when = "Call a function now." if choice == "required" else "If none of them is of use, answer without them."
    text = (
        f"You may call functions. To call one, write\n{OPEN}"
        '{"name": "the function", "arguments": {"its": "arguments"}}'
        f"{CLOSE}\nand nothing else. These are the functions:\n{listed}\n{when}"
    )
    if told and told[0]["role"] == "system":
        return [told[0] | {"content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    if has_system or not told:
        return [{"role": "system", "content": text}, *told]
    return [told[0] | {"content": f"{text}\n\n{told[0]['content']}"}, *told[1:]]


class CallReader:
    """Tells text from calls while an answer comes. `feed` gives OpenAI deltas."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._is_call = False

    def feed(self, text: str) -> Iterator[dict[str, Any]]:
        self._held += text
        while True:
            if self._is_call:
                body, closed, rest = self._held.partition(CLOSE)
                if not closed:
                    return
                self._held, self._is_call = rest, False
                yield self._call(body)
                continue
            before, opened, rest = self._held.partition(OPEN)
            if not opened:
                kept = _overlap(self._held)
                text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
                if text and not (self.num_calls and not text.strip()):
                    yield {"content": text}
                return
            if before and not (self.num_calls and not before.strip()):
                yield {"content": before}
            self._held, self._is_call = rest, True

    def end(self) -> Iterator[dict[str, Any]]:
        """What is still held. A call that was cut off is told as it came, so that nothing is lost."""
        is_next_opening = not self._is_call and self.num_calls and OPEN.startswith(self._held.strip())
        if self._held and not is_next_opening:
            yield {"content": (OPEN if self._is_call else "") + self._held}
        self._held = ""

    def _call(self, body: str) -> dict[str, Any]:
        call = json.loads(body)
        told = {
            "index": self.num_calls,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": json.dumps(call.get("arguments") or {}, ensure_ascii=False),
            },
        }
        self.num_calls += 1
        return {"tool_calls": [told]}


def _allowed(tools: list[dict[str, Any]], choice: dict[str, Any]) -> tuple[list[dict[str, Any]], Choice]:
    """OpenAI's two APIs have the list in two places."""
    allowed = choice.get("allowed_tools", choice)
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        raise invalid("tool_choice.tools", "must be a list")
    only(choice, ("type", *(("allowed_tools",) if allowed is not choice else ("mode", "tools"))), "tool_choice")
    only(allowed, ("type", "mode", "tools"), "tool_choice")
    if allowed.get("mode", "auto") not in ("auto", "required"):
        raise invalid("tool_choice.mode", "auto or required")
    return choose(_only(tools, [_named(tool) for tool in allowed["tools"]]), allowed.get("mode", "auto"))


def _named(tool: Any) -> str:
    """Of {type, function: {name}} or {type, name}."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise invalid("tool_choice", "the function has no name")
    only(tool, ("type", "name") if inner is tool else ("type", "function"), "tool_choice")
    only(inner, ("type", "name") if inner is tool else ("name",), "tool_choice")
    return str(inner["name"])


def _only(tools: list[dict], names: list[str]) -> list[dict]:
    known = {tool["function"]["name"]: tool for tool in tools}
    missing = [name for name in names if name not in known]
    if missing:
        raise invalid("tool_choice", f"there is no tool {missing[0][:100]!r}")
    return [known[name] for name in names]


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A call, or the result of one, as turns that every template knows."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = "\n".join(f"{OPEN}{json.dumps(_plain(call['function']), ensure_ascii=False)}{CLOSE}" for call in calls)
    said = message.get("content")
    return {"role": message["role"], "content": f"{said}\n{written}" if said else written}


def _plain(function: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = function["arguments"]
    return {"name": function["name"], "arguments": arguments}


def _overlap(text: str) -> int:
    """How many characters at the end may be the beginning of a call."""
    return next((n for n in range(min(len(text), len(OPEN) - 1), 0, -1) if OPEN.startswith(text[-n:])), 0)

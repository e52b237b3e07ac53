"""Calls that must come: the grammar that leaves a model no other answer, and the reader of what it wrote."""

import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from settle.infer.child_process import Json
from settle.infer.tool_calls import function_call, repeats
from settle.server.grammars import MOST_CALLS, required_grammar
from settle.server.models.loaded_model import LoadedModel
from settle.server.requests.engine import apply_template, ask, tokenize
from settle.wire.errors import ApiError
from settle.wire.types import ChatMessage, Delta, JsonObject, Tool, ToolCall

NAMES, IDS = ("probe_one", "probe_two"), ("call00001", "call00002")  # some templates want ids of nine characters
VALUES = {"probe_key": "probe_value"}
WRITTEN_VALUES = re.compile(r'\{\s*"probe_key":\s*"probe_value"\s*\}')
MOST_FORMS = 64  # remembered of one model
LONGEST_REPLACED = 64  # characters: of reasoning that a generation prompt opens and a call leaves out
# where a prompt ends within reasoning, the reasoning is closed before a call
REASONING = {
    "<think>": "</think>\n\n",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
}


@dataclass(frozen=True)
class CallForm:
    """`opening` NAME `separator` ARGUMENTS, and `between` before the name of each further call; arguments are JSON.

    between: None where a turn holds one call. closing: what may follow the last call. replaced: the end of the
    generation prompt that gives way to the opening."""

    opening: str
    separator: str
    between: str | None
    closing: str = ""
    replaced: str = ""

    def prompt(self, rendered: str) -> str:
        """Return a rendered prompt that leads to the name of a call."""
        text = rendered.removesuffix(self.replaced)
        if not self.replaced:
            text += next((end for start, end in REASONING.items() if text.rstrip().endswith(start)), "")
        return text + self.opening


# of templates that have none, or one whose arguments are not JSON
OWN_FORM = CallForm(
    '<tool_call>{"name": "', '", "arguments": ', '}</tool_call>\n<tool_call>{"name": "', "}</tool_call>"
)


_FORMS: WeakKeyDictionary[LoadedModel, dict[str, CallForm | None]] = WeakKeyDictionary()


async def template_form(loaded: LoadedModel, arguments: JsonObject) -> CallForm | None:
    """Return the form of calls of the model's template, or None where it shows none that can be kept to.

    arguments: of the template."""
    forms, key = _FORMS.setdefault(loaded, {}), json.dumps(arguments, sort_keys=True)
    if key not in forms:
        if len(forms) >= MOST_FORMS:  # of arguments that a client makes up
            forms.clear()
        forms[key] = await _probe(loaded, arguments)
    return forms[key]


async def _probe(loaded: LoadedModel, arguments: JsonObject) -> CallForm | None:
    try:
        before, one = [await _rendered(loaded, arguments, num_calls) for num_calls in (0, 1)]
    except ApiError:
        return None
    try:
        two = await _rendered(loaded, arguments, 2)
    except ApiError:  # such as Llama's: one call in a turn
        two = ""
    return read_form(before, one, two)


def read_form(before: str, one: str, two: str) -> CallForm | None:
    """Return the form that three renderings show: a prompt without a call, and with one call, and with two."""
    start = len(os.path.commonprefix([before, one]))
    name = one.find(NAMES[0], start)
    values = WRITTEN_VALUES.search(one, name)
    if name < 0 or not values or len(before) - start > LONGEST_REPLACED:
        return None
    opening, separator = one[start:name], one[name + len(NAMES[0]) : values.start()]
    between, closing = _between(one[values.end() :], two, start)
    return CallForm(opening, separator, between, closing, before[start:])


def _between(rest: str, two: str, start: int) -> tuple[str | None, str]:
    """Return what is between two calls, and the part of it that also closes a single one.

    rest: what follows that."""
    first = WRITTEN_VALUES.search(two, start)
    second = two.find(NAMES[1], first.end()) if first else -1
    if not first or second < 0 or not WRITTEN_VALUES.search(two, second):
        return None, ""
    between = two[first.end() : second].replace(IDS[1], IDS[0])  # ids are of their calls, and no part of the form
    return between, os.path.commonprefix([between, rest])


async def _rendered(loaded: LoadedModel, arguments: JsonObject, num_calls: int) -> str:
    calls = [function_call(IDS[n], NAMES[n], json.dumps(VALUES)) for n in range(num_calls)]
    messages: list[ChatMessage] = [{"role": "user", "content": "hello"}]
    if calls:
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    for call in calls:
        name = call["function"]["name"]
        messages.append({"role": "tool", "content": "probe_result", "tool_call_id": call["id"], "name": name})
    properties = {key: {"type": "string"} for key in VALUES}
    parameters = {"type": "object", "properties": properties, "required": list(VALUES)}
    functions = [{"name": name, "description": "a probe", "parameters": parameters} for name in NAMES]
    tools = [{"type": "function", "function": function} for function in functions]
    template = {"chat_template_kwargs": arguments} if arguments else {}
    return await apply_template(loaded, {"messages": messages, "tools": tools, **template})


MOST_ITEMS = 4  # of an array that its schema does not limit, where an answer has to end
SHORTEST, LONGEST = 8, 256  # characters of such a text
MOST_NUMBER = 10**9
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
VALUE_KEYS = {"enum", "const", "required", "default", "examples"}  # keys of a schema that hold no schemas
DEFAULT_TOKENS = 1024  # of an answer without a limit


class RequiredCalls:
    """The calls of `tools` that a model completes in a form. is_parallel: whether more than one may come."""

    def __init__(self, form: CallForm, tools: Sequence[Tool], is_parallel: bool) -> None:
        self.form, self.tools = form, tools
        self.is_parallel = is_parallel and form.between is not None
        self._visible = form.between or ""

    async def grammar(self, loaded: LoadedModel, most_tokens: int | None = None) -> str:
        """Return the grammar of what follows the opening. Raises ApiError.

        most_tokens: within which the answer has to end; None leaves texts as long as the model writes them."""
        form = self.form
        separator, _ = await _literal(loaded, form.separator)
        call = " | ".join(
            f"{json.dumps(tool['function']['name'])} {separator} a{n}" for n, tool in enumerate(self.tools)
        )
        start = "call"
        if self.is_parallel and form.between is not None:
            between, self._visible = await _literal(loaded, form.between)
            closing, _ = await _literal(loaded, form.closing)
            start = f"call ({between} call){{0,{MOST_CALLS - 1}}}" + (f" ({closing})?" if form.closing else "")
        schemas = [tool["function"]["parameters"] for tool in self.tools]
        schemas = schemas if most_tokens is None else [limited(schema, most_tokens) for schema in schemas]
        return await required_grammar(start, call, schemas, loaded)

    def reader(self) -> "RequiredCallReader":
        names = [tool["function"]["name"] for tool in self.tools]
        return RequiredCallReader(self.form.opening, (self.form.between or "", self._visible), names)


class RequiredCallReader:
    """A reader of calls while they are streamed; each is given as a whole, once it is complete.

    One that was made before ends the answer. betweens: what may be between two calls: llama.cpp leaves special
    tokens out of a text."""

    def __init__(self, opening: str, betweens: Sequence[str], names: Sequence[str]) -> None:
        self.num_calls, self.is_over = 0, False
        self._made: set[tuple[str, str]] = set()
        self._opening, self._betweens, self._held = opening, betweens, ""
        self._names = sorted(names, key=len, reverse=True)

    async def feed(self, text: str) -> list[Delta]:
        self._held += text
        deltas: list[Delta] = []
        while not self.is_over and (call := self._next()):
            deltas.append({"tool_calls": [call]})
        return deltas

    async def end(self) -> list[Delta]:
        """Return a call that was cut off as text, so that nothing is lost."""
        text = self._opening + self._held if self._held and not self.num_calls else ""
        self._held = ""
        return [{"content": text}] if text else []

    def _next(self) -> ToolCall | None:
        start = 0
        if self.num_calls:
            start = next((len(text) for text in self._betweens if self._held.startswith(text)), len(self._held))
        name = next((name for name in self._names if self._held.startswith(name, start)), None)
        brace = self._held.find("{", start + len(name)) if name else -1
        if name is None or brace < 0:
            return None
        try:
            arguments, end = json.JSONDecoder().raw_decode(self._held, brace)
        except ValueError:
            return None
        self._held = self._held[end:]
        self.is_over = self.is_over or repeats(self._made, name, arguments)
        if self.is_over:
            return None
        call: ToolCall = {"index": self.num_calls}
        self.num_calls += 1
        written = json.dumps(arguments, ensure_ascii=False)
        return call | function_call(f"call_{secrets.token_hex(12)}", name, written)


def limited(schema: Json, most_tokens: int) -> Json:
    """Return a schema under which an answer ends: open texts, arrays and numbers are given a length.

    Optional properties are left out where the names alone would take the tokens. A small model may repeat itself
    without end in a text that nothing limits. What fits the result fits the schema."""
    length = max(SHORTEST, min(LONGEST, most_tokens // (2 * max(1, _num_texts(schema)))))
    result: Json = _limited(schema, length, _num_name_characters(schema) > most_tokens)
    return result


def _objects(value: object) -> list[Json]:
    """Return the object that a value is, or those that are in a list."""
    if isinstance(value, list):
        return [inner for item in value for inner in _objects(item)]
    return [value] if isinstance(value, dict) else []


def _num_name_characters(value: object) -> int:
    number = 0
    for schema in _objects(value):
        number += sum(len(name) for properties in _objects(schema.get("properties")) for name in properties)
        number += sum(map(_num_name_characters, schema.values()))
    return number


def _num_texts(value: object) -> int:
    number = 0
    for schema in _objects(value):
        inner = sum(_num_texts(value) for key, value in schema.items() if key not in VALUE_KEYS)
        number += _is_open_text(schema) + inner * (MOST_ITEMS if "items" in schema else 1)
    return number


def _is_open_text(schema: Json) -> bool:
    kinds = schema.get("type")
    is_text = kinds == "string" or isinstance(kinds, list) and "string" in kinds
    return is_text and not {*schema} & {"enum", "const", "pattern", "format", "maxLength"}


def _limited(value: object, length: int, is_tight: bool) -> Any:
    if isinstance(value, list):
        return [_limited(item, length, is_tight) for item in value]
    if not isinstance(value, dict):
        return value
    schema: Json = value
    result = {key: inner if key in VALUE_KEYS else _limited(inner, length, is_tight) for key, inner in schema.items()}
    if _is_open_text(schema):
        result["maxLength"] = max(length, _count(schema, "minLength"))
    if {*schema} & {"enum", "const"}:
        return result
    kind = schema.get("type")
    if kind == "array" and "maxItems" not in schema:
        result["maxItems"] = max(MOST_ITEMS, _count(schema, "minItems"))
    whole = {"minimum": -MOST_NUMBER, "maximum": MOST_NUMBER}
    if kind == "integer" and not {*schema} & BOUNDS:
        result |= whole
    if kind == "number" and not {*schema} & {*BOUNDS, "multipleOf"}:
        # llguidance limits the digits of no number below zero with a fraction
        fraction = {"type": "number", "multipleOf": 0.0001, "minimum": 0, "maximum": MOST_NUMBER}
        result = {"anyOf": [{"type": "integer", **whole}, fraction]}
    if kind == "object" and isinstance(schema.get("properties"), dict):
        result = {"additionalProperties": False} | result
        if is_tight:
            required = schema.get("required")
            names = required if isinstance(required, list) else []
            result["properties"] = {name: inner for name, inner in result["properties"].items() if name in names}
    return result


def _count(schema: Json, key: str) -> int:
    value = schema.get(key)
    return value if isinstance(value, int) else 0


async def _literal(loaded: LoadedModel, text: str) -> tuple[str, str]:
    """Return a text in Lark, and the part of it that llama.cpp shows in an answer.

    The model's special tokens are tokens in it: as text they would be spelled out."""
    plain = set(await tokenize(loaded, text, add_special=False, parse_special=False))
    body = {"content": text, "add_special": False, "parse_special": True, "with_pieces": True}
    tokens = (await ask(loaded, "/tokenize", body))["tokens"]
    shown = [token["piece"] for token in tokens if token["id"] in plain]
    if len(shown) == len(tokens) or not all(isinstance(piece, str) for piece in shown):
        return json.dumps(text), text
    parts = [json.dumps(token["piece"]) if token["id"] in plain else f"<[{token['id']}]>" for token in tokens]
    return " ".join(parts), "".join(shown)

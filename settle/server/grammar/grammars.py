"""Grammars that constrain an answer, for llguidance, which is built into this llama.cpp.

llama.cpp silently leaves an answer unconstrained when its grammar fails. So every grammar is tried first, by the same
library with the same model's tokens, and what it cannot keep to is an error.
"""

import json
import re
from collections.abc import Mapping, Sequence

from settle.server.errors import ApiError, invalid
from settle.server.grammar.checker import GrammarError, check_grammar
from settle.server.grammar.schemas import engine_schema, without_unknown_formats
from settle.server.models.loaded_model import LoadedModel
from settle.server.wire_types import JsonObject, Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MOST_CALLS = 32  # of one answer
HEAD = "%llguidance {}\n"
# one space where people put one, none elsewhere: where whitespace is free, small models write it without end
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# llguidance's words for a limit, and what they mean to whoever wrote the schema
LIMITS = (
    (r"Current row has", "it allows too many things at one place, such as optional properties or alternatives"),
    ("Too many items", "it leads on without an end, as an object does that requires another of its own kind"),
    (r"^panic|grammar size", "it is too large for the engine: lower its counts, or the number of its alternatives"),
    ("NoExtension", "no text fits it"),
)


async def json_grammar(schema: JsonObject, loaded: LoadedModel, param: str) -> str:
    """JSON that fits a schema, {} for any object. Raises ApiError."""
    json_rule = f"json: %json {_with_spacing(answer_schema(schema, param))}"
    return await _checked(f"{HEAD}start: json{_end(loaded)}\n{json_rule}", loaded, param)


def answer_schema(schema: JsonObject, param: str) -> JsonObject:
    """The schema that the engine keeps to, of a request's own, {} for any object. Raises ApiError."""
    return engine_schema(schema or {"type": "object"}, param)


async def call_grammar(tools: Sequence[Tool], is_required: bool, is_parallel: bool, loaded: LoadedModel) -> str:
    """Calls of `tools` whose arguments fit their schemas; any text before or instead of one, unless one is required.
    Raises ApiError."""
    opening = f'"{OPEN}" json' if is_required else "before json"
    more = f' ("\\n{OPEN}" json "{CLOSE}"){{0,{MOST_CALLS - 1}}}' if is_parallel else ""
    calls = f'{opening} "{CLOSE}"{more}'
    lines = [f"start: {calls if is_required else f'(TEXT | {calls})'}{_end(loaded)}"]
    if not is_required:
        lines += [f'before[suffix="{OPEN}"]: /(?s:.*)/', f"TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/"]
    lines.append(f"json: %json {_with_spacing(_call_schema(tools))}")
    return await _checked(HEAD + "\n".join(lines), loaded, "tools")


def native_tools(tools: Sequence[Tool]) -> list[Tool]:
    """Tools for a template that knows them, and for the grammar that llama.cpp makes of them. Raises ApiError."""
    return [
        {**tool, "function": {**function, "parameters": without_unknown_formats(function["parameters"], where)}}
        for tool, function, where in (
            (tool, tool["function"], f"tools.{number}.function.parameters") for number, tool in enumerate(tools)
        )
    ]


async def required_grammar(start: str, call: str, parameters: Sequence[JsonObject], loaded: LoadedModel) -> str:
    """Calls and nothing else. start, call: rules in Lark, of `call`s, and of the arguments `a0`, `a1`, … whose schemas
    are `parameters`. Raises ApiError."""
    lines = [f"start: {start}{_end(loaded)}", f"call: {call}"]
    for number, schema in enumerate(parameters):
        own = engine_schema(schema, f"tools.{number}.function.parameters")
        closed = {"type": "object", "additionalProperties": False} | own
        lines.append(f"a{number}: %json {_with_spacing(closed)}")
    return await _checked(HEAD + "\n".join(lines), loaded, "tools")


async def own_grammar(gbnf: str, loaded: LoadedModel) -> str:
    """A request's own grammar: llama.cpp's GBNF, or llguidance's Lark. Raises ApiError."""
    end = _end(loaded)
    if gbnf.startswith("%llguidance"):
        return await _checked(gbnf, loaded, "grammar")
    lark = await _checked(gbnf, loaded, "grammar", is_gbnf=True)
    if end and lark.count("start") == 1:
        lark = f"{lark.replace('start:', 'answer:')}\nstart: answer{end}\n"
    return await _checked(lark, loaded, "grammar")


def _call_schema(tools: Sequence[Tool]) -> JsonObject:
    """One call of any of the tools. Definitions in their schemas (`#/$defs/…`) are lifted to the root."""
    calls: list[JsonObject] = []
    lifted: JsonObject = {}
    for number, tool in enumerate(tools):
        function = tool["function"]
        # where a schema allows it, small models invent arguments without end
        own = engine_schema(function["parameters"], f"tools.{number}.function.parameters")
        parameters: JsonObject = {"type": "object", "additionalProperties": False} | own
        for key in ("$defs", "definitions"):
            definitions = parameters.get(key)
            if isinstance(definitions, dict):
                renamed = {f"#/{key}/{name}": f"#/$defs/t{number}_{name}" for name in definitions}
                parameters = _renamed_refs(parameters, renamed)
                moved = parameters.pop(key)
                assert isinstance(moved, dict)
                lifted |= {f"t{number}_{name}": value for name, value in moved.items()}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return ({"anyOf": calls} if len(calls) > 1 else calls[0]) | ({"$defs": lifted} if lifted else {})


def _renamed_refs(schema: JsonObject, renamed: Mapping[str, str]) -> JsonObject:
    def rename(value: object) -> object:
        if isinstance(value, list):
            return [rename(item) for item in value]
        return _renamed_refs(value, renamed) if isinstance(value, dict) else value

    inner = {key: rename(value) for key, value in schema.items()}
    ref = inner.get("$ref")
    return inner | ({"$ref": renamed.get(ref, ref)} if isinstance(ref, str) else {})


def _with_spacing(schema: JsonObject) -> str:
    return json.dumps(schema | {"x-guidance": SPACING}, ensure_ascii=True)


def _end(loaded: LoadedModel) -> str:
    """llguidance knows one token that ends a text; a chat model ends its answer with another one."""
    if not loaded.child.is_guided:
        raise ApiError(400, "this build of llama.cpp cannot constrain an answer with a grammar", "not_supported")
    ends = loaded.facts.ends
    return f" <[{','.join(map(str, ends))}]>?" if ends else ""


async def _checked(grammar: str, loaded: LoadedModel, param: str, is_gbnf: bool = False) -> str:
    try:
        return await check_grammar(grammar, loaded, is_gbnf)
    except GrammarError as e:
        raise invalid(param, f"it cannot constrain an answer: {_reason(str(e))}") from None


def _reason(error: str) -> str:
    for pattern, words in LIMITS:
        if re.search(pattern, error):
            return words
    return error.split("): ", 1)[-1].splitlines()[0][:300] if error.strip() else "it does not compile"

"""Grammars that constrain an answer, for llguidance, which is built into this llama.cpp.

llama.cpp silently leaves an answer unconstrained when its grammar does not compile. So every grammar is compiled here
first, by the same library, and what it cannot express is an error with the library's own words.
"""

import json
from collections.abc import Mapping, Sequence

from settle.server.errors import ApiError, invalid
from settle.server.models.loaded_model import LoadedModel
from settle.server.requests.grammar_compiler import GrammarError, compile_grammar
from settle.server.wire_types import JsonObject, Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
HEAD = "%llguidance {}\n"
# one space where people put one, none elsewhere: where whitespace is free, small models write it without end
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


async def json_grammar(schema: JsonObject, loaded: LoadedModel, param: str) -> str:
    """JSON that fits a schema, {} for any object. Raises ApiError."""
    json_rule = f"json: %json {_with_spacing(schema or {'type': 'object'})}"
    return await _checked(f"{HEAD}start: json{_end(loaded)}\n{json_rule}", param)


async def call_grammar(tools: Sequence[Tool], is_required: bool, is_parallel: bool, loaded: LoadedModel) -> str:
    """Calls of `tools` whose arguments fit their schemas; any text before or instead of one, unless one is required.
    Raises ApiError."""
    opening = f'"{OPEN}" json' if is_required else "before json"
    more = f' ("\\n{OPEN}" json "{CLOSE}")*' if is_parallel else ""
    calls = f'{opening} "{CLOSE}"{more}'
    lines = [f"start: {calls if is_required else f'(TEXT | {calls})'}{_end(loaded)}"]
    if not is_required:
        lines += [f'before[suffix="{OPEN}"]: /(?s:.*)/', f"TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/"]
    return await _checked(HEAD + "\n".join([*lines, f"json: %json {_with_spacing(_call_schema(tools))}"]), "tools")


async def required_grammar(start: str, call: str, parameters: Sequence[JsonObject], loaded: LoadedModel) -> str:
    """Calls and nothing else. start, call: rules in Lark, of `call`s, and of the arguments `a0`, `a1`, … whose schemas
    are `parameters`. Raises ApiError."""
    lines = [f"start: {start}{_end(loaded)}", f"call: {call}"]
    for number, schema in enumerate(parameters):
        closed = {"type": "object", "additionalProperties": False} | schema
        lines.append(f"a{number}: %json {_with_spacing(closed)}")
    return await _checked(HEAD + "\n".join(lines), "tools")


async def own_grammar(gbnf: str, loaded: LoadedModel) -> str:
    """A request's own grammar: llama.cpp's GBNF, or llguidance's Lark. Raises ApiError."""
    end = _end(loaded)
    if gbnf.startswith("%llguidance"):
        return await _checked(gbnf, "grammar")
    lark = await _checked(gbnf, "grammar", is_gbnf=True)
    if end and lark.count("start") == 1:
        lark = f"{lark.replace('start:', 'answer:')}\nstart: answer{end}\n"
    return await _checked(lark, "grammar")


def _call_schema(tools: Sequence[Tool]) -> JsonObject:
    """One call of any of the tools. Definitions in their schemas (`#/$defs/…`) are lifted to the root."""
    calls: list[JsonObject] = []
    lifted: JsonObject = {}
    for number, tool in enumerate(tools):
        function = tool["function"]
        # where a schema allows it, small models invent arguments without end
        parameters: JsonObject = {"type": "object", "additionalProperties": False} | function["parameters"]
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


async def _checked(grammar: str, param: str, is_gbnf: bool = False) -> str:
    try:
        return await compile_grammar(grammar, is_gbnf)
    except GrammarError as e:
        reason = str(e).split("): ", 1)[-1][:300]
        raise invalid(param, f"it cannot constrain an answer: {reason}") from None

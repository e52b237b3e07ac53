"""Grammars that an answer is held to, for llguidance, which is built into llama.cpp here.

llama.cpp lets an answer go unconstrained, without a word, when a grammar does not compile. So every grammar is compiled
here first, by the same library, and what it cannot express is refused with its own words.
"""

import json
from collections.abc import Sequence
from typing import Any

from settle.server.errors import Refusal, invalid
from settle.server.models.model_pool import Loaded
from settle.server.requests.grammar_compiler import Unfit, compiled

OPEN, CLOSE = "<tool_call>", "</tool_call>"
HEAD = "%llguidance {}\n"
# one space where people put one, none elsewhere: where any whitespace may stand, small models write it without end
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


async def json_grammar(schema: dict[str, Any], loaded: Loaded, param: str) -> str:
    """JSON that fits a schema, {} for any object. Raises Refusal."""
    return await _checked(
        f"{HEAD}start: json{_end(loaded)}\njson: %json {_spaced(schema or {'type': 'object'})}", param
    )


async def call_grammar(tools: Sequence[dict], is_required: bool, is_parallel: bool, loaded: Loaded) -> str:
    """Calls of `tools` whose arguments fit their schemas; any text before or instead of one, unless one is required.
    Raises Refusal."""
    opening = f'"{OPEN}" json' if is_required else "before json"
    more = f' ("\\n{OPEN}" json "{CLOSE}")*' if is_parallel else ""
    calls = f'{opening} "{CLOSE}"{more}'
    lines = [f"start: {calls if is_required else f'(TEXT | {calls})'}{_end(loaded)}"]
    if not is_required:
        lines += [f'before[suffix="{OPEN}"]: /(?s:.*)/', f"TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/"]
    return await _checked(HEAD + "\n".join([*lines, f"json: %json {_spaced(_call_schema(tools))}"]), "tools")


async def own_grammar(gbnf: str, loaded: Loaded) -> str:
    """A grammar in llama.cpp's GBNF, or llguidance's Lark. Raises Refusal."""
    end = _end(loaded)
    if gbnf.startswith("%llguidance"):
        return await _checked(gbnf, "grammar")
    lark = await _checked(gbnf, "grammar", is_gbnf=True)
    if end and lark.count("start") == 1:
        lark = f"{lark.replace('start:', 'answer:')}\nstart: answer{end}\n"
    return await _checked(lark, "grammar")


def _call_schema(tools: Sequence[dict]) -> dict[str, Any]:
    """One call of any of the tools. What their schemas refer to (`#/$defs/…`) is lifted to where it is looked for."""
    calls, lifted = [], {}
    for number, tool in enumerate(tools):
        function = tool["function"]
        # where a schema does not say, small models invent arguments without end
        parameters = {"type": "object", "additionalProperties": False} | function["parameters"]
        for key in ("$defs", "definitions"):
            if isinstance(parameters.get(key), dict):
                renamed = {f"#/{key}/{name}": f"#/$defs/t{number}_{name}" for name in parameters[key]}
                parameters = _referring(parameters, renamed)
                lifted |= {f"t{number}_{name}": value for name, value in parameters.pop(key).items()}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return ({"anyOf": calls} if len(calls) > 1 else calls[0]) | ({"$defs": lifted} if lifted else {})


def _referring(value: Any, renamed: dict[str, str]) -> Any:
    if isinstance(value, dict):
        told = {key: _referring(inner, renamed) for key, inner in value.items()}
        return told | ({"$ref": renamed.get(told["$ref"], told["$ref"])} if isinstance(told.get("$ref"), str) else {})
    return [_referring(inner, renamed) for inner in value] if isinstance(value, list) else value


def _spaced(schema: dict[str, Any]) -> str:
    return json.dumps(schema | {"x-guidance": SPACING}, ensure_ascii=True)


def _end(loaded: Loaded) -> str:
    """llguidance knows one token that ends a text; a model of turns ends its answer with another."""
    if not loaded.child.is_guided:
        raise Refusal(400, "this build of llama.cpp cannot hold an answer to a grammar", "not_supported")
    ends = loaded.facts.ends
    return f" <[{','.join(map(str, ends))}]>?" if ends else ""


async def _checked(grammar: str, param: str, is_gbnf: bool = False) -> str:
    try:
        return await compiled(grammar, is_gbnf)
    except Unfit as e:
        said = str(e).split("): ", 1)[-1][:300]
        raise invalid(param, f"an answer cannot be held to it: {said}") from None

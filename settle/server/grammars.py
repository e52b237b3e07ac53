"""Grammars that constrain an answer, for llguidance, which is built into this llama.cpp.

llama.cpp silently leaves an answer unconstrained when its grammar fails. So every grammar is tried first, by the same
library with the same model's tokens, and what it cannot keep to is an error.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from settle.base.line_child import LineChild
from settle.base.python_command import module_command
from settle.infer.child_process import Json
from settle.infer.client import JSON_SPACING
from settle.server.models.loaded_model import LoadedModel
from settle.wire.errors import ApiError, invalid
from settle.wire.types import ChatRequest, TextRequest, Tool

SECONDS = 60.0  # on a busy machine, for the process to start, to read a model's tokens, and to check; it limits itself

_THREAD = ThreadPoolExecutor(1, "grammars")  # one after the other
_CHILD = LineChild(module_command("settle.server.grammar_child"))


class GrammarError(Exception):
    """A grammar that cannot be kept to, or an answer that does not fit, in the checker's words."""


async def check_grammar(grammar: str, loaded: LoadedModel, is_gbnf: bool = False) -> str:
    """Return the grammar for llguidance, from its own format or llama.cpp's GBNF. Raises GrammarError."""
    return await _ask("grammar", grammar, is_gbnf, str(loaded.key.path), loaded.key.stamp)


async def check_answer(grammar: str, loaded: LoadedModel, schema: Json | None, text: str, has_ended: bool) -> None:
    """Check a text against a grammar and a schema. Raises GrammarError.

    It must be what the grammar allows, or the beginning of it where the text has not ended, and fit the schema where it
    has."""
    await _ask("answer", grammar, str(loaded.key.path), loaded.key.stamp, schema, text, has_ended)


async def check_json(schema: Json, text: str) -> None:
    """Check that a text is JSON of the schema. Raises GrammarError."""
    await _ask("json", schema, text)


def close_checker() -> None:
    """End the process; the next request makes a new one."""
    _CHILD.close()


async def _ask(*request: object) -> str:
    return await asyncio.get_running_loop().run_in_executor(_THREAD, _ask_process, json.dumps(request).encode())


def _ask_process(request: bytes) -> str:
    answer = _CHILD.ask(request, SECONDS)
    if not answer.endswith(b"\n"):
        status = _CHILD.exit_code(1.0)
        close_checker()
        if status == 1:
            raise RuntimeError("the checker of grammars does not start")
        raise GrammarError("it is nested too deep, or takes too much time or memory to compile")
    result, error = json.loads(answer)
    if error is not None:
        raise GrammarError(error)
    return str(result)


OPEN, CLOSE = "<tool_call>", "</tool_call>"
MOST_CALLS = 32  # of one answer
HEAD = "%llguidance {}\n"
# llguidance's words for a limit, and what they mean to whoever wrote the schema
LIMITS = (
    (r"Current row has", "it allows too many things at one place, such as optional properties or alternatives"),
    ("Too many items", "it leads on without an end, as an object does that requires another of its own kind"),
    (r"^panic|grammar size", "it is too large for the engine: lower its counts, or the number of its alternatives"),
    ("NoExtension", "no text fits it"),
)


async def json_grammar(schema: Json, loaded: LoadedModel, param: str) -> str:
    """Return the grammar of JSON that fits a schema, {} for any object. Raises ApiError."""
    json_rule = f"json: %json {_with_spacing(answer_schema(schema, param))}"
    return await _checked(f"{HEAD}start: json{_end(loaded)}\n{json_rule}", loaded, param)


def answer_schema(schema: Json, param: str) -> Json:
    """Return the schema that the engine keeps to, of a request's own, {} for any object. Raises ApiError."""
    return engine_schema(schema or {"type": "object"}, param)


async def call_grammar(tools: Sequence[Tool], is_parallel: bool, loaded: LoadedModel) -> str:
    """Return the grammar of text, of calls of `tools` whose arguments fit their schemas, or both. Raises ApiError."""
    more = f' ("\\n{OPEN}" json "{CLOSE}"){{0,{MOST_CALLS - 1}}}' if is_parallel else ""
    lines = [
        f'start: (TEXT | before json "{CLOSE}"{more}){_end(loaded)}',
        f'before[suffix="{OPEN}"]: /(?s:.*)/',
        f"TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/",
        f"json: %json {_with_spacing(_call_schema(tools))}",
    ]
    return await _checked(HEAD + "\n".join(lines), loaded, "tools")


def native_tools(tools: Sequence[Tool]) -> list[Tool]:
    """Return tools for a template that knows them, and for llama.cpp's grammar of them. Raises ApiError."""
    known: list[Tool] = []
    for number, tool in enumerate(tools):
        function = tool["function"]
        # a format that the engine does not know is left out, where a pattern would fill the prompt
        rewriter = _Rewriter(f"tools.{number}.function.parameters", has_patterns=False)
        known.append({**tool, "function": {**function, "parameters": rewriter.schema(function["parameters"], ())}})
    return known


async def required_grammar(start: str, call: str, parameters: Sequence[Json], loaded: LoadedModel) -> str:
    """Return the grammar of calls and nothing else. Raises ApiError.

    start, call: rules in Lark, of `call`s, and of the arguments `a0`, `a1`, … whose schemas are `parameters`."""
    lines = [f"start: {start}{_end(loaded)}", f"call: {call}"]
    lines += [f"a{n}: %json {_with_spacing(_arguments(n, schema))}" for n, schema in enumerate(parameters)]
    return await _checked(HEAD + "\n".join(lines), loaded, "tools")


async def own_grammar(gbnf: str, loaded: LoadedModel) -> str:
    """Return the grammar of a request's own: llama.cpp's GBNF, or llguidance's Lark. Raises ApiError."""
    end = _end(loaded)
    if gbnf.startswith("%llguidance"):
        return await _checked(gbnf, loaded, "grammar")
    lark = await _checked(gbnf, loaded, "grammar", is_gbnf=True)
    if end and lark.count("start") == 1:
        lark = f"{lark.replace('start:', 'answer:')}\nstart: answer{end}\n"
    return await _checked(lark, loaded, "grammar")


def _arguments(number: int, parameters: Json) -> Json:
    """Return the schema of a tool's arguments: where it leaves it open, small models invent arguments without end."""
    own = engine_schema(parameters, f"tools.{number}.function.parameters")
    return {"type": "object", "additionalProperties": False} | own


def _call_schema(tools: Sequence[Tool]) -> Json:
    """One call of any of the tools. Definitions in their schemas (`#/$defs/…`) are lifted to the root."""
    calls: list[Json] = []
    lifted: Json = {}
    for number, tool in enumerate(tools):
        function = tool["function"]
        parameters = _arguments(number, function["parameters"])
        for key in ("$defs", "definitions"):
            definitions = parameters.get(key)
            if isinstance(definitions, dict):
                renamed = {f"#/{key}/{name}": f"#/$defs/t{number}_{name}" for name in definitions}
                parameters = _renamed_refs(parameters, renamed)
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


def _renamed_refs(schema: Json, renamed: Mapping[str, str]) -> Json:
    def rename(inner: Json) -> Json:
        ref = inner.get("$ref")
        return inner | {"$ref": renamed.get(ref, ref)} if isinstance(ref, str) else inner

    result: Json = json.loads(json.dumps(schema), object_hook=rename)
    return result


def _with_spacing(schema: Json) -> str:
    return json.dumps({**schema, **JSON_SPACING}, ensure_ascii=True)


def _end(loaded: LoadedModel) -> str:
    """Return what may end an answer: llguidance knows one token that ends a text, and a chat model uses another."""
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


# an array's rule grows with its bound: 3 million took 52 s and 5 GB. No context holds more items than this.
MOST_ITEMS = 32_768
COUNTS = ("minItems", "maxItems")

SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
SINGLE = (
    *("items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)

_HEX = "%[0-9A-Fa-f]{2}"
_PATH_CHARACTER = rf"([A-Za-z0-9._~!$&'()*+,;=:@-]|{_HEX})"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_PORT = "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
_NAME = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"({_NAME}(\.{_NAME})*|{_BYTE}(\.{_BYTE}){{3}}){_PORT}"
_USER = rf"(([A-Za-z0-9._~!$&'()*+,;=-]|{_HEX})+(:([A-Za-z0-9._~!$&'()*+,;=-]|{_HEX})*)?@)?"
_MORE = f"({_PATH_CHARACTER}|[/?])*"
_TAIL = rf"(/{_PATH_CHARACTER}*)*(\?{_MORE})?(#{_MORE})?"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
# RFC 3986, without a host of its own only where such addresses are usual
_URI = rf"({_SCHEME}://{_USER}{_HOST}|file://|(mailto|urn|tel|data|doi|news):{_PATH_CHARACTER}+){_TAIL}"
_RELATIVE = rf"(/|[.][.]?/|[A-Za-z0-9._~-]+){_PATH_CHARACTER.replace(':', '')}*{_TAIL}"
_POINTER = "(/([^/~]|~[01])*)*"


def _uuid(version: int) -> str:
    return f"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"


PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("uri", "url", "iri"), f"^{_URI}$"),
        **dict.fromkeys(("uri-reference", "iri-reference"), f"^({_URI}|{_RELATIVE})$"),
        "multi-host-uri": rf"^{_SCHEME}://{_USER}{_HOST}(,{_HOST})*{_TAIL}$",
        "ipvanyaddress": rf"^{_BYTE}(\.{_BYTE}){{3}}$",
        "ipv4interface": rf"^{_BYTE}(\.{_BYTE}){{3}}/(3[0-2]|[12]?[0-9])$",
        "json-pointer": f"^{_POINTER}$",
        "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$",
        **dict.fromkeys(("byte", "base64"), "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"),
        "base64url": "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?$",
        **{f"uuid{version}": _uuid(version) for version in range(1, 9)},
    }
)
NARROWER = MappingProxyType({"idn-email": "email", "idn-hostname": "hostname"})
FREE = frozenset(("password", "binary", "path", "file-path", "directory-path"))  # any text: a hint for people


def engine_schema(schema: Json, param: str) -> Json:
    """Return the schema as the engine is given it. Raises ApiError for a number that is out of its bounds."""

    def within_64_bits(digits: str) -> int:
        number = int(digits)
        if not -(1 << 63) <= number < 1 << 64:  # the engine reads it as the nearest that 64 bits hold
            raise invalid(param, f"the engine cannot keep to the number {digits[:60]}: it is longer than 64 bits")
        return number

    return _Rewriter(param).schema(json.loads(json.dumps(schema), parse_int=within_64_bits), ())


class _Rewriter:
    """Rewrites the places of a document that are schemas, and leaves its values alone. param: for errors."""

    def __init__(self, param: str, has_patterns: bool = True) -> None:
        self.param, self.has_patterns = param, has_patterns

    def schema(self, schema: Json, place: tuple[str, ...]) -> Json:
        for key in COUNTS:
            count = schema.get(key)
            if isinstance(count, int | float) and count > MOST_ITEMS:
                where = f" of {'.'.join(place)[:200]}" if place else ""
                raise invalid(self.param, f"{key}{where} is {count:,}; the engine keeps to at most {MOST_ITEMS:,}")
        written = {key: self._value(key, value, (*place, key)) for key, value in schema.items()}
        return _with_known_format(written, self.has_patterns)

    def _value(self, key: str, value: object, place: tuple[str, ...]) -> object:
        if key in SCHEMAS and isinstance(value, dict):
            return {name: self._one(inner, (*place, name)) for name, inner in value.items()}
        if isinstance(value, list) and (key in LISTS or key == "items"):
            return [self._one(inner, (*place, str(number))) for number, inner in enumerate(value)]
        return self._one(value, place) if key in SINGLE else value

    def _one(self, value: object, place: tuple[str, ...]) -> object:
        return self.schema(value, place) if isinstance(value, dict) else value


def _with_known_format(schema: Json, has_patterns: bool) -> Json:
    name = schema.get("format")
    if not isinstance(name, str):
        return schema
    rest = {key: value for key, value in schema.items() if key != "format"}
    if name in FREE or (name in PATTERNS and not has_patterns):
        return rest
    if name in NARROWER:
        return rest | {"format": NARROWER[name]}
    if name not in PATTERNS:
        return schema
    if "pattern" not in rest:
        return rest | {"pattern": PATTERNS[name]}
    both = rest.get("allOf")
    return rest | {"allOf": [*(both if isinstance(both, list) else []), {"pattern": PATTERNS[name]}]}


SPECIAL_TOKEN = "<["  # in a grammar: one ends an answer; others are not in the text that llama.cpp shows


class AnswerCheck:
    """The texts that answer one request, by the index of their choice. body: the request as the engine is given it."""

    def __init__(self, loaded: LoadedModel, request: ChatRequest | TextRequest, body: Json) -> None:
        self._loaded, self._grammar, self._can_be_cut = loaded, body.get("grammar"), bool(request.stop)
        self._schema = None if request.schema is None else answer_schema(request.schema, "response_format")
        self._texts: defaultdict[int, str] = defaultdict(str)

    def add(self, text: str | None, index: int = 0) -> None:
        if self._grammar:
            self._texts[index] += text or ""

    async def finish(self, has_ended: bool, index: int = 0) -> None:
        """has_ended: whether the model ended the text, and no limit did. Raises ApiError for one that does not fit."""
        text, is_whole = self._texts.pop(index, ""), has_ended and not self._can_be_cut
        if not self._grammar or self._grammar.count(SPECIAL_TOKEN) > 1:
            return
        try:
            await check_answer(self._grammar, self._loaded, self._schema, text, is_whole)
        except GrammarError as e:
            message = f"the engine did not keep to the schema or grammar: {str(e)[:300]}"
            raise ApiError(502, message, "engine_error") from None

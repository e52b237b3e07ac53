"""Calls as models write them in text: JSON, Python, and the tags of Hermes, Qwen, Mistral, Functionary, DeepSeek, GLM.

The forms are those of the models' published templates. Each is read from the beginning of a text that may go on; what a
call is of, and whether its arguments fit, is checked elsewhere.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from settle.base.files import parse_json
from settle.infer.tool_calls.types import JsonObject

# what stands before calls only
MARKERS = (
    *("<tool_call>", "<tool_calls>", "<tools>", "<function_call>", "<functioncall>", "<function=", "<seed:tool_call>"),
    *("<|python_tag|>", "<|tool_call|>", "<|tool_call_start|>", "<|tools_prefix|>", "<|START_ACTION|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    *("[TOOL_CALLS]", "functools[", ">>>"),
)
TURN = ">>>"  # of Functionary, which writes `>>>all` before text
OPEN_MARKERS = {"<function=": 0, "functools[": len("functools")}  # where in them the call begins
# what may follow a call, or come between two
CLOSERS = (
    *("</tool_call>", "</tool_calls>", "</tools>", "</function_call>", "</functioncall>", "</function>"),
    *("</seed:tool_call>", "<|tool_call_end|>", "<|/tool_call|>", "<|tools_suffix|>", "<|END_ACTION|>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|im_end|>", "</s>", "```", ";", ",", "\n", " ", "\t", "\r"),
)
LANGUAGES = {"", "json", "python", "py", "tool", "tool_call", "tool_calls", "tool_code", "function", "function_call"}
FENCE = "```"
LONGEST_HEAD = 200  # characters between a marker and the arguments
NAME_KEYS = ("name", "function", "tool_name", "tool", "function_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
OTHER_KEYS = {"id", "type", "index", "tool_call_id", "call_id"}
FIRST_KEYS = {*NAME_KEYS, *ARGUMENT_KEYS, *OTHER_KEYS, "tool_calls", "function_call"}
CONSTANTS = {"true": True, "false": False, "null": None}
FIRST_KEY = re.compile(r'[\[\s]*\{\s*"((?:[^"\\]|\\.)*)"')
SEPARATOR = r"(?::\d+)?\s*(?:\[CALL_ID\]\w*)?(?:\[ARGS\]|<｜tool▁sep｜>|<\|tool_call_argument_begin\|>|```json)?\s*"
PREFIX = r"\s*(?:function<｜tool▁sep｜>|functions\.)?"
PARAMETER = re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


# a name in the place of a call's, whatever the function
ANY_NAME = re.compile(
    r'"(?:name|function|tool_name|tool|function_name)"\s*:\s*"([^"\\]{1,128})"'
    r'|<function(?:=|\s+name=")([\w.:/-]{1,128})|(?:^|[\s\[,\]>])([A-Za-z_][\w.:/-]{0,127})(?=\(|\{|\[ARGS\]|\n|<|:\d)',
)


class Written(NamedTuple):
    """A call as it was written. arguments: of any JSON type."""

    name: str
    arguments: object


class Payload(NamedTuple):
    """Calls, and where their text ends."""

    calls: list[Written]
    end: int


# "more": it may still become a call when the text goes on; "no": it is none
Found = Payload | Literal["more", "no"]


class CallTexts:
    """Reads calls of the given functions. schemas: of their arguments, by name."""

    def __init__(self, schemas: Mapping[str, JsonObject]) -> None:
        self.schemas = schemas
        names = "|".join(re.escape(name) for name in sorted(schemas, key=len, reverse=True))
        self.names = re.compile(rf"(?:{names})")
        self._tag = re.compile(rf'\s*<?function(?:=|\s+name=")?({names})"?>')
        self._with_json = re.compile(rf"{PREFIX}({names}){SEPARATOR}(?=\{{)")
        self._with_pairs = re.compile(rf"\s*({names})\s*(?=<arg_key>)")
        self._python = re.compile(rf"\s*(\[\s*)?({names})\(")

    def fence(self, text: str, is_end: bool) -> Found:
        """Read a block in a Markdown fence that holds calls and nothing else."""
        line, newline, _ = text.partition("\n")
        if line.removeprefix(FENCE).strip().lower() not in LANGUAGES:
            return "more" if not newline and not is_end and len(line) < LONGEST_HEAD else "no"
        calls: list[Written] = []
        place = len(line) + 1
        while True:
            place = skip(text, place, ("\n", " ", "\t", "\r", ",", ";"))
            if text.startswith(FENCE, place) or is_end and place >= len(text):
                return Payload(calls, min(len(text), place + len(FENCE))) if calls else "no"
            if place >= len(text) or FENCE.startswith(text[place:]):
                return "no" if is_end else "more"
            found = self.payload(text[place:], is_end, False)
            if not isinstance(found, Payload):
                return found
            calls += found.calls
            place += found.end

    def payload(self, text: str, is_end: bool, is_marked: bool) -> Found:
        """One call, or a list of them. is_marked: whether a marker of calls stands before it."""
        start = skip(text, 0, ("\n", " ", "\t", "\r"))
        if match := self._python.match(text):
            return self._pythonic(text, start, "[" if match[1] else "(", match.end() - 1)
        if text[start : start + 1] in ("{", "["):
            return self._json(text, start, is_marked)
        if match := self._with_json.match(text):
            arguments, end = _json_at(text, match.end())
            return Payload([Written(match[1], arguments)], end) if end > 0 else "more" if end == 0 else "no"
        if is_marked:
            if match := self._tag.match(text):
                return self._tagged(text, match, is_end)
            if match := self._with_pairs.match(text):
                end = text.find("</tool_call>", match.end())
                return self._pairs(match[1], text, match.end(), end) if end >= 0 else "more"
        return "no" if is_end or len(text) > LONGEST_HEAD or not self._may_begin(text, is_marked) else "more"

    def _may_begin(self, text: str, is_marked: bool) -> bool:
        """Return whether a text that is no call yet may become one."""
        head = text.strip()
        return is_marked or not head or bool(self.names.match(head)) or self._is_part_of_name(head)

    def _is_part_of_name(self, head: str) -> bool:
        return any(name.startswith(head) for name in self.schemas)

    def _json(self, text: str, start: int, is_marked: bool) -> Found:
        key = FIRST_KEY.match(text, start)
        if key and not (key[1] in FIRST_KEYS or is_marked and key[1] in self.schemas):
            return "no"
        value, end = _json_at(text, start)
        if end <= 0:
            return "no" if end < 0 else "more"
        calls = _calls_of(value)
        if calls is None and is_marked:
            calls = self._keyed(value)
        return Payload(calls, end) if calls else "no"

    def _keyed(self, value: object) -> list[Written] | None:
        """[{NAME: ARGUMENTS}], as Apertus writes."""
        calls: list[Written] = []
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict) or len(part) != 1 or {*part} - {*self.schemas}:
                return None
            calls += [Written(name, arguments) for name, arguments in part.items()]
        return calls

    def _tagged(self, text: str, match: re.Match[str], is_end: bool) -> Found:
        place = skip(text, match.end(), ("\n", " "))
        if text.startswith("{", place):
            arguments, end = _json_at(text, place)
            return Payload([Written(match[1], arguments)], end) if end > 0 else "more" if end == 0 else "no"
        end = text.find("</function>", match.end())
        if end < 0:
            return "no" if is_end else "more"
        values = dict(PARAMETER.findall(text[match.end() : end]))
        return Payload([Written(match[1], self._typed(match[1], values))], end)

    def _pairs(self, name: str, text: str, start: int, end: int) -> Payload:
        return Payload([Written(name, self._typed(name, dict(PAIR.findall(text[start:end]))))], end)

    def _typed(self, name: str, values: Mapping[str, str]) -> JsonObject:
        """Texts as values of the types that the schema says."""
        properties = self.schemas[name].get("properties")
        typed: JsonObject = {}
        for key, value in values.items():
            schema = properties.get(key) if isinstance(properties, dict) else None
            is_text = isinstance(schema, dict) and schema.get("type") == "string"
            try:
                typed[key] = value if is_text else parse_json(value)
            except ValueError:
                typed[key] = value
        return typed

    def _pythonic(self, text: str, start: int, opening: str, parenthesis: int) -> Found:
        end = _balanced_end(text, start if opening == "[" else parenthesis, "\"'")
        if end <= 0:
            return "more" if end == 0 else "no"
        try:
            node = ast.parse(text[start:end], mode="eval").body
            nodes = node.elts if isinstance(node, ast.List) else [node]
            return Payload([_python_call(node) for node in nodes], end)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return "no"


def names_in(text: str) -> list[str]:
    """Names that may be those of functions that are called."""
    return list(dict.fromkeys(next(filter(None, match.groups())) for match in ANY_NAME.finditer(text)))


def _python_call(node: ast.expr) -> Written:
    """Read a call. Raises ValueError for anything but a call with named literals."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    arguments: JsonObject = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError
        value = keyword.value
        is_constant = isinstance(value, ast.Name) and value.id in CONSTANTS
        arguments[keyword.arg] = CONSTANTS[value.id] if is_constant else ast.literal_eval(value)  # type: ignore[attr-defined]
    json.dumps(arguments)  # sets and bytes are no JSON
    return Written(ast.unparse(node.func), arguments)


def _calls_of(value: object) -> list[Written] | None:
    """Return the calls that a JSON value is, or None."""
    if isinstance(value, list):
        parts = [_calls_of(part) for part in value]
        return [call for part in parts if part for call in part] if parts and all(parts) else None
    if not isinstance(value, dict):
        return None
    for key in ("tool_calls", "function_call", "function"):
        if isinstance(value.get(key), dict | list) and {*value} <= {key, *OTHER_KEYS}:
            return _calls_of(value[key])
    names = [key for key in NAME_KEYS if isinstance(value.get(key), str)]
    arguments = [key for key in ARGUMENT_KEYS if key in value]
    if len(names) != 1 or len(arguments) != 1 or {*value} - {*names, *arguments, *OTHER_KEYS}:
        return None
    return [Written(value[names[0]], value[arguments[0]])]


def _json_at(text: str, start: int) -> tuple[object, int]:
    """Return the value at a place and where it ends: 0 where it continues beyond the text, -1 where it is not JSON."""
    end = _balanced_end(text, start, '"')
    if end <= 0:
        return None, end
    try:
        return parse_json(text[start:end]), end
    except ValueError:
        return None, -1


def _balanced_end(text: str, start: int, quotes: str) -> int:
    """Where the bracket at `start` is closed: 0 where the text ends before, -1 where another kind closes it."""
    closing: list[str] = []
    quote = ""
    place = start
    while place < len(text):
        sign = text[place]
        if quote:
            if sign == "\\":
                place += 1
            elif sign == quote:
                quote = ""
        elif sign in quotes:
            quote = sign
        elif sign in "{[(":
            closing.append({"{": "}", "[": "]", "(": ")"}[sign])
        elif sign in "}])":
            if closing.pop() != sign:
                return -1
            if not closing:
                return place + 1
        place += 1
    return 0


def skip(text: str, place: int, signs: Sequence[str]) -> int:
    """Return the place behind as many of the signs as follow."""
    while sign := next((sign for sign in signs if text.startswith(sign, place)), ""):
        place += len(sign)
    return place

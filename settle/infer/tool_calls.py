"""Recognises calls in an answer while it is streamed, where a model may call a tool or write text."""

import ast
import contextlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from settle.base.files import parse_json

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
    """Calls, and where their text ends.

    Without calls, the end is 0 where the text may still become one when it goes on, and -1 where it cannot."""

    calls: list[Written]
    end: int


MORE, NO = Payload([], 0), Payload([], -1)


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

    def fence(self, text: str, is_end: bool) -> Payload:
        """Read a block in a Markdown fence that holds calls and nothing else."""
        line, newline, _ = text.partition("\n")
        if line.removeprefix(FENCE).strip().lower() not in LANGUAGES:
            return MORE if not newline and not is_end and len(line) < LONGEST_HEAD else NO
        calls: list[Written] = []
        place = len(line) + 1
        while True:
            place = skip(text, place, ("\n", " ", "\t", "\r", ",", ";"))
            if text.startswith(FENCE, place) or is_end and place >= len(text):
                return Payload(calls, min(len(text), place + len(FENCE))) if calls else NO
            if place >= len(text) or FENCE.startswith(text[place:]):
                return NO if is_end else MORE
            found = self.payload(text[place:], is_end, False)
            if not found.calls:
                return found
            calls += found.calls
            place += found.end

    def payload(self, text: str, is_end: bool, is_marked: bool) -> Payload:
        """One call, or a list of them. is_marked: whether a marker of calls stands before it."""
        start = skip(text, 0, ("\n", " ", "\t", "\r"))
        if match := self._python.match(text):
            return self._pythonic(text, start, "[" if match[1] else "(", match.end() - 1)
        if text[start : start + 1] in ("{", "["):
            return self._json(text, start, is_marked)
        if match := self._with_json.match(text):
            arguments, end = _json_at(text, match.end())
            return Payload([Written(match[1], arguments)] if end > 0 else [], end)
        if is_marked:
            if match := self._tag.match(text):
                return self._tagged(text, match, is_end)
            if match := self._with_pairs.match(text):
                end = text.find("</tool_call>", match.end())
                values = dict(PAIR.findall(text[match.end() : end]))
                return Payload([Written(match[1], self._typed(match[1], values))], end) if end >= 0 else MORE
        head = text.strip()
        may_begin = is_marked or bool(self.names.match(head)) or any(name.startswith(head) for name in self.schemas)
        return MORE if may_begin and not is_end and len(text) <= LONGEST_HEAD else NO

    def _json(self, text: str, start: int, is_marked: bool) -> Payload:
        key = FIRST_KEY.match(text, start)
        if key and not (key[1] in FIRST_KEYS or is_marked and key[1] in self.schemas):
            return NO
        value, end = _json_at(text, start)
        if end <= 0:
            return Payload([], end)
        calls = _calls_of(value) or (self._keyed(value) if is_marked else [])
        return Payload(calls, end) if calls else NO

    def _keyed(self, value: object) -> list[Written]:
        """[{NAME: ARGUMENTS}], as Apertus writes."""
        calls: list[Written] = []
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict) or len(part) != 1 or {*part} - {*self.schemas}:
                return []
            calls += [Written(name, arguments) for name, arguments in part.items()]
        return calls

    def _tagged(self, text: str, match: re.Match[str], is_end: bool) -> Payload:
        place = skip(text, match.end(), ("\n", " "))
        if text.startswith("{", place):
            arguments, end = _json_at(text, place)
            return Payload([Written(match[1], arguments)] if end > 0 else [], end)
        end = text.find("</function>", match.end())
        if end < 0:
            return NO if is_end else MORE
        values = dict(PARAMETER.findall(text[match.end() : end]))
        return Payload([Written(match[1], self._typed(match[1], values))], end)

    def _typed(self, name: str, values: Mapping[str, str]) -> JsonObject:
        """Texts as values of the types that the schema says."""
        properties = self.schemas[name].get("properties")
        typed: JsonObject = {**values}
        for key, value in values.items():
            schema = properties.get(key) if isinstance(properties, dict) else None
            if not (isinstance(schema, dict) and schema.get("type") == "string"):
                with contextlib.suppress(ValueError):
                    typed[key] = parse_json(value)
        return typed

    def _pythonic(self, text: str, start: int, opening: str, parenthesis: int) -> Payload:
        end = _balanced_end(text, start if opening == "[" else parenthesis, "\"'")
        if end <= 0:
            return Payload([], end)
        try:
            node = ast.parse(text[start:end], mode="eval").body
            nodes = node.elts if isinstance(node, ast.List) else [node]
            return Payload([_python_call(node) for node in nodes], end)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return NO


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


def _calls_of(value: object) -> list[Written]:
    """Return the calls that a JSON value is; none for any other."""
    if isinstance(value, list):
        parts = [_calls_of(part) for part in value]
        return [call for part in parts for call in part] if all(parts) else []
    if not isinstance(value, dict):
        return []
    for key in ("tool_calls", "function_call", "function"):
        if isinstance(value.get(key), dict | list) and {*value} <= {key, *OTHER_KEYS}:
            return _calls_of(value[key])
    names = [key for key in NAME_KEYS if isinstance(value.get(key), str)]
    arguments = [key for key in ARGUMENT_KEYS if key in value]
    if len(names) != 1 or len(arguments) != 1 or {*value} - {*names, *arguments, *OTHER_KEYS}:
        return []
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


Fits = Callable[[JsonObject, str], Awaitable[bool]]

# words in the line before a block that shows a call instead of making one
SHOWING = re.compile(r"\b(examples?|e\.g\.|for instance|such as|looks? like|formats?|would|samples?|schema)\b", re.I)
PLAIN_SEPARATORS = ("\n", " ", "\t", "\r", ",", ";", "</tool_call>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "</s>")
LONGEST_LEAD = 400  # characters of the text before a block that are looked at


class CallReader:
    """The separation of text from calls.

    A call in a marked form counts as soon as it is complete; one that is written as plain JSON or Python, or in a
    fence, only where nothing but calls follows: otherwise it is shown, not made.

    fits: whether arguments, as JSON, fit a schema. A call of an unknown function, or one that does not fit, is text.
    ends_at_repeats: a call that equals an earlier one ends the answer, and is none.
    """

    def __init__(self, tools: Sequence[Tool], fits: Fits, ends_at_repeats: bool = True) -> None:
        self._ends_at_repeats = ends_at_repeats
        self.num_calls, self.is_over = 0, False
        self._made: set[tuple[str, str]] = set()
        # a schema allows the properties that it names, as the grammars of calls do
        closed: JsonObject = {"type": "object", "additionalProperties": False}
        self._schemas = {tool["function"]["name"]: closed | tool["function"]["parameters"] for tool in tools}
        self._texts, self._fits = CallTexts(self._schemas), fits
        self._held = ""
        self._lead = ""  # the end of the text that was given on
        # text | marked: a call | after: such a call | plain: calls that count at the end | fence: a block of other text
        self._mode = "text"
        self._marker = ""
        self._pending: list[Written] = []  # calls that count if nothing but calls follows
        self._num_read = 0  # characters of what is held that the pending calls take
        names = "|".join(re.escape(name) for name in self._schemas)
        markers = "|".join(map(re.escape, MARKERS))
        self._opening = re.compile(rf"(?P<marker>{markers})|(?:^|(?<=\n))[ \t]*(?={FENCE}|[{{\[]|(?:{names})[(\n])")
        self._heads = [FENCE, *(f"{name}{end}" for name in self._schemas for end in "(\n")]

    async def feed(self, text: str) -> list[Delta]:
        self._held = "" if self.is_over else self._held + text
        return await self._read(is_end=False)

    async def end(self) -> list[Delta]:
        """Return the rest. A call that was cut off is returned as text, so that nothing is lost."""
        return [*await self._read(is_end=True), *self._give(len(self._held))]

    async def _read(self, is_end: bool) -> list[Delta]:
        deltas: list[Delta] = []
        modes = {
            "text": self._in_text,
            "marked": self._in_marked,
            "after": self._after,
            "plain": self._in_plain,
            "fence": self._in_fence,
        }
        while True:
            before = (len(self._held), self._mode, self._num_read)
            deltas += await modes[self._mode](is_end)
            if (len(self._held), self._mode, self._num_read) == before:
                return deltas

    async def _in_text(self, is_end: bool) -> list[Delta]:
        """Give text on up to what may be a call."""
        opening = self._opening.search(self._held)
        if opening is None:
            return self._give(len(self._held) - (0 if is_end else self._num_open()))
        rest = self._held[opening.start() :].lstrip(" \t")
        if not opening["marker"] and not is_end and any(marker.startswith(rest) for marker in MARKERS):
            return self._give(opening.start())
        if not opening["marker"] and opening.start() == 0 and self._lead and not self._lead.endswith("\n"):
            return self._give(1)  # within a line
        deltas = self._give(opening.start())
        self._marker, self._mode = opening["marker"] or "", "marked" if opening["marker"] else "plain"
        return deltas

    async def _in_marked(self, is_end: bool) -> list[Delta]:
        """Read the call after a marker: it counts as soon as it is complete."""
        if self._marker == TURN and self._held.startswith(f"{TURN}all\n"):
            self._drop(len(f"{TURN}all\n"))
            self._mode = "text"
            return []
        place = self._payload_start()
        found = self._texts.payload(self._held[place:], is_end, is_marked=True)
        if not found.end and not is_end:
            return []
        calls = await self._fitting(found)
        if calls:
            self._drop(place + found.end)
            self._mode = "after"
            return self._give_calls(calls)
        self._mode = "text"
        return self._give(max(1, len(self._marker)))

    def _payload_start(self) -> int:
        place = 0
        while marker := next((text for text in MARKERS if self._held.startswith(text, place)), ""):
            if marker in OPEN_MARKERS:
                return place + OPEN_MARKERS[marker]
            place = skip(self._held, place + len(marker), ("\n", " "))
        return place

    async def _after(self, is_end: bool) -> list[Delta]:
        """Leaves out what closes a call, and goes on to the next."""
        self._drop(skip(self._held, 0, CLOSERS))
        if not self._held or not is_end and any(text.startswith(self._held) for text in (*CLOSERS, *MARKERS)):
            return []
        is_payload = self._held[0] in "{[" and not self._held.startswith(MARKERS)
        self._marker, self._mode = "", "marked" if is_payload else "text"
        return []

    async def _in_plain(self, is_end: bool) -> list[Delta]:
        """Read calls that count only where nothing else follows them."""
        place = skip(self._held, self._num_read, PLAIN_SEPARATORS)
        rest = self._held[place:]
        if not rest:
            if not is_end or not self._pending:
                return []
            calls, self._pending = self._pending, []
            self._drop(len(self._held))
            return self._give_calls(calls)
        if not is_end and any(text.startswith(rest) for text in (FENCE, *PLAIN_SEPARATORS)):
            return []
        is_fence = rest.startswith(FENCE)
        found = self._texts.fence(rest, is_end) if is_fence else self._texts.payload(rest, is_end, is_marked=False)
        if not found.end and not is_end:
            return []
        calls = [] if SHOWING.search(self._lead.rstrip().rpartition("\n")[2]) else await self._fitting(found)
        if calls:
            self._pending += calls
            self._num_read = place + found.end
            return []
        shown, self._pending, self._num_read = self._pending, [], 0
        if shown:  # other text follows: they were shown, not made
            self._mode = "text"
            return self._give(place)
        self._mode = "fence" if is_fence else "text"
        return self._give(place + (len(rest.partition("\n")[0]) if is_fence else 1))

    async def _in_fence(self, is_end: bool) -> list[Delta]:
        before, closing, _ = self._held.partition(f"\n{FENCE}")
        if closing:
            self._mode = "text"
            return self._give(len(before) + len(closing))
        return self._give(len(self._held) - (0 if is_end else len(FENCE)))

    async def _fitting(self, found: Payload) -> list[Written]:
        """Return the calls that were found, or none where one of them does not fit."""
        fitting: list[Written] = []
        for call in found.calls:
            arguments = call.arguments
            if isinstance(arguments, str):
                try:
                    arguments = parse_json(arguments)
                except ValueError:
                    return []
            schema = self._schemas.get(call.name)
            written = json.dumps(arguments, ensure_ascii=False)
            if schema is None or not isinstance(arguments, dict) or not await self._fits(schema, written):
                return []
            fitting.append(Written(call.name, written))
        return fitting

    def _give_calls(self, calls: Sequence[Written]) -> list[Delta]:
        deltas: list[Delta] = []
        for call in calls:
            is_made = repeats(self._made, call.name, parse_json(str(call.arguments)))
            self.is_over = self.is_over or (is_made and self._ends_at_repeats)
            if self.is_over:
                self._held = ""
                break
            index: ToolCall = {"index": self.num_calls}
            self.num_calls += 1
            id = f"call_{secrets.token_hex(12)}"
            deltas.append({"tool_calls": [index | function_call(id, call.name, str(call.arguments))]})
        return deltas

    def _give(self, length: int) -> list[Delta]:
        """Give the first characters of what is held, as content. Space around calls is left out."""
        text = self._held[: max(length, 0)]
        self._drop(len(text))
        self._lead = (self._lead + text)[-LONGEST_LEAD:]
        return [{"content": text}] if text and not (self.num_calls and not text.strip()) else []

    def _drop(self, length: int) -> None:
        self._held, self._num_read = self._held[length:], 0

    def _num_open(self) -> int:
        """Count the characters at the end that may begin a call."""
        held = self._held
        longest = max(map(len, MARKERS))
        partial = next(
            (n for n in range(min(len(held), longest), 0, -1) if any(m.startswith(held[-n:]) for m in MARKERS)), 0
        )
        line = held.rpartition("\n")[2]
        is_line_start = len(line) < len(held) or not self._lead or self._lead.endswith("\n")
        if is_line_start and line.strip() and any(head.startswith(line.lstrip()) for head in self._heads):
            partial = max(partial, len(line))
        return partial


def repeats(made: set[tuple[str, str]], name: str, arguments: object) -> bool:
    """Return whether an equal call was made before; it is added to those that were."""
    call = name, json.dumps(arguments, sort_keys=True)
    is_made = call in made
    made.add(call)
    return is_made


def calls_in(text: str, tools: Sequence[Mapping[str, object]] = ()) -> list[tuple[str, object]]:
    """Return names and arguments of the calls in a whole answer, as `settle serve` reads them.

    Also of arguments that do not fit their schema. tools: that were given; () takes calls of any name.
    """
    functions = [tool["function"] for tool in tools]
    schemas = {str(f["name"]): f.get("parameters") or {} for f in functions if isinstance(f, Mapping)}
    names = schemas or dict.fromkeys(names_in(text), {})
    known: list[Tool] = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in names.items()]

    async def read() -> list[Delta]:
        reader = CallReader(known, _any_arguments, ends_at_repeats=False)
        return [*await reader.feed(text), *await reader.end()]

    deltas: list[Delta] = []
    try:
        read().send(None)  # it waits for nothing
    except StopIteration as end:
        deltas = end.value
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    return [(call["name"], parse_json(call["arguments"])) for call in calls]


async def _any_arguments(schema: JsonObject, arguments: str) -> bool:
    return True

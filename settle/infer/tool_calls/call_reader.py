"""Recognises calls in an answer while it is streamed, where a model may call a tool or write text."""

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

from settle.base.files import parse_json
from settle.infer.tool_calls.types import Delta, JsonObject, Tool, ToolCall, function_call
from settle.infer.tool_calls.written_calls import (
    CLOSERS,
    FENCE,
    MARKERS,
    OPEN_MARKERS,
    TURN,
    CallTexts,
    Payload,
    Written,
    names_in,
    skip,
)

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
        self._schemas = {tool["function"]["name"]: _closed(tool["function"]["parameters"]) for tool in tools}
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
        if found == "more" and not is_end:
            return []
        calls = await self._fitting(found)
        if calls and isinstance(found, Payload):
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
            calls, self._pending = self._pending, []
            if is_end and calls:
                self._drop(len(self._held))
                return self._give_calls(calls)
            self._pending = calls
            return []
        if not is_end and any(text.startswith(rest) for text in (FENCE, *PLAIN_SEPARATORS)):
            return []
        is_fence = rest.startswith(FENCE)
        found = self._texts.fence(rest, is_end) if is_fence else self._texts.payload(rest, is_end, is_marked=False)
        if found == "more" and not is_end:
            return []
        calls = [] if SHOWING.search(self._lead.rstrip().rpartition("\n")[2]) else await self._fitting(found)
        if calls and isinstance(found, Payload):
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
        """Give a block on that holds something else."""
        before, closing, _ = self._held.partition(f"\n{FENCE}")
        if closing:
            self._mode = "text"
            return self._give(len(before) + len(closing))
        return self._give(len(self._held) - (0 if is_end else len(FENCE)))

    async def _fitting(self, found: object) -> list[Written]:
        """Return the calls that were found, or none where one of them does not fit."""
        fitting: list[Written] = []
        for call in found.calls if isinstance(found, Payload) else ():
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


def _closed(schema: JsonObject) -> JsonObject:
    """Return a schema that allows the properties that it names, as the grammars of calls do."""
    return {"type": "object", "additionalProperties": False} | schema


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

    deltas = _finished(read())
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    return [(call["name"], parse_json(call["arguments"])) for call in calls]


async def _any_arguments(schema: JsonObject, arguments: str) -> bool:
    return True


def _finished(work: Coroutine[object, None, list[Delta]]) -> list[Delta]:
    """Return the result of work that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        deltas: list[Delta] = end.value
        return deltas
    raise AssertionError("it waited")

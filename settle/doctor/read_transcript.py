"""Reader of recorded requests and answers, and conversations, from the files that people have of them.

A file is JSON, JSON lines, or a browser's HAR. The wire formats say whether a record is a request or an answer. Records
that hold both under names of their own are searched, and so is text that is JSON, lines of it, or server-sent events.
"""

import contextlib
import errno
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from settle.base.errors import DataError
from settle.base.files import parse_json, read_bounded
from settle.wire.exchange import Exchange, Message, Reply, Request, content_text, fields_of, objects_in, text_of
from settle.wire.formats import RawBody, calls_of, messages_of, wire_formats

MOST_BYTES = 64 << 20
MOST_DEPTH = 4  # of records within records
_ASKED = ("request", "req", "request_body", "requestBody", "body", "kwargs", "input", "payload", "data", "json")
_GIVEN = ("response", "res", "response_body", "responseBody", "output", "reply", "completion", "result")
_TEXTS = ("text", "content", "body", "json", "postData", "data", "raw")  # of a body within a request or an answer
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant", "model": "assistant"}


def read_transcript(path: Path) -> tuple[Exchange, ...]:
    """Read a recorded transcript. Raises DataError for a file without an exchange, which names the known formats."""
    try:
        text = read_bounded(path, MOST_BYTES, "utf-8-sig", "replace")
    except OSError as e:
        if e.errno == errno.EFBIG:
            fix = "cut out the exchange that went wrong"
            raise DataError(f"{path.name} is larger than {MOST_BYTES >> 20} MB", fix) from None
        raise DataError(f"{path} cannot be read: {e.strerror}", "name a file that is there") from None
    exchanges = _Reader(path.name).exchanges(_records(text, path.name))
    if not exchanges:
        raise DataError(f"{path.name} holds no request and no conversation", known_formats())
    return tuple(exchanges)


def known_formats() -> str:
    """Return the known formats, as the fix of an error."""
    return "known: " + "; ".join([*(each.known for each in wire_formats()), '{"messages": […]}, also of `/save`'])


def _records(text: str, name: str) -> list[tuple[str, object]]:
    """Each record of a file with where it is. Raises DataError."""
    try:
        value = parse_json(text)
    except ValueError as whole:
        if (events := _events(text)) is not None:
            return [("the stream", value) for value in events]
        records: list[tuple[str, object]] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                records.append((f"line {number}", parse_json(line)))
            except ValueError:
                if not records:
                    raise DataError(f"{name} is neither JSON nor JSON lines: {whole}", known_formats()) from None
                if number < len(text.splitlines()):
                    raise DataError(f"line {number} of {name} is no JSON", "mend that line, or leave it out") from None
        return records
    if log := fields_of(fields_of(value).get("log")):  # HAR
        return [(f"entry {n}", entry) for n, entry in enumerate(objects_in(log.get("entries")), 1)]
    if isinstance(value, list) and messages_of(value) is None and not _shared(value):
        return [(f"record {number}", record) for number, record in enumerate(value, 1)]
    return [("the file", value)]


def _events(text: str) -> list[object] | None:
    """Return the data of server-sent events, or None where a text has none."""
    lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return _parsed(line for line in lines if line != "[DONE]") if lines else None


def _parsed(lines: Iterable[str]) -> list[object]:
    """Return the lines that are JSON."""
    found: list[object] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(parse_json(line))
    return found


class _Reader:
    """Pairs requests with their answers, in the order of the file."""

    def __init__(self, name: str) -> None:
        self._name, self._formats = name, wire_formats()
        self._exchanges: list[Exchange] = []
        self._turns: list[Message] = []  # of a conversation that has one turn a line

    def exchanges(self, records: Iterable[tuple[str, object]]) -> list[Exchange]:
        for where, record in records:
            if isinstance(record, Mapping) and (turns := self._turn(record)):
                self._turns += turns
            elif not self._add(record, where, 0) and "url" not in fields_of(fields_of(record).get("request")):
                # a page's picture in a HAR has nothing to do with a model
                fields = ", ".join(map(str, record))[:200] if isinstance(record, Mapping) else type(record).__name__
                raise DataError(
                    f"{self._name}, {where}: neither a request nor an answer in a known format; it has {fields}",
                    known_formats(),
                )
        self._exchanges += _conversation(self._turns, "the conversation")
        return self._exchanges

    def _turn(self, record: RawBody) -> tuple[Message, ...]:
        """Return the turn that a record is, where it is neither a request nor an API's answer."""
        if "messages" in record or any(wire_format.reply(record) for wire_format in self._formats):
            return ()
        return messages_of([record]) or ()

    def _add(self, value: object, where: str, depth: int) -> bool:
        """Add what `value` holds; return whether it holds anything."""
        if isinstance(value, list) and (turns := messages_of(value) or _shared(value)):
            found = _conversation(turns, where)
            self._exchanges += found
            return bool(found)
        if not isinstance(value, Mapping):
            return False
        if depth < MOST_DEPTH and (pair := self._pair(value)) is not None:
            self._exchanges.append(Exchange(*pair, where))
            return True
        if (request := self._request(value)) is not None:
            is_conversation = request.messages[-1].get("role") == "assistant" and not request.settings
            one = [Exchange(request, None, where)]
            self._exchanges += _conversation(request.messages, where, request) if is_conversation else one
            return True
        if (reply := self._reply(value)) is not None:  # an answer, or the next piece of one, to the request before it
            if self._exchanges:
                last = self._exchanges[-1]
                self._exchanges[-1] = replace(last, reply=(last.reply or Reply()).then(reply))
            return bool(self._exchanges)
        turns = next((_shared(value[key]) for key in ("conversations", "conversation") if key in value), ())
        return bool(turns) and self._add(list(turns), where, depth + 1)

    def _pair(self, record: RawBody) -> tuple[Request, Reply | None] | None:
        """Return a request and its answer, from a record that names both."""
        asked = next((r for key in _ASKED if key in record and (r := self._inner_request(record[key]))), None)
        if asked is None:
            return None
        given = (self._inner_reply(record[key]) for key in _GIVEN if key in record)
        return asked, next((reply for reply in given if reply is not None), None)

    def _inner_request(self, value: object, depth: int = 0) -> Request | None:
        for body in _bodies(value):
            if (request := self._request(body)) is not None:
                return request
            for key in _TEXTS if depth < MOST_DEPTH else ():
                if key in body and (request := self._inner_request(body[key], depth + 1)) is not None:
                    return request
        return None

    def _inner_reply(self, value: object, depth: int = 0) -> Reply | None:
        joined: Reply | None = None
        for body in _bodies(value):
            if (reply := self._reply(body)) is not None:
                joined = joined.then(reply) if joined else reply
                continue
            for key in _TEXTS if depth < MOST_DEPTH else ():
                if key in body and (reply := self._inner_reply(body[key], depth + 1)) is not None:
                    return reply
        if joined is None and isinstance(value, str) and value.strip() and depth == 0 and not _bodies(value):
            return Reply(value)  # the answer's text alone
        return joined

    def _request(self, body: RawBody) -> Request | None:
        return next((found for wire_format in self._formats if (found := wire_format.request(body)) is not None), None)

    def _reply(self, body: RawBody) -> Reply | None:
        found = (wire_format.reply(body) for wire_format in self._formats)
        reply = next((reply for reply in found if reply is not None), None)
        if reply is None and body.get("role") == "assistant" and "content" in body:  # as some logs have it
            return next(map(_spoken, messages_of([body]) or ()), None)
        return reply


def _bodies(value: object) -> list[RawBody]:
    """Return the JSON objects that a value is or holds: as text, as lines of it, as server-sent events."""
    if not isinstance(value, str):
        return [value] if isinstance(value, Mapping) else objects_in(value)
    with contextlib.suppress(ValueError):
        return _bodies(parse_json(value))
    events = _events(value)
    return objects_in(_parsed(value.splitlines()) if events is None else events)


def _shared(value: object) -> tuple[Message, ...]:
    """Return ShareGPT's turns, {"from", "value"}, as messages; none where `value` is something else."""
    turns = objects_in(value)
    if not turns or turns != value or not all({"from", "value"} <= set(turn) for turn in turns):
        return ()
    speakers = [str(turn["from"]).lower() for turn in turns]
    return tuple(
        {"role": _SPEAKERS.get(speaker, speaker), "content": content_text(turn["value"])}
        for speaker, turn in zip(speakers, turns, strict=True)
    )


def _conversation(turns: Iterable[Message], where: str, request: Request | None = None) -> list[Exchange]:
    """Return an exchange for each answer of a conversation, and for a last question without one."""
    messages = tuple(turns)
    base = request or Request(())
    found = [
        Exchange(replace(base, messages=messages[:at]), _spoken(message), f"{where}, turn {at + 1}")
        for at, message in enumerate(messages)
        if message.get("role") == "assistant" and at
    ]
    if messages and messages[-1].get("role") == "user":
        found.append(Exchange(replace(base, messages=messages), None, where))
    return found


def _spoken(message: Message) -> Reply:
    """Return the answer that a message is."""
    return Reply(text_of(message), str(message.get("reasoning_content") or ""), calls_of(message.get("tool_calls")))

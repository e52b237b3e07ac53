"""What breaks of our own costs its request, is told in the shape's words, and noted."""

import asyncio
import http.client
import json

import pytest

from settle.server.audit import Record
from settle.server.gateway import with_error_event
from settle.wire.errors import ApiError
from tests.server.conftest import serving, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "def f"}], "max_tokens": 8}
ASKED = {"/v1/chat/completions": CHAT, "/v1/messages": CHAT, "/v1/responses": {"model": "tiny", "input": "def f"}}


def noted(home, status: int) -> bool:
    """Whether the last line of the audit tells of our fault; it is written a moment after the answer has ended."""
    audit = home / "server" / "audit.jsonl"

    def is_noted() -> bool:
        text = audit.read_text() if audit.exists() else ""
        line = json.loads(text.splitlines()[-1]) if text.endswith("\n") else {}  # it is there before its first line is
        return "a fault of ours" in line.get("error", "") and line["status"] == status

    return until(is_noted, 20)


def fail(*_):
    raise KeyError("a fault of ours")


def fail_at_the_end(event, *_):
    """However the answer was cut on its way."""
    return fail() if b'"usage"' in event else event + b"\n\n"


async def fail_later(*_):
    fail()


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours(live, stocked, monkeypatch, path, stream):
    monkeypatch.setattr("settle.server.requests.chat.prepare", fail)
    answer = live.ask(path, ASKED[path] | {"stream": stream})
    assert answer.status == 500 and "KeyError" in answer.json["error"]["message"]
    assert answer.json.get("type") == ("error" if path == "/v1/messages" else None)
    assert noted(stocked, 500)
    monkeypatch.undo()


@pytest.mark.parametrize("path", ASKED)
def test_a_fault_in_the_middle_of_an_answer(live, stocked, monkeypatch, path):
    from settle.server.apis import anthropic, openai, responses

    monkeypatch.setattr(openai, "_tidied", fail_at_the_end)
    for answer in (anthropic.MessageWriter, responses.ResponseWriter):
        monkeypatch.setattr(answer, "end", fail)
    whole = live.ask(path, ASKED[path] | {"stream": True})
    assert whole.status == 200 and "KeyError" in json.dumps(whole.events[-1])
    assert noted(stocked, 200)


def test_a_fault_of_a_response(stocked, monkeypatch):
    """It has begun, so there is nothing that could be said any more: the connection ends too early, and it is noted."""
    with serving(stocked) as server:
        monkeypatch.setattr("settle.server.gateway.StreamedResponse._send", fail_later)
        with pytest.raises(http.client.IncompleteRead):
            server.ask("/v1/chat/completions", CHAT | {"stream": True})
        monkeypatch.undo()
        assert noted(stocked, 500)
        assert server.ask("/v1/chat/completions", CHAT).status == 200


def test_what_an_answer_is_made_of_is_closed_with_it():
    async def pieces():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def leave() -> None:
        answer = with_error_event(pieces(), Record("x"), lambda refusal: refusal)
        assert await anext(answer) == 1 and not closed
        await answer.aclose()
        assert closed

    closed: list[bool] = []
    asyncio.run(leave())


def test_what_is_refused_before_it_has_begun_is_raised():
    async def none():
        raise ApiError(404, "not here")
        yield 1

    async def ask() -> None:
        with pytest.raises(ApiError, match="not here"):
            await anext(with_error_event(none(), Record("x"), lambda refusal: refusal))

    asyncio.run(ask())

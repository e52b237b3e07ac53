"""Calls are recognised in each form that models write them in, and in nothing else."""

import asyncio
import json
import random

import jsonschema
import pytest

from settle.server.requests.tool_calls.call_reader import CallReader
from settle.server.wire_types import Delta, JsonObject, Tool
from tests.server.written_calls import PAIRS, SCHEMAS, Answer

TOOLS: list[Tool] = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


async def fits(schema: JsonObject, text: str) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def read(pieces: list[str]) -> tuple[list[tuple[str, object]], str]:
    """The calls and the content that come of a stream of pieces."""

    async def work() -> list[Delta]:
        reader = CallReader(TOOLS, fits)
        deltas = [delta for piece in pieces for delta in await reader.feed(piece)]
        return deltas + await reader.end()

    deltas = asyncio.run(work())
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [*range(len(calls))]
    functions = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    return functions, "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("answer", [a for pair in PAIRS for a in pair[:1]], ids=lambda a: a.form)
def test_calls_in_every_form(answer: Answer) -> None:
    calls, content = read([answer.text])
    assert calls == answer.calls
    if not answer.calls:
        assert content == answer.text
    elif answer.content is not None:
        assert content.strip() == answer.content


@pytest.mark.parametrize("answer", [a for pair in PAIRS for a in pair[:1]], ids=lambda a: a.form)
def test_streams_read_the_same(answer: Answer) -> None:
    whole = read([answer.text])
    assert read([*answer.text]) == whole
    draw = random.Random(answer.text)
    for _ in range(20):
        cuts = sorted(draw.sample(range(len(answer.text) + 1), min(4, len(answer.text))))
        assert read([answer.text[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer.text)], strict=True)]) == whole


def test_text_is_not_held_back() -> None:
    async def work() -> list[list[Delta]]:
        reader = CallReader(TOOLS, fits)
        return [
            await reader.feed(text)
            for text in ("The weather", " in Rome {1}", " is fine.\n", "```js\n", "x = 1\n", "\n")
        ]

    assert all(asyncio.run(work()))

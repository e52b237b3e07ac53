"""Calls are recognised in each form that models write them in, and in nothing else."""

import asyncio
import copy
import itertools
import json
import random
from collections.abc import Iterator

import jsonschema
import pytest
import torch

from settle.base.chat_template import ChatTemplate
from settle.formats.gguf import export_gguf
from settle.infer.tool_calls import CallReader, calls_in
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_loader import PoolSettings
from settle.wire.types import Delta, JsonObject, Tool
from tests.server.conftest import Live, serving
from tests.server.written_calls import PAIRS, SCHEMAS, Answer
from tests.trained import Trained, trained

TOOLS: list[Tool] = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


ARGUMENTS = ('{"city": "Rome", "days": 3}', '{"city": "Oslo", "days": 3}')


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


@pytest.mark.parametrize("answer", [answer for pair in PAIRS for answer in pair], ids=lambda a: a.form)
def test_calls_in_every_form(answer: Answer) -> None:
    calls, content = read([answer.text])
    assert calls == answer.calls
    if not answer.calls:
        assert content == answer.text
    elif answer.content is not None:
        assert content.strip() == answer.content


@pytest.mark.parametrize("answer", [a for pair in PAIRS for a in pair if a.calls], ids=lambda a: a.form)
def test_who_scores_an_answer_reads_the_same_calls(answer: Answer) -> None:
    """Of tools that were given, and of any name where none were: so an invented one is seen."""
    assert calls_in(answer.text, TOOLS) == calls_in(answer.text) == answer.calls


@pytest.mark.parametrize("answer", [answer for pair in PAIRS for answer in pair], ids=lambda a: a.form)
def test_streams_read_the_same(answer: Answer) -> None:
    whole = read([answer.text])
    assert read([*answer.text]) == whole
    draw = random.Random(answer.text)
    for _ in range(8):
        cuts = sorted(draw.sample(range(len(answer.text) + 1), min(4, len(answer.text))))
        assert read([answer.text[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer.text)], strict=True)]) == whole


def test_a_call_that_comes_again_ends_the_answer() -> None:
    call, other = [f'<tool_call>{{"name": "weather", "arguments": {a}}}</tool_call>\n' for a in ARGUMENTS]

    async def work() -> tuple[bool, list[Delta], bool]:
        reader = CallReader(TOOLS, fits)
        deltas = await reader.feed(call + other)
        was_over = reader.is_over
        for text in (call.replace('"days": 3', '"days":   3'), other, "and so on"):
            deltas += await reader.feed(text)
        return was_over, deltas + await reader.end(), reader.is_over

    was_over, deltas, is_over = asyncio.run(work())
    assert not was_over and is_over and [*map(len, (d["tool_calls"] for d in deltas))] == [1, 1]


def test_text_is_not_held_back() -> None:
    async def work() -> list[list[Delta]]:
        reader = CallReader(TOOLS, fits)
        return [
            await reader.feed(text)
            for text in ("The weather", " in Rome {1}", " is fine.\n", "```js\n", "x = 1\n", "\n")
        ]

    assert all(asyncio.run(work()))


WRITTEN = '```json\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n```'


TURNS = [{"role": "user", "content": "Rome?"}]
FEW = TOOLS[:2]
ASK = {"messages": TURNS, "max_tokens": 80, "temperature": 0}


# short, so that little has to be learned; it knows tools, and writes calls as Hermes does
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name + ' ' }}{% endfor %}{% endif %}"
    "{% for message in messages %}{{ message.role + ': ' + (message.content or '') }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of a tiny model that always writes its call as fenced JSON."""
    folder = tmp_path_factory.mktemp("writer")
    template = ChatTemplate(TEMPLATE)
    model = memorized([template.render(TURNS, tools, True) for tools in (None, FEW[1:], FEW)], WRITTEN)
    model.tokenizer.chat_template = TEMPLATE
    path = export_gguf(model.part, model.weights, model.tokenizer, folder / "w.gguf", "f32", {"name": "w"})
    settings = PoolSettings(context=512, slots=1, threads=1)
    with serving(folder, settings, (ModelEntry("writer", path),)) as server:
        yield server


def memorized(prompts: list[str], answer: str) -> Trained:
    """A tiny model that answers each of the prompts with `answer`."""
    base = trained()
    part = base.part
    model, tokenizer = part.build(seed=0), copy.copy(base.tokenizer)
    ending = [*tokenizer.encode(answer), part.eos_token_id]
    rows = [torch.tensor([*map(int, [*tokenizer.encode(prompt), *ending])]) for prompt in prompts]
    bounds = torch.tensor([0, *itertools.accumulate(len(row) - 1 for row in rows)], dtype=torch.int32)
    given, wanted = torch.cat([row[:-1] for row in rows]), torch.cat([row[1:] for row in rows])
    is_answer = torch.cat([torch.arange(len(row) - 1) >= len(row) - 1 - len(ending) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        hidden = model(given, bounds)
        loss = torch.nn.functional.cross_entropy(hidden[is_answer] @ model.head.T, wanted[is_answer])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.05
    return Trained(part, model, tokenizer, [])


def test_a_call_in_another_form_than_the_template_s(writer: Live) -> None:
    body = ASK | {"model": "writer"}
    text = writer.ask("/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    assert text.strip() == WRITTEN
    body |= {"tools": FEW}
    choice = writer.ask("/v1/chat/completions", body).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome", "days": 3}
    events = writer.ask("/v1/chat/completions", body | {"stream": True}).events
    deltas = [event["choices"][0]["delta"] for event in events]
    assert not any(delta.get("content") for delta in deltas)
    (streamed,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert streamed["function"] == call["function"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_of_no_tool_that_was_given_stays_text(writer: Live) -> None:
    choice = writer.ask("/v1/chat/completions", ASK | {"model": "writer", "tools": FEW[1:]}).json["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"].strip() == WRITTEN
    assert not choice["message"].get("tool_calls")


def test_other_apis_give_such_a_call_too(writer: Live) -> None:
    names = [tool["function"]["name"] for tool in FEW]
    body = ASK | {"model": "writer", "tools": [{"name": name, "input_schema": SCHEMAS[name]} for name in names]}
    for stream in (False, True):
        reply = writer.ask("/v1/messages", body | {"stream": stream})
        blocks = [event["content_block"] for event in reply.events if "content_block" in event]
        (use,) = blocks if stream else reply.json["content"]
        assert use["type"] == "tool_use" and use["name"] == "weather"
    flat = [
        {"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items() if name in names
    ]
    asked = {"model": "writer", "input": "Rome?", "tools": flat, "temperature": 0, "max_output_tokens": 80}
    (item,) = writer.ask("/v1/responses", asked).json["output"]
    assert item["type"] == "function_call" and json.loads(item["arguments"]) == {"city": "Rome", "days": 3}
    chat = {"model": "writer", "messages": TURNS, "tools": FEW, "options": {"temperature": 0, "num_predict": 80}}
    (calls,) = [
        line["message"]["tool_calls"] for line in writer.ask("/api/chat", chat).lines if "tool_calls" in line["message"]
    ]
    assert calls[0]["function"]["arguments"] == {"city": "Rome", "days": 3}

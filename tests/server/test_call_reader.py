"""Calls are recognised in each form that models write them in, and in nothing else."""

import asyncio
import copy
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import torch

from settle.formats.gguf import export_gguf
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_loader import PoolSettings
from settle.server.requests.tool_calls.call_reader import CallReader
from settle.server.wire_types import Delta, JsonObject, Tool
from tests.server.conftest import Live, serving
from tests.server.written_calls import PAIRS, SCHEMAS, Answer
from tests.trained import Trained, trained

TEMPLATES = Path(__file__).parents[1] / "chat_templates"
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


@pytest.mark.parametrize("answer", [answer for pair in PAIRS for answer in pair], ids=lambda a: a.form)
def test_calls_in_every_form(answer: Answer) -> None:
    calls, content = read([answer.text])
    assert calls == answer.calls
    if not answer.calls:
        assert content == answer.text
    elif answer.content is not None:
        assert content.strip() == answer.content


@pytest.mark.parametrize("answer", [answer for pair in PAIRS for answer in pair], ids=lambda a: a.form)
def test_streams_read_the_same(answer: Answer) -> None:
    whole = read([answer.text])
    assert read([*answer.text]) == whole
    draw = random.Random(answer.text)
    for _ in range(8):
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


WRITTEN = '```json\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n```'


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of a tiny model that always writes its call as fenced JSON, with a template that knows tools and one
    that knows none."""
    folder = tmp_path_factory.mktemp("writer")
    model = memorized("<|im_start|>assistant\n", WRITTEN)
    entries = []
    for name in ("qwen2.5", "smollm2"):
        model.tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        path = folder / f"{name}.gguf"
        export_gguf(model.part, model.weights, model.tokenizer, path, "f32", {"name": name})
        entries.append(ModelEntry(name, path))
    with serving(folder, PoolSettings(context=2048, slots=1, threads=1), tuple(entries)) as server:
        yield server


def memorized(before: str, answer: str) -> Trained:
    """A tiny model that continues `before` with `answer`, whatever stands before that."""
    base = trained()
    part = base.part.model_copy(update={"max_position_embeddings": 2048})
    model, tokenizer = part.build(seed=0), copy.copy(base.tokenizer)
    ids = [*tokenizer.encode(before), *tokenizer.encode(answer), part.eos_token_id]
    num_known = len(tokenizer.encode(before))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = []
        for _ in range(4):
            length = int(torch.randint(1, 40, (1,), generator=draw))
            rows.append([*torch.randint(0, part.vocab_size, (length,), generator=draw).tolist(), *map(int, ids)])
        bounds = torch.tensor([0, *itertools.accumulate(len(row) - 1 for row in rows)], dtype=torch.int32)
        hidden = model(torch.tensor([token for row in rows for token in row[:-1]]), bounds)
        wanted = torch.tensor([token for row in rows for token in row[1:]])
        known = torch.cat([torch.arange(len(row) - 1) >= len(row) - len(ids) + num_known - 1 for row in rows])
        loss = torch.nn.functional.cross_entropy((hidden @ model.head.T)[known], wanted[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return Trained(part, model, tokenizer, [])


@pytest.mark.parametrize("model", ["qwen2.5", "smollm2"])
def test_a_call_in_another_form_than_the_template_s(writer: Live, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Rome?"}], "max_tokens": 80, "temperature": 0}
    text = writer.ask("/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    assert text.strip() == WRITTEN
    body |= {"tools": TOOLS}
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
    other = [tool for tool in TOOLS if tool["function"]["name"] != "weather"]
    body = {"model": "qwen2.5", "messages": [{"role": "user", "content": "Rome?"}], "max_tokens": 80, "temperature": 0}
    choice = writer.ask("/v1/chat/completions", body | {"tools": other}).json["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"].strip() == WRITTEN
    assert not choice["message"].get("tool_calls")


def test_other_apis_give_such_a_call_too(writer: Live) -> None:
    turns = [{"role": "user", "content": "Rome?"}]
    tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    body = {"model": "qwen2.5", "messages": turns, "max_tokens": 80, "temperature": 0, "tools": tools}
    for stream in (False, True):
        reply = writer.ask("/v1/messages", body | {"stream": stream})
        blocks = [event["content_block"] for event in reply.events if "content_block" in event]
        (use,) = blocks if stream else reply.json["content"]
        assert use["type"] == "tool_use" and use["name"] == "weather"
    flat = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
    asked = {"model": "qwen2.5", "input": "Rome?", "tools": flat, "temperature": 0, "max_output_tokens": 80}
    (item,) = writer.ask("/v1/responses", asked).json["output"]
    assert item["type"] == "function_call" and json.loads(item["arguments"]) == {"city": "Rome", "days": 3}
    chat = {"model": "qwen2.5", "messages": turns, "tools": TOOLS, "options": {"temperature": 0, "num_predict": 80}}
    (calls,) = [
        line["message"]["tool_calls"] for line in writer.ask("/api/chat", chat).lines if "tool_calls" in line["message"]
    ]
    assert calls[0]["function"]["arguments"] == {"city": "Rome", "days": 3}

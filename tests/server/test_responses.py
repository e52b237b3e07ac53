"""OpenAI's Responses, over a socket, with a real child behind it; and OpenAI's own client on everything it has."""

import json

import pydantic
import pytest

from settle.server.apis.responses import ResponseWriter
from settle.wire.errors import ApiError
from settle.wire.formats.responses import ResponseBody

ASK = {"model": "tiny", "input": "def f", "max_output_tokens": 8, "temperature": 0}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "weather", "description": "of a city", "parameters": PARAMETERS, "strict": True}
FORCED = ASK | {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 120}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


class Choice(pydantic.BaseModel):
    yes: bool


def text(answer) -> str:
    parts = [part for item in answer["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


@pytest.fixture
def client(live):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{live.address}/v1", api_key=live.key, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/responses", "/responses"])
def test_response(live, path):
    told = live.ask(path, ASK | {"metadata": {"a": "b"}, "instructions": "import"}).json
    assert told["object"] == "response" and told["model"] == "tiny" and told["id"].startswith("resp_")
    assert told["status"] == "incomplete" and told["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told["store"] is False and told["metadata"] == {"a": "b"} and told["instructions"] == "import"
    (item,) = told["output"]
    assert item["type"] == "message" and item["status"] == "incomplete" and text(told)
    usage = told["usage"]
    assert usage["output_tokens"] == 8 and usage["total_tokens"] == usage["input_tokens"] + 8
    counted = live.ask(f"{path}/input_tokens", {"model": "tiny", "input": "def f", "instructions": "import"}).json
    assert counted == {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}


def test_stream_is_the_whole_answer_in_pieces(live):
    whole = live.ask("/v1/responses", ASK).json
    reply = live.ask("/v1/responses", ASK | {"stream": True, "stream_options": {"include_obfuscation": False}})
    events = reply.events
    kinds = [event["type"] for event in events]
    head = ["created", "in_progress", "output_item.added", "content_part.added"]
    tail = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds[:4] == [f"response.{kind}" for kind in head] and kinds[-4:] == [f"response.{kind}" for kind in tail]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    named = [line[7:].decode() for line in reply.body.split(b"\n") if line.startswith(b"event: ")]
    assert named == kinds and b"[DONE]" not in reply.body
    assert events[0]["response"]["output"] == [] and events[2]["item"]["content"] == []
    assert "".join(event["delta"] for event in events[4:-4]) == text(whole) == text(events[-1]["response"])
    place = {"item_id": events[2]["item"]["id"], "output_index": 0, "content_index": 0}
    assert all(event.items() >= place.items() for event in events[3:-2])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_forced_call(live, choice):
    told = live.ask("/v1/responses", FORCED | {"tool_choice": choice}).json
    assert told["status"] == "completed" and told["tools"] == [TOOL] and told["tool_choice"] == choice
    call = told["output"][-1]
    assert call["type"] == "function_call" and call["name"] == "weather" and call["call_id"]
    arguments = json.loads(call["arguments"])
    assert arguments["city"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9
    events = live.ask("/v1/responses", FORCED | {"tool_choice": choice, "stream": True}).events
    pieces = [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"]
    done = next(e for e in events if e["type"] == "response.function_call_arguments.done")
    assert json.loads("".join(pieces)) == json.loads(done["arguments"]) == arguments
    assert events[-1]["type"] == "response.completed"


def test_result_of_a_call_is_read(live):
    call = live.ask("/v1/responses", FORCED).json["output"][-1]
    asked = {"role": "user", "content": [{"type": "input_text", "text": "def f"}]}
    result = {"type": "function_call_output", "call_id": call["call_id"]}

    def read(*items) -> int:
        reply = live.ask("/v1/responses", ASK | {"input": [asked, *items]})
        assert reply.status == 200, reply.body
        return reply.json["usage"]["input_tokens"]

    assert read() == live.ask("/v1/responses", ASK).json["usage"]["input_tokens"]
    plain = read(call, result | {"output": "sunny"})
    assert plain > read() + 10
    assert read(call, result | {"output": [{"type": "input_text", "text": "sunny"}]}) == plain
    assert read(call, result | {"output": "sunny"}, {"role": "developer", "content": "so?"}) > plain


def test_output_can_be_handed_back(live):
    first = live.ask("/v1/responses", ASK).json["output"]
    turns = [{"role": "user", "content": "def f"}, *first, {"role": "user", "content": "more"}]
    chat = [{"role": "user", "content": "def f"}, {"role": "assistant", "content": text({"output": first})}, turns[-1]]
    told = live.ask("/v1/responses", ASK | {"input": turns}).json
    said = live.ask("/v1/chat/completions", {"model": "tiny", "messages": chat, "max_tokens": 8, "temperature": 0}).json
    assert told["usage"]["input_tokens"] == said["usage"]["prompt_tokens"]
    assert text(told) == said["choices"][0]["message"]["content"]


@pytest.mark.parametrize("form", [{"type": "json_schema", "name": "x", "schema": SCHEMA}, {"type": "json_object"}])
def test_json(live, form):
    asked = ASK | {"text": {"format": form}, "max_output_tokens": 200}
    reply = live.ask("/v1/responses", asked)
    assert reply.status == 200 and reply.json["text"]["format"] == form
    if form["type"] == "json_schema":
        assert json.loads(text(reply.json))["a"] in (1, 2)
    else:
        assert text(reply.json).startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_probabilities(live, stream):
    asked = ASK | {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "stream": stream}
    reply = live.ask("/v1/responses", asked)
    told = reply.events[-1]["response"] if stream else reply.json
    tokens = told["output"][0]["content"][0]["logprobs"]
    assert len(tokens) == 8 and "".join(token["token"] for token in tokens) == text(told)
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)
    if stream:
        deltas = [e for e in reply.events if e["type"] == "response.output_text.delta"]
        assert [token["token"] for e in deltas for token in e["logprobs"]] == [token["token"] for token in tokens]


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_an_input_is_refused_or_trimmed_and_told(live, stream):
    turns = [{"role": "user", "content": "def f\n" * 60}, {"role": "assistant", "content": "x"}] * 3
    asked = ASK | {"input": [*turns, {"role": "user", "content": "def f"}], "stream": stream}
    refused = live.ask("/v1/responses", asked)
    assert refused.status == 400 and refused.json["error"]["code"] == "context_length_exceeded"
    reply = live.ask("/v1/responses", asked | {"truncation": "auto"})
    told = reply.events[-1]["response"] if stream else reply.json
    assert told["truncation"] == "auto" and told["settle"]["trimmed"]["messages"] >= 2


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("frobnicate", 1, "frobnicate"),
        ("store", True, "store"),
        ("background", True, "background"),
        ("previous_response_id", "resp_1", "previous_response_id"),
        ("conversation", "conv_1", "conversation"),
        ("prompt", {"id": "p"}, "prompt"),
        ("temperature", 3, "temperature"),
        ("top_p", -1, "top_p"),
        ("top_logprobs", 21, "top_logprobs"),
        ("max_output_tokens", 0, "max_output_tokens"),
        ("max_tool_calls", 2, "max_tool_calls"),
        ("include", ["reasoning.encrypted_content"], "include"),
        ("service_tier", "flex", "service_tier"),
        ("truncation", "some", "truncation"),
        ("metadata", {"a": 1}, "metadata.a"),
        ("stream_options", {"include_obfuscation": True}, "stream_options.include_obfuscation"),
        ("reasoning", {"effort": "high"}, "reasoning_effort"),
        ("reasoning", {"summary": "detailed"}, "reasoning.summary"),
        ("text", {"verbosity": "low"}, "text.verbosity"),
        ("text", {"format": {"type": "json_schema", "name": "x"}}, "text.format.schema"),
        ("text", {"format": {"type": "xml"}}, "text.format.type"),
        ("tools", [{"type": "web_search"}], "tools.0.type"),
        ("tools", [TOOL | {"frob": 1}], "tools.0.frob"),
        ("tool_choice", "required", "tool_choice"),
        ("tool_choice", {"type": "file_search"}, "tool_choice"),
        ("input", [], "input"),
        ("input", [{"type": "item_reference", "id": "x"}], "input.0"),
        ("input", [{"type": "web_search_call", "id": "x"}], "input.0"),
        ("input", [{"role": "wizard", "content": "x"}], "input.0.role"),
        ("input", [{"role": "user", "content": "x", "frob": 1}], "input.0.frob"),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input.0.content.0"),
        (
            "input",
            [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}],
            "input.0.encrypted_content",
        ),
    ],
)
def test_nothing_is_ignored(live, field, value, param):
    refused = live.ask("/v1/responses", ASK | {field: value})
    assert refused.status == 400, refused.body
    assert refused.json["error"]["param"] == param and refused.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning(live, thinker, stream):
    asked = ASK | {"model": thinker, "max_output_tokens": 30, "stream": stream}
    reply = live.ask("/v1/responses", asked)
    told = reply.events[-1]["response"] if stream else reply.json
    (item,) = told["output"]
    thought = item["content"][0]["text"]
    assert item["type"] == "reasoning" and item["summary"] == [] and thought
    assert 0 < told["usage"]["output_tokens_details"]["reasoning_tokens"] <= 30
    if stream:
        deltas = [e for e in reply.events if e["type"] == "response.reasoning_text.delta"]
        assert "".join(e["delta"] for e in deltas) == thought
        assert any(e["type"] == "response.reasoning_text.done" and e["text"] == thought for e in reply.events)
    # what was thought and what was said are one turn, when they come back
    turns = [
        {"role": "user", "content": "def f"},
        item,
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "y"},
    ]
    sizes = [
        live.ask("/v1/responses/input_tokens", {"model": thinker, "input": turns[:1] + turns[first:]}).json[
            "input_tokens"
        ]
        for first in (1, 2)
    ]
    assert sizes[0] > sizes[1]
    off = live.ask("/v1/responses", asked | {"reasoning": {"effort": "none"}, "stream": False}).json
    assert [item["type"] for item in off["output"]] == ["message"]


def test_an_answer_that_breaks_off_ends_as_failed():
    answer = ResponseWriter("tiny", ResponseBody(input="x", stream=True), has_logprobs=False)
    started = [*answer.begin(), *answer.feed({"choices": [{"delta": {"content": "a"}}]})]
    last = answer.fail(ApiError(502, "the engine died"))
    assert last["type"] == "response.failed" and last["sequence_number"] == len(started)
    assert last["response"]["status"] == "failed" and text(last["response"]) == "a"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine died"}


def test_nothing_is_stored(live):
    assert live.ask("/v1/responses/resp_1").status == 404
    assert live.ask("/v1/responses", ASK | {"model": "nope"}).json["error"]["code"] == "model_not_found"
    assert live.ask("/v1/responses", ASK, key="").json["error"]["type"] == "authentication_error"


def test_sdk_of_responses(client):
    whole = client.responses.create(**ASK)
    assert whole.output_text and whole.status == "incomplete" and whole.usage.output_tokens == 8
    assert whole.usage.output_tokens_details.reasoning_tokens == 0
    with client.responses.stream(**FORCED) as stream:
        kinds = {event.type for event in stream}
        call = stream.get_final_response().output[-1]
    assert "response.function_call_arguments.done" in kinds
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    turns = [
        {"role": "user", "content": "def f"},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    again = client.responses.create(**ASK | {"input": turns})
    assert again.usage.input_tokens > whole.usage.input_tokens
    parsed = client.responses.parse(**ASK | {"max_output_tokens": 40}, text_format=Choice)
    assert parsed.output_parsed.yes in (True, False)
    counted = client.responses.input_tokens.count(model="tiny", input="def f")
    assert counted.input_tokens == whole.usage.input_tokens


def test_sdk_of_chat(client):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "def f"}], "temperature": 0}
    whole = client.chat.completions.create(**asked, max_tokens=8).choices[0]
    with client.chat.completions.create(**asked, max_tokens=8, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole.message.content
    function = {key: value for key, value in TOOL.items() if key != "type"}
    tools = [{"type": "function", "function": function}]
    called = client.chat.completions.create(**asked, max_tokens=120, tools=tools, tool_choice="required").choices[0]
    assert json.loads(called.message.tool_calls[0].function.arguments)["city"] in ("Rome", "Oslo")
    parsed = client.chat.completions.parse(**asked, max_tokens=40, response_format=Choice)
    assert parsed.choices[0].message.parsed.yes in (True, False)


def test_sdk_of_the_rest(client):
    openai = pytest.importorskip("openai")
    vectors = client.embeddings.create(model="tiny", input=["def f", "import os"]).data
    assert len(vectors) == 2 and len(vectors[0].embedding) == 64
    assert sum(x * x for x in vectors[0].embedding) == pytest.approx(1, abs=1e-3)
    assert "tiny" in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")
    with pytest.raises(openai.BadRequestError, match="store"):
        client.responses.create(**ASK, store=True)

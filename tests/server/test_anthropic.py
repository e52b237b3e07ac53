"""Anthropic's shape, over a socket, with a real child behind it."""

import asyncio
import json

import pytest

from settle.server.apis import anthropic as shape
from settle.server.audit import Record
from settle.server.gateway import with_error_event
from settle.wire.errors import ApiError

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "def f"}], "max_tokens": 8, "temperature": 0}
TOOL = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
FORCED = ASK | {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 120}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


def text(answer) -> str:
    return "".join(block["text"] for block in answer["content"] if block["type"] == "text")


def tokens(usage) -> int:
    return usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]


@pytest.mark.parametrize("path", ["/v1/messages", "/messages", "/v1/messages?beta=true"])
def test_message(live, path):
    reply = live.ask(path, ASK, key="", headers={"x-api-key": live.key, "anthropic-version": "2023-06-01"})
    told = reply.json
    assert reply.status == 200 and told["type"] == "message" and told["role"] == "assistant"
    assert told["model"] == "tiny" and told["id"].startswith("msg_") and text(told)
    assert told["stop_reason"] == "max_tokens" and told["stop_sequence"] is None
    assert told["usage"]["output_tokens"] == 8
    counted = {key: ASK[key] for key in ("model", "messages")}
    assert live.ask("/v1/messages/count_tokens", counted).json == {"input_tokens": tokens(told["usage"])}


def test_stream_is_the_whole_answer_in_pieces(live):
    whole = live.ask("/v1/messages", ASK).json
    reply = live.ask("/v1/messages", ASK | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.events
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    named = [line[7:].decode() for line in reply.body.split(b"\n") if line.startswith(b"event: ")]
    assert named == kinds
    start = events[0]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and tokens(start["usage"]) == tokens(whole["usage"])
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == text(whole)
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_which_stop_sequence_it_was(live, stream, tools):
    asked = ASK | {"max_tokens": 30} | ({"tools": tools} if tools else {})
    whole = text(live.ask("/v1/messages", asked).json)
    stop = whole[5:8]
    reply = live.ask("/v1/messages", asked | {"stop_sequences": ["never at all", stop], "stream": stream})
    if stream:
        told = reply.events[-2]["delta"]
        said = "".join(e["delta"]["text"] for e in reply.events if e["type"] == "content_block_delta")
    else:
        told, said = reply.json, text(reply.json)
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", stop)
    assert said == whole[: whole.index(stop)] and b"__verbose" not in reply.body


def test_a_full_context_is_told_from_max_tokens(live):
    told = live.ask("/v1/messages", ASK | {"max_tokens": 4096, "stream": True}).events[-2]
    # the tiny model may end by itself, but never by a limit that it did not reach
    assert told["delta"]["stop_reason"] in ("model_context_window_exceeded", "end_turn")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_forced_call(live, choice):
    told = live.ask("/v1/messages", FORCED | {"tool_choice": choice}).json
    assert told["stop_reason"] == "tool_use"
    use = told["content"][-1]
    assert use["type"] == "tool_use" and use["name"] == "weather" and use["id"]
    assert use["input"]["city"] in ("Rome", "Oslo") and 1 <= use["input"]["days"] <= 9
    events = live.ask("/v1/messages", FORCED | {"tool_choice": choice, "stream": True}).events
    block = next(e for e in events if e["type"] == "content_block_start")["content_block"]
    assert block["type"] == "tool_use" and block["name"] == "weather" and block["input"] == {}
    deltas = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert json.loads("".join(deltas)) == use["input"]


def test_result_of_a_call_is_read(live):
    use = live.ask("/v1/messages", FORCED).json["content"]
    result = {"type": "tool_result", "tool_use_id": use[-1]["id"], "content": [{"type": "text", "text": "sunny"}]}
    turns = [*ASK["messages"], {"role": "assistant", "content": use}, {"role": "user", "content": [result]}]

    def read(last) -> int:
        return tokens(live.ask("/v1/messages", ASK | {"messages": [*turns[:-1], last]}).json["usage"])

    plain = read(turns[-1])
    assert plain > tokens(live.ask("/v1/messages", ASK).json["usage"]) + 10
    assert read({"role": "user", "content": [result | {"is_error": True}]}) > plain
    assert read({"role": "user", "content": [result, {"type": "text", "text": "so?"}]}) > plain


def test_tools_that_may_not_be_called(live):
    none = live.ask("/v1/messages", FORCED | {"tool_choice": {"type": "none"}}).json
    assert none["content"] == live.ask("/v1/messages", ASK | {"max_tokens": 120}).json["content"]


def test_examples_of_a_tool_are_read(live):
    def counted(tool) -> int:
        return live.ask(
            "/v1/messages/count_tokens", {k: ASK[k] for k in ("model", "messages")} | {"tools": [tool]}
        ).json["input_tokens"]

    assert counted(TOOL | {"input_examples": [{"city": "Rome", "days": 3}]}) > counted(TOOL)


def test_system_prompt_and_blocks(live):
    def content(**fields):
        reply = live.ask("/v1/messages", ASK | fields)
        assert reply.status == 200, reply.body
        return reply.json["content"], tokens(reply.json["usage"])

    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    billed = {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=0badf;"}
    blocks = [billed, {"type": "text", "text": "import os"} | cached]
    assert content(system="import os") == content(system=blocks) != content()
    parts = [{"type": "text", "text": "def"}, {"type": "text", "text": "f"} | cached]
    one = [{"role": "user", "content": "def\nf"}]
    assert content(messages=[{"role": "user", "content": parts}], **cached) == content(messages=one)
    apart = [{"role": "user", "content": "def"}, {"role": "user", "content": "f"}]
    assert content(messages=apart) == content(messages=one)


@pytest.mark.parametrize("stream", [False, True])
def test_prefill_is_gone_on_with(live, stream):
    whole = text(live.ask("/v1/messages", ASK | {"max_tokens": 20}).json)
    turns = [*ASK["messages"], {"role": "assistant", "content": whole[:4] + "class"}]
    reply = live.ask("/v1/messages", ASK | {"messages": turns, "stream": stream})
    said = (
        text(reply.json)
        if not stream
        else "".join(e["delta"]["text"] for e in reply.events if e["type"] == "content_block_delta")
    )
    assert said and not said.startswith(whole[:4] + "class")


def test_json_schema(live):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    for asked in ({"output_config": {"format": form, "effort": "high"}}, {"output_format": form}):
        assert json.loads(text(live.ask("/v1/messages", ASK | {"max_tokens": 40} | asked).json))["a"] in (1, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_has_a_budget(live, thinker, stream):
    asked = ASK | {"model": thinker, "max_tokens": 60, "stream": stream}
    asked |= {"thinking": {"type": "enabled", "budget_tokens": 12}}
    reply = live.ask("/v1/messages", asked)
    if stream:
        blocks = [e["content_block"]["type"] for e in reply.events if e["type"] == "content_block_start"]
        deltas = [e["delta"]["type"] for e in reply.events if e["type"] == "content_block_delta"]
        assert "signature_delta" in deltas and deltas[0] == "thinking_delta"
        assert [d for d in deltas if d != "text_delta"][-1] == "signature_delta"
    else:
        blocks = [block["type"] for block in reply.json["content"]]
        assert reply.json["content"][0]["thinking"] and reply.json["content"][0]["signature"] == ""
        turns = [*ASK["messages"], {"role": "assistant", "content": reply.json["content"]}, *ASK["messages"]]
        again = live.ask("/v1/messages", asked | {"messages": turns})
        without = [turns[0], {"role": "assistant", "content": reply.json["content"][1:]}, turns[2]]
        fewer = live.ask("/v1/messages", asked | {"messages": without})
        assert tokens(again.json["usage"]) > tokens(fewer.json["usage"])
    assert blocks == ["thinking", "text"]


def test_thinking_off_and_unseen(live, thinker):
    asked = ASK | {"model": thinker, "max_tokens": 60}
    off = live.ask("/v1/messages", asked | {"thinking": {"type": "disabled"}}).json
    assert [block["type"] for block in off["content"]] == ["text"]
    unseen = {"type": "enabled", "budget_tokens": 12, "display": "omitted"}
    told = live.ask("/v1/messages", asked | {"thinking": unseen}).json
    assert told["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("frobnicate", 1, "frobnicate"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", None, "max_tokens"),
        ("temperature", 1.5, "temperature"),
        ("top_k", -1, "top_k"),
        ("stop_sequences", [""], "stop_sequences"),
        ("service_tier", "priority", "service_tier"),
        ("speed", "fast", "speed"),
        ("inference_geo", "eu", "inference_geo"),
        ("container", "c", "container"),
        ("mcp_servers", [{}], "mcp_servers"),
        ("betas", ["x"], "betas"),
        ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}, "context_management"),
        ("metadata", {"frob": 1}, "metadata.frob"),
        ("cache_control", {"type": "eternal"}, "cache_control.type"),
        ("thinking", {"type": "enabled"}, "thinking.budget_tokens"),
        ("thinking", {"type": "enabled", "budget_tokens": 8}, "max_tokens"),
        ("thinking", {"type": "enabled", "budget_tokens": 4}, "thinking"),
        ("thinking", {"type": "between_tools"}, "thinking.type"),
        ("output_config", {"effort": "max"}, "reasoning_effort"),
        ("output_config", {"format": {"type": "xml", "schema": {}}}, "output_config.format.type"),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}], "web_search_20250305"),
        ("tools", [{"type": "bash_20250124", "name": "bash"}], "bash_20250124"),
        ("tools", [{"name": "no good", "input_schema": {}}], "tools.0.name"),
        ("tools", [TOOL | {"defer_loading": True}], "tools.0.defer_loading"),
        ("tools", [TOOL, TOOL], "same name"),
        ("tool_choice", {"type": "any"}, "tool_choice"),
        ("tool_choice", {"type": "tool"}, "tool_choice.name"),
        ("system", [PNG], "system.0: image"),
        ("messages", [], "messages"),
        ("messages", [{"role": "wizard", "content": "x"}], "messages.0.role"),
        ("messages", [{"role": "user", "content": [PNG]}], "messages.0.content.0: image"),
        ("messages", [{"role": "user", "content": [{"type": "document"}]}], "document"),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "x", "frob": 1}]}], "content.0.frob"),
        ("messages", [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}], "redacted"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}],
            "role",
        ),
    ],
)
def test_nothing_is_ignored(live, field, value, said):
    refused = live.ask("/v1/messages", ASK | {field: value})
    assert refused.status == 400, refused.body
    assert refused.json["type"] == "error" and refused.json["error"]["type"] == "invalid_request_error"
    assert said in refused.json["error"]["message"]


def test_errors_have_their_types(live):
    def kind(path="/v1/messages", **asked) -> tuple[int, str]:
        body = asked.pop("body", ASK)
        reply = live.ask(path, body, **asked)
        return reply.status, reply.json["error"]["type"]

    assert kind(key="") == kind(key="wrong") == (401, "authentication_error")
    assert kind(headers={"Origin": "http://evil.example"}) == (403, "permission_error")
    assert kind(body=ASK | {"model": "nope"}) == kind("/v1/messages/batches") == (404, "not_found_error")
    assert kind(headers={"Content-Length": str(64 << 20)}) == (413, "request_too_large")
    long = ASK | {"messages": [{"role": "user", "content": "def f\n" * 400}]}
    for asked in (long, long | {"stream": True}, FORCED | long, FORCED | long | {"stream": True}):
        assert kind(body=asked) == (400, "invalid_request_error")


def test_an_answer_that_breaks_off_ends_with_an_error():
    async def breaking():
        yield b"first"
        raise ApiError(502, "the engine died")

    async def read() -> list[bytes]:
        return [piece async for piece in with_error_event(breaking(), Record("x"), shape._error_event)]

    first, last = asyncio.run(read())
    assert first == b"first" and last.startswith(b"event: error\ndata: ")
    error = {"type": "error", "error": {"type": "api_error", "message": "the engine died"}}
    assert json.loads(last.split(b"data: ")[1]) == error


def test_an_answer_right_after_a_stream_is_not_lost(live):
    """The child hangs up after a stream, which now and then took the next request with it."""
    bodies = [ASK | {"max_tokens": 1}] * 70 + [FORCED] * 10
    assert {live.ask("/v1/messages", body | {"stream": n % 2 == 0}).status for n, body in enumerate(bodies)} == {200}


def test_no_loss_where_nothing_is_asked_for(live):
    keeps = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    same = {"context_management": keeps, "container": None, "thinking": {"type": "adaptive"}, "speed": "standard"}
    same |= {"output_config": {"effort": "high"}, "metadata": {"user_id": "ann"}, "service_tier": "auto"}
    assert live.ask("/v1/messages", ASK | same).json["content"] == live.ask("/v1/messages", ASK).json["content"]


def test_sdk(live):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=live.address, api_key=live.key, max_retries=0) as client:
        common = {key: ASK[key] for key in ("model", "messages", "max_tokens")}
        whole = client.messages.create(**common, extra_body={"temperature": 0})
        assert whole.content[0].type == "text" and whole.stop_reason == "max_tokens"
        assert whole._request_id.startswith("req_")
        counted = client.messages.count_tokens(model="tiny", messages=ASK["messages"])
        assert counted.input_tokens == tokens(whole.usage.to_dict())
        with client.messages.stream(**common, extra_body={"temperature": 0}) as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
            assert stream.get_final_message().usage.output_tokens == 8
        forced = {key: FORCED[key] for key in ("model", "messages", "max_tokens", "tools", "tool_choice")}
        with client.messages.stream(**forced) as stream:
            use = stream.get_final_message().content[-1]
        assert use.type == "tool_use" and use.input["city"] in ("Rome", "Oslo")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        turns = [*ASK["messages"], {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        assert client.messages.create(**common | {"messages": turns}).usage.output_tokens == 8
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**common | {"model": "nope"})
        with pytest.raises(anthropic.BadRequestError, match="container"):
            client.messages.create(**common, extra_body={"container": "c"})

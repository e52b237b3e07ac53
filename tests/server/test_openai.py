"""OpenAI's shape, over a socket, with a real child behind it."""

import base64
import json
import struct

import pytest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "def f"}], "max_tokens": 8, "temperature": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def test_chat(live):
    answer = live.ask("/v1/chat/completions", CHAT)
    assert answer.status == 200 and answer.headers["x-request-id"].startswith("req_")
    told = answer.json
    assert told["model"] == "tiny" and told["object"] == "chat.completion"
    assert told["choices"][0]["message"]["content"] and told["choices"][0]["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("alias", ["/v1/chat/completions", "/chat/completions"])
def test_stream_is_the_whole_answer_in_pieces(live, alias):
    whole = live.ask(alias, CHAT).json["choices"][0]["message"]["content"]
    reply = live.ask(alias, CHAT | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream") and reply.body.endswith(b"data: [DONE]\n\n")
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events) == whole
    assert {e["model"] for e in reply.events} == {"tiny"} and not any("usage" in e for e in reply.events)
    assert reply.events[-1]["choices"][0]["finish_reason"] == "length"


def test_usage_in_a_stream_for_who_asks(live):
    reply = live.ask("/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}})
    assert reply.events[-1]["choices"] == [] and reply.events[-1]["usage"]["completion_tokens"] == 8


def test_several_answers_and_probabilities(live):
    told = live.ask("/v1/chat/completions", CHAT | {"n": 2, "logprobs": True, "top_logprobs": 3, "seed": 1}).json
    assert [choice["index"] for choice in told["choices"]] == [0, 1]
    assert all(len(token["top_logprobs"]) == 3 for c in told["choices"] for token in c["logprobs"]["content"])
    told = live.ask("/v1/chat/completions", CHAT | {"logprobs": True}).json
    assert len(told["choices"][0]["logprobs"]["content"]) == 8
    refused = live.ask("/v1/chat/completions", CHAT | {"n": 3})
    assert refused.status == 400 and refused.json["error"]["param"] == "n"


def test_tools_of_a_template_that_knows_none(live):
    asked = CHAT | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 120}
    message = live.ask("/v1/chat/completions", asked).json["choices"][0]
    assert message["finish_reason"] == "tool_calls"
    call = message["message"]["tool_calls"][0]
    assert call["function"]["name"] == "weather" and call["id"].startswith("call_")
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9
    reply = live.ask("/v1/chat/completions", asked | {"stream": True})
    streamed = [d for e in reply.events for d in e["choices"][0]["delta"].get("tool_calls", ())]
    assert streamed[0]["function"] == call["function"] and streamed[0]["index"] == 0
    # what was called, and what came of it, are part of the next prompt
    turns = [*CHAT["messages"], message["message"], {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    longer = live.ask("/v1/chat/completions", CHAT | {"messages": turns}).json["usage"]["prompt_tokens"]
    assert longer > live.ask("/v1/chat/completions", CHAT).json["usage"]["prompt_tokens"] + 10


def test_named_tool_and_none(live):
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    named = {"type": "function", "function": {"name": "other"}}
    asked = CHAT | {"tools": [TOOL, other], "tool_choice": named, "max_tokens": 120}
    calls = live.ask("/v1/chat/completions", asked).json["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["other"]
    none = live.ask("/v1/chat/completions", asked | {"tool_choice": "none"}).json["choices"][0]["message"]
    assert (
        "tool_calls" not in none
        and none == live.ask("/v1/chat/completions", CHAT | {"max_tokens": 120}).json["choices"][0]["message"]
    )


@pytest.mark.parametrize("stream", [False, True])
def test_json_is_json(live, stream):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 2]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = live.ask("/v1/chat/completions", CHAT | {"response_format": form, "max_tokens": 60, "stream": stream})
    if stream:
        text = "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events)
    else:
        text = reply.json["choices"][0]["message"]["content"]
    assert set(json.loads(text)) == {"a", "b"}


def test_a_schema_that_cannot_be_kept_to_is_refused_and_not_ignored(live):
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "not": {"required": ["x"]}}}}
    refused = live.ask("/v1/chat/completions", CHAT | {"response_format": form})
    assert refused.status == 400 and "not" in refused.json["error"]["message"]
    broken = TOOL | {"function": TOOL["function"] | {"parameters": {"type": "frob"}}}
    refused = live.ask("/v1/chat/completions", CHAT | {"tools": [broken]})
    assert refused.status == 400 and "frob" in refused.json["error"]["message"]
    refused = live.ask("/v1/chat/completions", CHAT | {"grammar": "root ::= ("})
    assert refused.status == 400 and refused.json["error"]["param"] == "grammar"


def test_own_grammar(live):
    text = live.ask("/v1/chat/completions", CHAT | {"grammar": 'root ::= "yes" | "no"'}).json["choices"][0]["message"]
    assert text["content"] in ("yes", "no")


def test_a_model_without_a_template_takes_no_turns(live):
    refused = live.ask("/v1/chat/completions", CHAT | {"model": "plain"})
    assert refused.status == 400 and refused.json["error"]["code"] == "no_chat_template"
    assert live.ask("/v1/completions", {"model": "plain", "prompt": "def f", "max_tokens": 4}).status == 200


def test_too_long_a_prompt_tells_the_counts(live):
    refused = live.ask("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "def f\n" * 400}]})
    error = refused.json["error"]
    assert refused.status == 400 and error["code"] == "context_length_exceeded"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 512


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "messages", [{"role": "user", "content": "def f\n" * 400}]),
        ("/v1/completions", "prompt", "def f\n" * 400),
        ("/v1/responses", "input", "def f\n" * 400),
    ],
)
def test_too_long_a_prompt_names_the_field_that_holds_it(live, path, field, value, stream):
    refused = live.ask(path, {"model": "tiny", field: value, "stream": stream})
    assert refused.status == 400 and refused.json["error"]["code"] == "context_length_exceeded"
    assert refused.json["error"]["param"] == field


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("frobnicate", 1, "unknown_parameter"),
        ("temperature", -1, "invalid_value"),
        ("temperature", 1e300, "invalid_value"),
        ("top_p", 1.5, "invalid_value"),
        ("max_tokens", -5, "invalid_value"),
        ("max_tokens", 10**30, "invalid_value"),
        ("n", 0, "invalid_value"),
        ("store", True, "invalid_value"),
        ("modalities", ["audio"], "invalid_value"),
        ("service_tier", "flex", "invalid_value"),
        ("reasoning_effort", "high", "unsupported_parameter"),
        ("logit_bias", {"99999": 1}, "invalid_value"),
        ("logit_bias", {"x": 1}, "invalid_value"),
        ("stop", [""], "invalid_value"),
        ("top_logprobs", 2, "invalid_value"),
        ("tools", [{"type": "retrieval"}], "invalid_value"),
        ("tool_choice", "required", "invalid_value"),
        ("response_format", {"type": "xml"}, "invalid_value"),
        ("messages", [], "invalid_value"),
        ("messages", [{"role": "wizard", "content": "x"}], "invalid_value"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "unsupported_parameter"),
        ("messages", [{"role": "user", "content": "x", "frob": 1}], "unknown_parameter"),
        ("model", "nope", "model_not_found"),
        ("lora", [{"id": "nope"}], "model_not_found"),
    ],
)
def test_nothing_is_ignored(live, field, value, code):
    refused = live.ask("/v1/chat/completions", CHAT | {field: value})
    assert refused.status in (400, 404) and refused.json["error"]["code"] == code, refused.body
    assert refused.json["error"]["message"]


def test_sampling_reaches_the_model(live):
    def text(**fields) -> str:
        return live.ask("/v1/chat/completions", CHAT | fields).json["choices"][0]["message"]["content"]

    assert text(temperature=2, seed=5) == text(temperature=2, seed=5 + (1 << 32)) != text(temperature=2, seed=6)
    first = live.ask("/v1/chat/completions", CHAT | {"logprobs": True}).json["choices"][0]["logprobs"]["content"][0]
    assert not text(logit_bias={str(first["id"]): -100}).startswith(first["token"])
    assert text(top_k=1, temperature=2) == text()
    whole = text(max_tokens=30)
    assert text(max_tokens=30, stop=whole[5:8]) == whole[: whole.index(whole[5:8])]


def test_adapters_are_models(live):
    plain, tuned = (live.ask("/v1/chat/completions", CHAT | {"model": m}).json for m in ("tiny", "tiny:notes"))
    assert tuned["model"] == "tiny:notes" and plain["choices"] != tuned["choices"]
    assert live.ask("/v1/chat/completions", CHAT | {"model": "notes"}).json["choices"] == tuned["choices"]
    scaled = {"lora": [{"id": "notes", "scale": 1.0}]}
    assert live.ask("/v1/chat/completions", CHAT | scaled).json["choices"] == tuned["choices"]
    off = {"model": "tiny:notes", "lora": [{"id": "notes", "scale": 0.0}]}
    assert live.ask("/v1/chat/completions", CHAT | off).json["choices"] == plain["choices"]


def test_completions(live):
    body = {"model": "tiny", "prompt": "def f", "max_tokens": 6, "temperature": 0}
    one = live.ask("/v1/completions", body).json
    assert one["object"] == "text_completion" and one["choices"][0]["text"]
    assert (
        live.ask("/v1/completions", body | {"echo": True}).json["choices"][0]["text"]
        == "def f" + one["choices"][0]["text"]
    )
    two = live.ask("/v1/completions", body | {"prompt": ["def f", "class A"], "logprobs": 2}).json
    assert [c["index"] for c in two["choices"]] == [0, 1] and two["choices"][0]["text"] == one["choices"][0]["text"]
    assert (
        len(two["choices"][1]["logprobs"]["tokens"]) == 6 and len(two["choices"][1]["logprobs"]["top_logprobs"][0]) == 2
    )
    assert two["usage"]["completion_tokens"] == 12
    streamed = live.ask("/v1/completions", body | {"stream": True})
    assert "".join(e["choices"][0]["text"] for e in streamed.events) == one["choices"][0]["text"]


def test_embeddings(live):
    told = live.ask("/v1/embeddings", {"model": "tiny", "input": ["def f", "import os"]}).json
    vectors = [item["embedding"] for item in told["data"]]
    assert len(vectors) == 2 and len(vectors[0]) == 64 and sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-3)
    packed = live.ask("/v1/embeddings", {"model": "tiny", "input": "def f", "encoding_format": "base64"}).json
    unpacked = struct.unpack("<64f", base64.b64decode(packed["data"][0]["embedding"]))
    assert unpacked == pytest.approx(vectors[0], abs=1e-4)
    assert live.ask("/v1/embeddings", {"model": "tiny", "input": "x", "dimensions": 32}).status == 400


def test_models(live):
    listed = {model["id"]: model for model in live.ask("/v1/models").json["data"]}
    assert {"tiny", "plain", "tiny:notes"} <= set(listed)
    assert listed["tiny"]["context_length"] == 512 and "tools" in listed["tiny"]["capabilities"]
    assert listed["plain"]["capabilities"] == ["completion"]
    assert live.ask("/v1/models/tiny:notes").json["id"] == "tiny:notes"
    assert live.ask("/v1/models/nope").status == 404


def test_counting_tokens(live):
    counted = live.ask("/v1/chat/completions/input_tokens", CHAT).json["input_tokens"]
    assert counted == live.ask("/v1/chat/completions", CHAT).json["usage"]["prompt_tokens"]


def test_an_answer_whose_client_leaves_is_stopped(live):
    live.leave("/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 200, "ignore_eos": True})

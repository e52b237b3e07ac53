"""Recorded requests and answers, as the clients and servers of others write them."""

import json

import pytest

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.doctor.checks.answers.empty_answer import EmptyAnswer
from settle.doctor.doctor import examine
from settle.doctor.read_transcript import read_transcript
from settle.doctor.subject import ChatRecord, RecordedChat

ASKED = {
    "openai": {
        "model": "m",
        "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "max_completion_tokens": 64,
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": True},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    },
    "ollama": {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "options": {"num_predict": 64, "temperature": 0.5, "num_ctx": 4096},
        "think": True,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    },
    "anthropic": {
        "model": "m",
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}],
        "max_tokens": 64,
        "temperature": 0.5,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    },
    "responses": {
        "model": "m",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello?"}]}],
        "max_output_tokens": 64,
        "temperature": 0.5,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    },
}
GIVEN = {
    "openai": {
        "choices": [
            {
                "message": {
                    "role": "assistant",
                    "content": "Hi.",
                    "reasoning_content": "Hm.",
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5},
    },
    "ollama": {
        "message": {
            "role": "assistant",
            "content": "Hi.",
            "thinking": "Hm.",
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
        },
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 9,
        "eval_count": 5,
    },
    "anthropic": {
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm."},
            {"type": "text", "text": "Hi."},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 9, "output_tokens": 5},
    },
    "responses": {
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Hi."}]},
            {"type": "function_call", "name": "f", "arguments": '{"x": 1}'},
        ],
        "usage": {"input_tokens": 9, "output_tokens": 5},
    },
}
STREAMED = {
    "openai": [
        {"choices": [{"delta": {"role": "assistant", "reasoning_content": "H"}}]},
        {"choices": [{"delta": {"reasoning_content": "m."}}]},
        {"choices": [{"delta": {"content": "Hi"}}]},
        {"choices": [{"delta": {"content": "."}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}},
    ],
    "ollama": [
        {"message": {"content": "", "thinking": "Hm."}, "done": False},
        {"message": {"content": "Hi."}, "done": False},
        {"message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}, "done": False},
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 5},
    ],
    "anthropic": [
        {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 9, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi."}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"x"'}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ],
    "responses": [
        {"type": "response.created", "response": {"output": []}},
        {"type": "response.output_text.delta", "delta": "Hi."},
        {"type": "response.completed", "response": GIVEN["responses"]},
    ],
}


def sse(events):
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def lines(events):
    return "".join(json.dumps(event) + "\n" for event in events)


def har(asked, given):
    entry = {
        "request": {"url": "http://x/v1", "postData": {"text": json.dumps(asked)}},
        "response": {"content": {"text": json.dumps(given)}},
    }
    picture = {"request": {"url": "http://x/a.png"}, "response": {"content": {"text": "…"}}}
    return json.dumps({"log": {"entries": [picture, entry]}})


FILES = {
    "a record with both": lambda asked, given, parts: json.dumps({"request": asked, "response": given}),
    "bodies as text": lambda asked, given, parts: json.dumps(
        {"method": "POST", "request_body": json.dumps(asked), "response_body": json.dumps(given)}
    ),
    "within an envelope": lambda asked, given, parts: json.dumps(
        [{"request": {"url": "http://x", "headers": {}, "body": asked}, "response": {"status": 200, "body": given}}]
    ),
    "one after the other": lambda asked, given, parts: lines([asked, given]),
    "a stream, line by line": lambda asked, given, parts: lines([asked, *parts]),
    "a stream of events": lambda asked, given, parts: json.dumps({"request": asked, "response": sse(parts)}),
    "a stream of lines": lambda asked, given, parts: json.dumps({"request": asked, "response": lines(parts)}),
    "a browser's": lambda asked, given, parts: har(asked, given),
}


@pytest.mark.parametrize("api", ASKED)
@pytest.mark.parametrize("form", FILES)
def test_every_api_is_read_alike_however_it_was_recorded(tmp_path, api, form):
    path = tmp_path / "chat.jsonl"
    path.write_text(FILES[form](ASKED[api], GIVEN[api], STREAMED[api]), encoding="utf-8")
    (exchange,) = read_transcript(path)
    request, reply = exchange.request, exchange.reply
    assert request.api == api and request.model == "m" and request.question == "Hello?"
    assert request.messages[0] == {"role": "system", "content": "Be brief."}
    assert request.settings["max_tokens"] == 64 and request.settings["temperature"] == 0.5
    assert request.tools[0]["function"]["name"] == "f" and request.tools[0]["function"]["parameters"]
    assert api == "responses" or request.settings["thinking"] is True
    assert request.context == (4096 if api == "ollama" else None)
    assert reply is not None and (reply.answer, reply.thought, reply.finish) == ("Hi.", "Hm.", "tool_calls")
    assert [(call.name, call.values) for call in reply.calls] == [("f", {"x": 1})]
    assert (reply.prompt_tokens, reply.written_tokens) == (9, 5)


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "<think>Hm.</think>Nothing."},
]
CONVERSATIONS = {
    "what /save writes": json.dumps({"model": "/m.gguf", "messages": TURNS}, indent=1),
    "a list": json.dumps(TURNS),
    "a turn a line": lines(TURNS),
    "rows": lines([{"messages": TURNS}]),
    "sharegpt": json.dumps(
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], "system"), "value": turn["content"]}
                for turn in TURNS
            ]
        }
    ),
}


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_each_answer_of_a_conversation_is_an_exchange(tmp_path, form):
    path = tmp_path / "chat.json"
    path.write_text(CONVERSATIONS[form], encoding="utf-8")
    first, second = read_transcript(path)
    assert first.request.question == "Hello?" and first.reply.answer == "Hi."
    assert second.request.question == "And?" and len(second.request.messages) == 4
    assert second.reply.answer == "Nothing." and second.reply.thought == "<think>Hm.</think>"


def test_a_thought_that_never_ends_is_no_answer(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([TURNS[1], {"role": "assistant", "content": "<think>\nHm, let me see"}]), "utf-8")
    (exchange,) = read_transcript(path)
    assert not exchange.reply.is_answered and exchange.reply.thought


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"alpha": 1, "beta": 2}', "alpha, beta"),
        ("Hello, how are you?", "neither JSON nor JSON lines"),
        ("", "no request and no conversation"),
        ("[]", "no request and no conversation"),
        ('{"messages": "none"}', "messages"),
        (json.dumps(ASKED["openai"]) + '\n{"choices": [\n{}', "line 2"),
        ("[" * 100_000, "neither JSON nor JSON lines"),
    ],
)
def test_an_unknown_layout_is_an_error_that_shows_what_is_known(tmp_path, content, says):
    path = tmp_path / "chat.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_transcript(path)
    assert says in error.value.what
    assert "Anthropic" in error.value.fix or "line 2" in error.value.what


def test_a_file_that_is_not_there_or_binary_is_said_to_be(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_transcript(tmp_path / "none.jsonl")
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="neither JSON"):
        read_transcript(tmp_path / "picture.png")


@pytest.mark.parametrize(("stop", "says"), [(["\n"], "may stop it before it begins"), (None, "nothing says why")])
def test_an_answer_that_is_plain_empty_is_found(tmp_path, stop, says):
    path = tmp_path / "chat.jsonl"
    body = {"messages": [{"role": "user", "content": "Hello?"}], **({"stop": stop} if stop else {})}
    message = {"role": "assistant", "content": ""}
    exchange = {"request": body, "response": {"choices": [{"message": message, "finish_reason": "stop"}]}}
    path.write_text(json.dumps(exchange) + "\n")
    subject = RecordedChat(str(path), ChatRecord(read_transcript(path)))
    (finding,) = examine(subject, Events()).findings
    assert finding.check == "empty_answer" and says in finding.what
    command = EmptyAnswer().fix(finding, subject).command
    assert ('"stop": null' in command) == bool(stop)

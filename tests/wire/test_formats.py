"""The two ways in which a body is read: field by field for the server, and tolerantly where it was recorded."""

import json

import pytest

from settle.wire.errors import ApiError
from settle.wire.exchange import text_of
from settle.wire.fields import validated
from settle.wire.formats import WireFormat, anthropic, calls_of, ollama, openai, responses

TOOL = {"name": "find", "description": "finds", "parameters": {"type": "object", "properties": {"x": {}}}}
CALL = {"id": "call00000", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
BODIES = {
    "openai": {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [CALL]},
            {"role": "tool", "content": "here", "tool_call_id": "call00000"},
        ],
        "tools": [{"type": "function", "function": TOOL}],
    },
    "ollama": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where?"},
            {
                "role": "assistant",
                "content": "",
                "thinking": "Hm.",
                "tool_calls": [{"function": {"name": "find", "arguments": {"x": 1}}}],
            },
            {"role": "tool", "content": "here", "tool_name": "find"},
        ],
        "options": {"num_predict": 9},
        "tools": [{"type": "function", "function": TOOL}],
    },
    "anthropic": {
        "model": "m",
        "max_tokens": 9,
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Where?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm."},
                    {"type": "tool_use", "id": "call00000", "name": "find", "input": {"x": 1}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call00000", "content": "here"}]},
        ],
        "tools": [{"name": "find", "description": "finds", "input_schema": TOOL["parameters"]}],
    },
    "responses": {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Where?"},
            {"type": "function_call", "call_id": "call00000", "name": "find", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "call00000", "output": "here"},
        ],
        "tools": [{"type": "function", **TOOL}],
    },
}
EXPECTED = [("system", "Be brief."), ("user", "Where?"), ("assistant", ""), ("tool", "here")]


def _chat(api):
    body = BODIES[api]
    if api == "ollama":
        return validated(ollama.ChatBody, body).to_chat(ollama.Answerer("m", 512, {}))
    model = {"openai": openai.ChatBody, "anthropic": anthropic.MessagesBody, "responses": responses.ResponseBody}[api]
    return validated(model, body).to_chat()


@pytest.mark.parametrize("api", BODIES)
def test_the_server_and_the_doctor_read_the_same_conversation(api):
    chat, recorded = _chat(api), WireFormat.part(api)().request(BODIES[api])
    for messages in (chat.messages, recorded.messages):
        assert [(message["role"], text_of(message)) for message in messages] == EXPECTED
        (call,) = calls_of(messages[2]["tool_calls"])
        assert call.name == "find" and call.values == {"x": 1}
        assert api == "responses" or messages[2]["reasoning_content"] == "Hm."
    assert [*recorded.tools] == chat.tools
    assert recorded.settings.get("max_tokens") == chat.max_tokens


@pytest.mark.parametrize("api", BODIES)
def test_what_the_server_refuses_is_still_read_where_it_was_recorded(api, monkeypatch):
    unknown = {**BODIES[api], "of_another_server": True}
    recorded = WireFormat.part(api)().request(unknown)
    assert recorded is not None and recorded.messages == WireFormat.part(api)().request(BODIES[api]).messages
    monkeypatch.setitem(BODIES, api, json.loads(json.dumps(unknown)))
    with pytest.raises(ApiError, match="of_another_server"):
        _chat(api)

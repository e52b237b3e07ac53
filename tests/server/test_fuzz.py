"""A short and always the same walk through what the document of all routes says can be asked."""

import copy
import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict")
STEADY = settings(
    max_examples=3,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TURN = {"role": "user", "content": [{"type": "text", "text": "def f"}]}
# every field of a body that is looked into by hand, with something in it that is right
DEEP = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            TURN,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "x"},
            TURN,
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "parameters": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}},
                },
            }
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "max_tokens": 2,
        "stop": ["x"],
        "logit_bias": {"1": 1},
    },
    "/v1/chat/completions/input_tokens": {
        "model": "tiny",
        "messages": [TURN],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 2,
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            TURN,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [TURN["content"][0]]}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "context_management": {"edits": []},
        "stop_sequences": ["x"],
    },
    "/v1/responses": {
        "model": "tiny",
        "max_output_tokens": 2,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "text": {"format": {"type": "text"}},
        "include": [],
    },
    "/api/chat": {
        "model": "tiny",
        "stream": False,
        "messages": [
            {"role": "user", "content": "def f"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "x", "tool_name": "f"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "options": {"num_predict": 2, "stop": ["x"]},
    },
    "/api/generate": {"model": "tiny", "prompt": "def f", "stream": False, "options": {"num_predict": 2}},
    "/api/embed": {"model": "tiny", "input": ["x"], "options": {}},
    "/apply-template": {"model": "tiny", "messages": [TURN]},
    "/completion": {"model": "tiny", "prompt": "def f", "n_predict": 2, "stop": ["x"], "logit_bias": [[1, 1.0]]},
    "/tokenize": {"model": "tiny", "content": "x"},
    "/detokenize": {"model": "tiny", "tokens": [1]},
}
OTHERS = (None, -1, 1.5, "", [], {}, [[]], ["x"], {"x": 1}, [{}], "\u0000")


def operations(live):
    """Each once: not again under its other path."""
    told = live.ask("/openapi.json").json
    told["paths"] = {path: found for path, found in told["paths"].items() if f"/v1{path}" not in told["paths"]}
    return [found.ok() for found in schemathesis.openapi.from_dict(told).get_all_operations()]


def tame(case) -> None:
    """Let a case end soon."""
    if isinstance(case.body, dict):
        case.body |= {name: 2 for name in LENGTHS if type(case.body.get(name)) is int and case.body[name] > 2}


def sent(live, case):
    path = case.path
    for name, value in (case.path_parameters or {}).items():
        path = path.replace(f"{{{name}}}", quote(str(value), safe="%"))
    has_body = isinstance(case.body, dict | list | str | int | float | bytes | None)
    return live.ask(path, case.body if has_body else None, method=case.method)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_what_the_document_allows_and_what_not(live, mode):
    seen = []
    for operation in operations(live):

        @STEADY
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case) -> None:
            tame(case)
            answer = sent(live, case)
            seen.append(answer.status)
            assert answer.status < 500 or answer.status == 501, (case.method, case.path, case.body, answer.body)

        ask()
    assert len(seen) > 50


@pytest.mark.parametrize("path", DEEP)
def test_something_else_in_every_place(live, path):
    """Every value of a body that is right, one after the other, taken out, made another, and given a neighbour."""
    assert live.ask(path, DEEP[path]).status == 200
    for place in places(DEEP[path]):
        for other in OTHERS:
            body = copy.deepcopy(DEEP[path])
            holder = body
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = other
            answer = live.ask(path, body)
            assert answer.status < 500, (place, other, answer.body)


def places(value, before=()):
    """The way to every value inside of one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*before, key)
        yield from places(inner, (*before, key))


@STEADY
@given(st.binary(max_size=40))
def test_no_json(live, raw):
    assert live.ask("/v1/chat/completions", raw, method="POST").status == 400


def test_a_neighbour_in_every_object(live):
    """No field is taken that does nothing."""
    free = (
        "input",
        "arguments",
        "parameters",
        "properties",
        "a",
        "$defs",
        "schema",
        "chat_template_kwargs",
        "input_schema",
    )
    for path, body in DEEP.items():
        for place in [(), *places(body)]:
            changed = copy.deepcopy(body)
            holder = changed
            for key in place:
                holder = holder[key]
            if (
                not isinstance(holder, dict)
                or set(free) & set(place[1:] or place)
                or place[-1:] in (("logit_bias",), ("context_management",))
            ):
                continue
            holder["frobnicate"] = 1
            answer = live.ask(path, changed)
            assert answer.status == 400 and "frobnicate" in json.dumps(answer.json), (path, place, answer.body)

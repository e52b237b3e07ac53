"""A call that must come comes, whole and fitting, with the chat template of every kind of model."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from settle.formats.gguf import export_gguf
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_loader import PoolSettings
from settle.server.requests.required_calls import limited
from tests.server.conftest import Live, serving
from tests.trained import trained

CONTEXT = 4096

TEMPLATES = sorted((Path(__file__).parents[1] / "chat_templates").glob("*.jinja"))
PLACES = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
}
SCHEMAS = {"find_place": PLACES, "weather": WEATHER}
FUNCTIONS = [{"name": name, "description": name, "parameters": schema} for name, schema in SCHEMAS.items()]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
TURNS = [{"role": "user", "content": "def f"}]
REASONS = ("tool_calls", "length")  # a further call may be cut off
ALONE = {"parallel_tool_calls": False}
ONE_A_TURN = ("gpt-oss", "llama-3.2")
LIMITS = {"max_tokens": 120, "temperature": 0}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of tiny models, each with one of the templates, and with room for their prompts."""
    folder = tmp_path_factory.mktemp("templates")
    model, entries = trained(), []
    part = model.part.model_copy(update={"max_position_embeddings": CONTEXT})
    tokenizer = copy.copy(model.tokenizer)
    for template in TEMPLATES:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
        path = export_gguf(part, model.weights, tokenizer, folder / f"{template.stem}.gguf", "f32", {"name": "tiny"})
        entries.append(ModelEntry(template.stem, path))
    with serving(folder, PoolSettings(context=CONTEXT, slots=1, threads=1, most_models=2), tuple(entries)) as server:
        yield server


@pytest.fixture(scope="module", params=[path.stem for path in TEMPLATES])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(name: str, arguments: object) -> None:
    assert isinstance(arguments, dict) and {*arguments} == {*SCHEMAS[name]["required"]}
    if name == "weather":
        assert arguments["city"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9
    else:
        assert isinstance(arguments["place"], str)


def check_all(calls: list[dict[str, str]]) -> None:
    """Calls that fit, each another one."""
    assert calls and len({(call["name"], call["arguments"]) for call in calls}) == len(calls)
    for call in calls:
        check(call["name"], json.loads(call["arguments"]))


def test_required(live: Live, model: str) -> None:
    body = {"model": model, "messages": TURNS, "tools": TOOLS, "tool_choice": "required"} | LIMITS
    reply = live.ask("/v1/chat/completions", body)
    assert reply.status == 200, reply.json
    choice = reply.json["choices"][0]
    assert choice["finish_reason"] in REASONS and not choice["message"]["content"]
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    check_all(calls)
    events = live.ask("/v1/chat/completions", body | {"stream": True}).events
    streamed = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["function"] for call in streamed] == calls
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    (call,) = live.ask("/v1/chat/completions", body | ALONE).json["choices"][0]["message"]["tool_calls"]
    assert call["function"] == calls[0]


def test_by_name(live: Live, model: str) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    body = {"model": model, "messages": TURNS, "tools": TOOLS, "tool_choice": named} | LIMITS
    (call,) = live.ask("/v1/chat/completions", body).json["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    check("weather", json.loads(call["function"]["arguments"]))


def test_several(live: Live, model: str) -> None:
    """A model that may not end its answer calls again, until it repeats itself; some templates hold one call a turn."""
    colors = {"type": "object", "properties": {"color": {"enum": ["red", "blue", "green"]}}, "required": ["color"]}
    tools = [{"type": "function", "function": {"name": "paint", "description": "paint", "parameters": colors}}]
    body = {"model": model, "messages": TURNS, "tools": tools, "tool_choice": "required", "max_tokens": 1000}
    most = 0
    for seed in range(6):
        goes_on = {"ignore_eos": model not in ONE_A_TURN, "temperature": 2, "seed": seed}
        reply = live.ask("/v1/chat/completions", body | goes_on)
        choice = reply.json["choices"][0]
        colors_written = [json.loads(c["function"]["arguments"])["color"] for c in choice["message"]["tool_calls"]]
        assert len({*colors_written}) == len(colors_written) <= 3  # the call that came again ended the list
        assert choice["finish_reason"] == "tool_calls" and reply.json["usage"]["completion_tokens"] < 500
        most = max(most, len(colors_written))
    assert most > 1 or model in ONE_A_TURN


def test_other_apis(live: Live, model: str) -> None:
    tools = [{"name": f["name"], "input_schema": f["parameters"]} for f in FUNCTIONS]
    body = {"model": model, "messages": TURNS, "tools": tools, "tool_choice": {"type": "any"}} | LIMITS
    reply = live.ask("/v1/messages", body).json
    used = [block for block in reply["content"] if block["type"] == "tool_use"]
    assert used and reply["stop_reason"] in ("tool_use", "max_tokens")
    for use in used:
        check(use["name"], use["input"])
    alone = body | {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    (use,) = [block for block in live.ask("/v1/messages", alone).json["content"] if block["type"] == "tool_use"]
    assert use["input"] == used[0]["input"]
    flat = [{"type": "function", **function} for function in FUNCTIONS]
    asked = {"model": model, "input": "def f", "tools": flat, "tool_choice": "required", "temperature": 0}
    reply = live.ask("/v1/responses", asked | {"max_output_tokens": 120}).json
    items = [item for item in reply["output"] if item["type"] == "function_call"]
    assert items and reply["parallel_tool_calls"] is True
    for item in items:
        check(item["name"], json.loads(item["arguments"]))
    named = asked | {"tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 120}
    reply = live.ask("/v1/responses", named).json
    (item,) = [item for item in reply["output"] if item["type"] == "function_call"]
    assert item["name"] == "weather" and reply["parallel_tool_calls"] is False


def test_result_is_read(live: Live, model: str) -> None:
    call = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns = [*TURNS, {"role": "assistant", "content": "", "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "sunny at noon"})
    reply = live.ask("/apply-template", {"model": model, "messages": turns, "tools": TOOLS})
    assert reply.status == 200, reply.json
    prompt = reply.json["prompt"]
    assert "sunny at noon" in prompt and "weather" in prompt and "find_place" in prompt


def test_overflow(live: Live, model: str) -> None:
    turns = [{"role": "user", "content": "def f\n" * 2_000}]
    body = {"model": model, "messages": turns, "tools": TOOLS, "tool_choice": "required"} | LIMITS
    error = live.ask("/v1/chat/completions", body).json["error"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert error["n_prompt_tokens"] > error["n_ctx"]


def test_limits_end_a_call_that_runs_on() -> None:
    schema = {
        "type": "object",
        "properties": {
            "note": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "size": {"type": "number"},
            "kind": {"type": "string", "enum": ["long words stay as they are"]},
            "least": {"type": "string", "minLength": 300},
        },
        "required": ["note", "least"],
    }
    narrow = limited(schema, 512)
    places = narrow["properties"]
    assert isinstance(places, dict) and narrow["additionalProperties"] is False
    assert places["note"]["maxLength"] <= 256 and places["tags"]["maxItems"] == 4
    assert places["kind"] == schema["properties"]["kind"] and places["least"]["maxLength"] == 300
    check = jsonschema.Draft202012Validator(narrow)
    for number, is_short in ((3, True), (-3, True), (2.5, True), (0.3333333333, False), (10**20, False)):
        assert check.is_valid({"note": "", "least": "x" * 300, "size": number}) == is_short
    tight = limited(schema, 16)["properties"]
    assert isinstance(tight, dict) and [*tight] == ["note", "least"]


def test_a_text_that_runs_on_is_written_again(live: Live) -> None:
    body = {"model": "qwen2.5", "messages": TURNS, "tools": TOOLS[:1], "tool_choice": "required"}
    body |= ALONE | {"temperature": 0}
    choice = live.ask("/v1/chat/completions", body | {"max_tokens": 40}).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    check("find_place", json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]))
    events = live.ask("/v1/chat/completions", body | {"max_tokens": 40, "stream": True}).events
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"

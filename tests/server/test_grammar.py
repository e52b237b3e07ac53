"""Answers that are held to a schema or grammar: kept to, or refused, never answered with free text."""

import copy
import json
import re
import sys
import time
from pathlib import Path

import pytest

from settle.formats.gguf import export_gguf
from settle.infer.child_process import Child, Load
from settle.server import grammars
from settle.server.grammars import HEAD, MOST_ITEMS, PATTERNS, answer_schema
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_loader import PoolSettings
from tests.server.conftest import serving
from tests.trained import trained

URL = {"type": "object", "properties": {"url": {"type": "string", "format": "uri"}}, "required": ["url"]}
USER = [{"role": "user", "content": "def f"}]


def tool(schema: dict) -> dict:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


# every way to hold an answer to a schema, and where the text that must fit it is in the response
ENDPOINTS = {
    "chat": (
        "/v1/chat/completions",
        lambda s: {
            "messages": USER,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": s}},
        },
        lambda r: r["choices"][0]["message"]["content"],
    ),
    "tools": (
        "/v1/chat/completions",
        lambda s: {"messages": USER, "tools": [tool(s)], "tool_choice": "required"},
        lambda r: r["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
    ),
    "messages": (
        "/v1/messages",
        lambda s: {"messages": USER, "tools": [{"name": "f", "input_schema": s}], "tool_choice": {"type": "any"}},
        lambda r: json.dumps(next(b["input"] for b in r["content"] if b["type"] == "tool_use")),
    ),
    "ollama": (
        "/api/chat",
        lambda s: {"messages": USER, "format": s, "stream": False, "options": {"num_predict": 120, "temperature": 0}},
        lambda r: r["message"]["content"],
    ),
    "responses": (
        "/v1/responses",
        lambda s: {"input": "def f", "text": {"format": {"type": "json_schema", "name": "x", "schema": s}}},
        lambda r: r["output"][-1]["content"][0]["text"],
    ),
    "completion": ("/completion", lambda s: {"prompt": "def f", "json_schema": s}, lambda r: r["content"]),
    "completions": (
        "/v1/completions",
        lambda s: {"prompt": "def f", "json_schema": s},
        lambda r: r["choices"][0]["text"],
    ),
}
LENGTH = {"/v1/responses": "max_output_tokens", "/completion": "n_predict"}


def body_of(endpoint: str, schema: dict, tokens: int = 120) -> tuple[str, dict]:
    path, make, _ = ENDPOINTS[endpoint]
    body = {"model": "tiny"} | make(schema)
    if path != "/api/chat":
        body |= {LENGTH.get(path, "max_tokens"): tokens, "temperature": 0}
    return path, body


LOOP = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}
REFUSED = {
    "80,000 items": {"type": "array", "items": {"type": "integer"}, "maxItems": 80_000},
    "ten million items": {"type": "array", "items": {"type": "integer"}, "maxItems": 10_000_000},
    "items of properties": {
        "type": "object",
        "properties": {
            f"p{n}": {"type": "array", "items": {"type": "integer"}, "maxItems": MOST_ITEMS} for n in range(9)
        },
    },
    "1,000 optional properties": {
        "type": "object",
        "properties": {f"prop_{n}": {"type": "string"} for n in range(1000)},
        "additionalProperties": False,
    },
    "optional properties inside": {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "a to b to a": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a to a": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "anyOf itself": {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
    "requires itself": {"$ref": "#/$defs/a", "$defs": {"a": {**LOOP, "properties": {"a": {"$ref": "#/$defs/a"}}}}},
    "a number of 70 bits": {"const": -(2**70)},
    "unknown format": {"type": "string", "format": "regex"},
    "a format out of sight": {"$ref": "#/x/y", "x": {"y": {"type": "string", "format": "uri"}}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_cannot_keep_to_is_refused(live, name):
    path, body = body_of("chat", REFUSED[name], 8)
    refused = live.ask(path, body)
    assert refused.status == 400, refused.body
    error = refused.json["error"]
    assert error["param"] == "response_format" and "nested too deep" not in error["message"], error


SPECIAL = {
    "all of a text": ({"const": "<|im_end|>"}, "<|im_end|>"),
    "inside of a text": ({"const": "a<|im_start|>b"}, "a<|im_start|>b"),
    "escaped twice": ({"const": '"<|endoftext|>\\'}, '"<|endoftext|>\\'),
    "a choice": ({"enum": ["a<|im_end|>", "a<|im_end|>b"]}, None),
    "a name": (
        {"type": "object", "properties": {"<|im_end|>": {"const": 1}}, "required": ["<|im_end|>"],
         "additionalProperties": False}, {"<|im_end|>": 1},
    ),
    "a pattern": ({"type": "string", "pattern": r"^<\|im_end\|>$"}, "<|im_end|>"),
    "a pattern with classes": ({"type": "string", "pattern": "^x<[|]im_start[|]>$"}, "x<|im_start|>"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
def test_the_text_of_a_special_token_can_be_part_of_an_answer(live, name):
    """The engine would force the token itself, which ends the answer or breaks the grammar."""
    schema, expected = SPECIAL[name]
    reply = live.ask(*body_of("chat", schema, 60))
    assert reply.status == 200, reply.body
    content = json.loads(ENDPOINTS["chat"][2](reply.json))
    assert content in schema["enum"] if expected is None else content == expected


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", ["80,000 items", "1,000 optional properties", "requires itself", "unknown format"])
def test_every_endpoint_refuses_it(live, endpoint, name):
    schema = REFUSED[name]
    if endpoint in ("tools", "messages"):
        schema = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": schema.get("$defs", {})}
    refused = live.ask(*body_of(endpoint, schema, 8))
    assert refused.status == 400, refused.body


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_url_is_kept_to_at_every_endpoint(live, endpoint):
    """pydantic's HttpUrl, short enough for a tiny model to come to its end."""
    bounded = URL | {"properties": {"url": {"type": "string", "format": "uri", "maxLength": 12, "minLength": 1}}}
    reply = live.ask(*body_of(endpoint, bounded | {"additionalProperties": False}))
    assert reply.status == 200, reply.body
    url = json.loads(ENDPOINTS[endpoint][2](reply.json))["url"]
    assert re.search(PATTERNS["uri"], url) and len(url) <= 12


def test_a_bound_is_named(live):
    schema = {"type": "object", "properties": {"tags": {"type": "array", "maxItems": 10_000_000}}}
    message = live.ask(*body_of("chat", schema)).json["error"]["message"]
    assert "maxItems of properties.tags is 10,000,000" in message and "32,768" in message


FITTING = {
    "uri": ["https://www.example.com/a?b=c#d", "http://u:p@127.0.0.1:8080/", "mailto:a@b.example", "file:///etc/hosts"],
    "uri-reference": ["/a/b", "../a", "a.html?x=1#y", "https://example.com"],
    "multi-host-uri": ["postgresql://u:p@a.example:5432,b.example/db"],
    "ipvanyaddress": ["127.0.0.1"],
    "ipv4interface": ["192.168.1.1/24"],
    "json-pointer": ["/a~1b/0", ""],
    "relative-json-pointer": ["1/a", "0#"],
    "base64": ["aGVsbG8=", ""],
    "base64url": ["aGVsbG8_"],
    "uuid4": ["16fd2706-8baf-433b-82eb-8c7fada847da"],
}
WRONG = {
    "uri": ["sea", "http://", "//a.example", "https://a b.example", "http://a.example:99999", "http://-a.example"],
    "uri-reference": ["a b", ""],
    "multi-host-uri": ["postgresql:"],
    "ipvanyaddress": ["256.0.0.1"],
    "ipv4interface": ["192.168.1.1/33"],
    "json-pointer": ["a", "/~2"],
    "relative-json-pointer": ["a"],
    "base64": ["aGVsbG8", "a==="],
    "base64url": ["+/==", "a"],
    "uuid4": ["16fd2706-8baf-133b-82eb-8c7fada847da", "x"],
}


@pytest.mark.parametrize("name", FITTING)
def test_patterns_of_formats(name):
    pattern = re.compile(PATTERNS[name])
    assert all(pattern.search(text) for text in FITTING[name]), [t for t in FITTING[name] if not pattern.search(t)]
    assert not any(pattern.search(text) for text in WRONG[name]), [t for t in WRONG[name] if pattern.search(t)]


def test_formats_in_values_stay():
    schema = {
        "properties": {"format": {"const": "uri"}, "a": {"enum": [{"format": "uri"}], "default": {"format": "uri"}}},
        "items": [{"format": "idn-email"}],
        "anyOf": [{"format": "password"}, {"format": "uri", "pattern": "^h"}],
    }
    assert answer_schema(schema, "x") == {
        "properties": schema["properties"],
        "items": [{"format": "email"}],
        "anyOf": [{}, {"pattern": "^h", "allOf": [{"pattern": PATTERNS["uri"]}]}],
    }


def test_a_format_beside_a_pattern_keeps_both(live):
    https = {"type": "string", "format": "uri", "pattern": "^https://a", "maxLength": 12}
    schema = {"type": "object", "properties": {"url": https}, "required": ["url"], "additionalProperties": False}
    url = json.loads(ENDPOINTS["chat"][2](live.ask(*body_of("chat", schema)).json))["url"]
    assert url.startswith("https://a") and re.search(PATTERNS["uri"], url)


@pytest.fixture
def engine(stocked):
    with_child = Child(Load(stocked / "models" / "tiny" / "tiny.gguf", 512, threads=1))
    with_child.start()
    yield with_child
    with_child.close()


FORMATS = (
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "unknown", "uri"),
    *("uri-reference", "uri-template", "iri", "iri-reference", "idn-email", "idn-hostname", "regex", "json-pointer"),
    *("relative-json-pointer", "int32", "byte", "binary", "password"),
)
KEYWORDS: dict[str, dict] = {
    "pattern": {"type": "string", "pattern": "^a+$"},
    "multipleOf": {"type": "integer", "multipleOf": 3},
    "minProperties": {"type": "object", "minProperties": 1},
    "maxProperties": {"type": "object", "maxProperties": 1},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {}},
    "not": {"not": {"type": "string"}},
    "patternProperties": {"type": "object", "patternProperties": {"^a": {}}},
    "if": {"if": {"type": "string"}, "then": {"type": "string"}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "oneOf": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "oneOf that overlaps": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "prefixItems": {"type": "array", "prefixItems": [{"type": "string"}], "items": False},
}


def test_the_checker_is_the_engines_library(engine, live, stocked):
    """The same release takes the same formats and keywords, whatever settle makes of them before."""
    from llguidance import LLMatcher

    schemas = {name: {"type": "string", "format": name} for name in FORMATS} | KEYWORDS
    ours, theirs = {}, {}
    for name, schema in schemas.items():
        grammar = f"{HEAD}start: json\njson: %json {json.dumps(schema)}"
        ours[name] = not LLMatcher.validate_grammar_with_warnings(grammar)[0]
        before = engine.num_grammar_errors
        engine._stderr.clear()
        engine.post("/completion", {"prompt": "def f", "n_predict": 1, "grammar": grammar})
        while not any("stop processing" in line for line in engine._stderr):  # what comes before it was read too
            time.sleep(0.01)
        theirs[name] = engine.num_grammar_errors == before
    assert ours == theirs
    assert not theirs["uri"] and theirs["email"] and not theirs["not"]


def test_an_error_of_the_engine_ends_the_answer(live, monkeypatch):
    """The checker let something pass: the engine's own word on stderr still ends the answer, streamed or not."""

    async def blind(grammar, loaded, is_gbnf=False):
        return grammar

    monkeypatch.setattr(grammars, "check_grammar", blind)
    for endpoint in ("chat", "tools", "completion", "completions"):
        schema = {"type": "object", "properties": {"x": {"type": "string", "format": "regex"}}, "required": ["x"]}
        path, body = body_of(endpoint, schema, 8)
        reply = live.ask(path, body)
        assert reply.status == 502 and "Unknown format" in reply.json["error"]["message"], (endpoint, reply.body)
        reply = live.ask(path, body | {"stream": True})
        last = reply.events[-1] if reply.status == 200 else reply.json
        assert "Unknown format" in last.get("error", {}).get("message", ""), (endpoint, reply.body)


def test_an_answer_is_checked_when_it_is_whole(live, monkeypatch):
    """Neither the checker nor the engine said anything: what came does not fit, and that is what the client is told."""
    from settle.server.requests import chat, text_completion

    async def free(schema, loaded, param):
        return f'{HEAD}start: "{{}}"'

    for module in (chat, text_completion):
        monkeypatch.setattr(module, "json_grammar", free)
    for endpoint in ("chat", "completion", "completions"):
        path, body = body_of(endpoint, URL)
        reply = live.ask(path, body)
        assert reply.status == 502 and "url" in reply.json["error"]["message"], (endpoint, reply.body)
        reply = live.ask(path, body | {"stream": True})
        last = reply.events[-1] if reply.status == 200 else reply.json
        assert "did not keep to the schema" in last["error"]["message"], (endpoint, reply.body)


def loaded_model(live):
    """A child whose file is still there: tests of decisions remove theirs."""
    return next(model for model in live.gateway.backend.pool.loaded() if model.key.path.is_file())


def test_the_beginning_of_an_answer_is_checked_too(live):
    """What is cut off at a number of tokens has no end to validate, and still must be the beginning of what fits."""
    loaded = loaded_model(live)
    schema = answer_schema(URL | {"additionalProperties": False}, "x")
    grammar = f"{HEAD}start: json\njson: %json {json.dumps(schema)}"
    for text, fits in (
        ('{"url": "https://', True),
        ("", True),
        ('{"url": "sea!', False),
        ('{"name', False),
        ("The sea", False),
    ):
        check = grammars.check_answer(grammar, loaded, None, text, has_ended=False)
        if fits:
            live.run(check)
        else:
            with pytest.raises(grammars.GrammarError):
                live.run(check)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
@pytest.mark.parametrize("count", [3_000_000, 200_000_000])
def test_a_grammar_that_takes_gigabytes_ends_the_checker_and_nothing_else(live, count):
    """Counts in a grammar of one's own have no names that could be looked for."""
    large = f'{HEAD}start: json\njson: %json {{"type": "array", "items": {{"type": "integer"}}, "maxItems": {count}}}'
    chat = {"model": "tiny", "messages": USER, "max_tokens": 4}
    assert live.ask("/v1/chat/completions", chat | {"grammar": large}).status == 400
    assert live.ask("/v1/chat/completions", chat | {"grammar": 'root ::= "a"'}).status == 200


def test_a_pattern_takes_no_time_in_an_answer(live):
    """The model's answer is matched against a pattern of the request: no backtracking."""
    loaded, grammar = loaded_model(live), f"{HEAD}start: /(?s:.*)/"
    schema = {"type": "string", "pattern": "^(a+)+$"}
    live.run(grammars.check_answer(grammar, loaded, schema, json.dumps("a" * 40), has_ended=True))
    with pytest.raises(grammars.GrammarError, match="does not match"):
        live.run(grammars.check_answer(grammar, loaded, schema, json.dumps("a" * 40 + "b"), has_ended=True))


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A server whose model has a template that knows tools."""
    model, folder = trained(), tmp_path_factory.mktemp("native")
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = (Path(__file__).parents[1] / "chat_templates" / "qwen2.5.jinja").read_text()
    part = model.part.model_copy(update={"max_position_embeddings": 2048})
    path = export_gguf(part, model.weights, tokenizer, folder / "tiny.gguf", "f32", {"name": "tiny"})
    settings = PoolSettings(context=2048, slots=1, threads=1)
    with serving(folder, settings, (ModelEntry("tiny", path),)) as server:
        yield server


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_tools_of_a_template_that_knows_them(native, choice):
    """llama.cpp makes the grammar of such calls, and answered without it: what cannot be enforced is refused."""
    _, body = body_of("tools", URL, 16)
    body |= {"tool_choice": choice}
    reply = native.ask("/v1/chat/completions", body)
    assert reply.status == 200, reply.body
    assert native.gateway.backend.pool.loaded()[0].child.num_grammar_errors == 0
    unknown = {"type": "object", "properties": {"x": {"type": "string", "format": "regex"}}, "required": ["x"]}
    refused = native.ask("/v1/chat/completions", body | {"tools": [tool(unknown)]})
    assert refused.status == 400 and "Unknown format: regex" in refused.json["error"]["message"], refused.body

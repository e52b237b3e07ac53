"""Requests with something wrong in them, and schemas as people and enemies write them; always the same for a seed."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

TEXT = {"type": "text", "text": "q"}
TURN = {"role": "user", "content": "def f"}
PROPERTIES = {"a": {"type": "string"}, "b": {"$ref": "#/$defs/b"}}
TOOL = {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": PROPERTIES, "$defs": {"b": {}}},
}
FUNCTION = {"type": "function", "function": TOOL}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}'}}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}

# what each endpoint takes, with every kind of field in it; nothing here changes the store
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "x"},
        ],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "stop": ["x"],
        "logit_bias": {"5": 1},
        "seed": 1,
        "stream": False,
        "user": "u",
        "metadata": {"a": "b"},
        "tools": [FUNCTION],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "chat_template_kwargs": {"a": 1},
        "lora": [],
    },
    "/chat/completions": {"messages": [TURN], "max_tokens": 2, "response_format": FORM, "logprobs": True},
    "/v1/chat/completions/input_tokens": {
        "messages": [TURN],
        "response_format": FORM,
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "/v1/completions": {"prompt": "x", "max_tokens": 2, "echo": False, "logprobs": 1, "n": 1, "stop": "y"},
    "/v1/responses": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "z"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
        ],
        "include": [],
        "max_output_tokens": 16,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "truncation": "auto",
        "metadata": {},
    },
    "/v1/messages": {
        "max_tokens": 2,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": [TEXT]}],
            },
        ],
        "context_management": {"edits": []},
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["z"],
        "temperature": 0.5,
        "top_k": 3,
    },
    "/v1/messages/count_tokens": {"messages": [TURN], "system": "x"},
    "/api/chat": {
        "messages": [TURN],
        "stream": False,
        "options": {"num_predict": 2, "temperature": 0.1, "stop": ["a"], "num_ctx": 512},
        "format": None,
        "keep_alive": "5m",
        "tools": [FUNCTION],
        "think": False,
    },
    "/api/embed": {"input": ["x"], "options": {}},
    "/api/generate": {"prompt": "x", "suffix": "", "system": "s", "stream": False, "options": {"num_predict": 2}},
    "/api/show": {"verbose": False},
    "/completion": {
        "prompt": [1, "a", 2],
        "n_predict": 2,
        "n_probs": 2,
        "samplers": ["top_k"],
        "logit_bias": [[1, 2.0]],
        "dry_sequence_breakers": ["a"],
        "grammar": 'root ::= "a"',
        "stream": False,
    },
    "/infill": {
        "input_prefix": "a",
        "input_suffix": "b",
        "input_extra": [{"text": "t", "filename": "f"}],
        "n_predict": 1,
    },
    "/fim/completions": {"prompt": "a", "suffix": "b", "max_tokens": 1},
    "/tokenize": {"content": "abc", "with_pieces": True},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": [TURN], "tools": [FUNCTION]},
    "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "float"},
    "/v1/rerank": {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1},
    "/api/v0/chat/completions": {"messages": [TURN], "max_tokens": 1},
}
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**70, -(2**70), 1e308, -0.0, 1e-320, "", " ", "a", "\x00", "é" * 50),
    *("\ud800", "\u202e", "<|im_end|>", "../../x", "x" * 5000, [], {}, [[]], [None], {"": {}}, {"type": "text"}),
    *(["a"] * 50, {"a": {"b": {"c": [1]}}}, "5m", "auto", "required", "none", [1, 2], {"type": "function"}),
    *({"type": "function", "function": {"name": "f"}}, "tiny:latest", "nobody@tiny"),
]
FORMATS = ("uri", "email", "date-time", "uuid4", "regex", "ipvanyaddress", "base64", "password", "uri-reference")
NAMES = ["x", "stream", "type", "name", "content", "__class__", "", "grammar", "json_schema", "format"]


def requests(seed: int, number: int) -> Iterator[tuple[str, Any]]:
    """Paths and bodies; one in four holds an answer to a schema."""
    draw = random.Random(seed)
    for _ in range(number):
        if draw.random() < 0.25:
            body = {"messages": [TURN], "max_tokens": 24, "temperature": 1.0, "seed": 1}
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(draw)}}
            yield (
                "/v1/chat/completions",
                body | {"model": "tiny", "response_format": form, "stream": draw.random() < 0.3},
            )
            continue
        path = draw.choice(list(BODIES))
        yield path, mutated({"model": "tiny"} | BODIES[path], draw)


def mutated(body: Any, draw: random.Random) -> Any:
    """With up to three values that are taken out, made something odd, or given a neighbour."""
    body = copy.deepcopy(body)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(places_in(body))
        if not places:
            break
        holder, key = draw.choice(places)
        what = draw.random()
        if what < 0.75:
            holder[key] = copy.deepcopy(draw.choice(ODD))
        elif what < 0.9:
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw.choice(NAMES)] = copy.deepcopy(draw.choice(ODD))
        else:
            holder.append(copy.deepcopy(draw.choice(ODD)))
    return body


def schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema that is honest, out of bounds, endless, unknown to the engine, or no schema."""
    inner = (lambda: schema(draw, depth + 1)) if depth < 3 else (lambda: {"type": "integer"})
    count = draw.choice((0, 1, 3, 50, 32_768, 32_769, 80_000, 10**7, 2**70, -1, 1.5))
    properties = {f"p{n}": inner() for n in range(draw.choice((0, 1, 2)))}
    texts = (
        {"format": draw.choice(FORMATS), "maxLength": 60},
        {"pattern": draw.choice(("^[a-z]{2,4}$", "^(a+)+$", "(", "(?=a)b", "^.{0,100000}$", "\\p{L}+"))},
        {draw.choice(("maxLength", "minLength")): count},
    )
    numbers = {"type": "integer", "minimum": draw.choice((-5, 10**30)), "maximum": draw.choice((5, -10))}
    names = {f"q{n}": {"type": "string"} for n in range(draw.choice((200, 1000, 3000)))}
    choices: list[dict[str, Any]] = [
        {"type": "object", "properties": properties, "required": list(properties)[:1], "additionalProperties": False},
        {"type": "object", "properties": properties, "required": list(properties)},
        {"type": "array", "items": {"type": "integer"}, draw.choice(("maxItems", "minItems")): count},
        {"type": draw.choice(("integer", "number", "boolean", "null", "frob", ["string", "null"]))},
        {"enum": [draw.choice((1, "a", None, [], {"a": 1})) for _ in range(draw.choice((0, 1, 3, 2000)))]},
        {"$ref": draw.choice(("#", "#/$defs/a", "#/nowhere", "http://127.0.0.1:9/x")), "$defs": {"a": numbers}},
        {draw.choice(("items", "properties", "required", "$defs", "const")): draw.choice(ODD)},
        *({"type": "string"} | text for text in texts),
        *(numbers, {"type": "object", "properties": names} if depth == 0 else numbers),
    ]
    if draw.random() < 0.3:
        return {draw.choice(("anyOf", "oneOf", "allOf", "items", "not", "if", "contains", "propertyNames")): inner()}
    chosen = draw.choice(choices)
    several = draw.choice(("anyOf", "oneOf", "allOf"))
    return {several: [chosen, inner()]} if draw.random() < 0.2 else chosen


def wrong(path: str, body: Any, status: int, answer: bytes) -> str | None:
    """What is wrong with a response, whatever the request was."""
    if status >= 500 and status != 501:
        return f"status {status}: {answer[:300]!r}"
    if status != 200 or "response_format" not in (body if isinstance(body, dict) else ()):
        return None
    form = body["response_format"]
    if path != "/v1/chat/completions" or body.get("stream") or not isinstance(form, dict) or "json_schema" not in form:
        return None
    choice = json.loads(answer)["choices"][0]
    if choice["finish_reason"] != "stop":
        return None
    return misfit(form["json_schema"]["schema"], choice["message"]["content"])


def misfit(wanted: Any, text: str) -> str | None:
    """Why a complete answer is not what its schema wants, by another validator than the server's."""
    import jsonschema

    try:
        value = json.loads(text)
    except ValueError:
        return f"no JSON: {text[:200]!r} for {json.dumps(wanted)[:300]}"
    try:
        jsonschema.Draft202012Validator.check_schema(wanted)
        error = next(jsonschema.Draft202012Validator(wanted).iter_errors(value), None)
    except Exception:  # noqa: BLE001  a schema, or a pattern, that this validator does not understand
        return None
    return f"{error.message[:200]}: {text[:200]!r} for {json.dumps(wanted)[:300]}" if error else None


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value inside of one, as its holder and key."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(inside):
        yield value, key
        yield from places_in(inner)

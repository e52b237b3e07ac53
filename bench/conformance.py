"""Endpoint × field × runtime: is a field of a request done, refused, or ignored? settle beside llama.cpp bare.

    python bench/conformance.py MODEL.gguf > bench/results/conformance.md

Both sides are the same child process. Every probe is a request with one field whose effect can be seen in the answer:
`done` when the effect is there, `refused` when the status is 4xx, `ignored` when the answer is as if the field were not
there, `absent` when the endpoint is not there. An error of the server's own (5xx) is `failed`.
"""

import argparse
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bare_server import Side, both_sides

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Count from one to ten."}], "max_tokens": 24}
GREEDY = CHAT | {"temperature": 0}
TEXT = {"model": "m", "prompt": "One, two, three,", "max_tokens": 12, "temperature": 0}
RESPONSE = {"model": "m", "input": "Count from one to ten.", "max_output_tokens": 24, "temperature": 0, "store": False}
MESSAGE = {"model": "m", "messages": CHAT["messages"], "max_tokens": 24, "temperature": 0}
OLLAMA = {"model": "m", "messages": CHAT["messages"], "stream": False, "options": {"num_predict": 24, "temperature": 0}}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [7, 8]}},
    "required": ["n"],
    "additionalProperties": False,
}
IMPOSSIBLE = {"type": "object", "properties": {"n": {"type": "integer"}}, "not": {"required": ["x"]}}
TOOL = {"type": "function", "function": {"name": "pick", "description": "a number", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "other", "description": "nothing", "parameters": SCHEMA}}
FLAT, FLAT_OTHER = ({"type": "function"} | tool["function"] for tool in (TOOL, OTHER))
MINE = {"name": "pick", "description": "a number", "input_schema": SCHEMA}
IMAGE = [
    {"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
]
SYSTEM = "Answer in French, please, and count on fingers. " * 9  # longer than what a template puts in by itself
LONG = [{"role": "user", "content": "word " * 6000}]

Answer = dict[str, Any]


class Probe(NamedTuple):
    """told: whether the answer shows the field's effect; it gets the answer, and one without the field."""

    field: str
    body: dict[str, Any]
    told: Callable[[Answer, Answer], bool]


def said(answer: Answer) -> str:
    """Return the text of an answer in any wire format."""
    if "choices" in answer:
        choice = answer["choices"][0]
        return (choice["message"].get("content") or "") if "message" in choice else choice["text"]
    if "output" in answer:
        return "".join(p["text"] for o in answer["output"] if o["type"] == "message" for p in o["content"])
    if isinstance(answer.get("content"), list):
        return "".join(block.get("text", "") for block in answer["content"])
    return (answer.get("message") or {}).get("content") or answer.get("response") or ""


def calls(answer: Answer) -> list[str]:
    """Names of the functions that an answer calls, in any shape."""
    if "choices" in answer:
        return [call["function"]["name"] for call in answer["choices"][0]["message"].get("tool_calls") or []]
    if "output" in answer:
        return [item["name"] for item in answer["output"] if item["type"] == "function_call"]
    if isinstance(answer.get("content"), list):
        return [block["name"] for block in answer["content"] if block["type"] == "tool_use"]
    return [call["function"]["name"] for call in (answer.get("message") or {}).get("tool_calls") or []]


def differs(answer: Answer, before: Answer) -> bool:
    return said(answer) != said(before)


def stopped(answer: Answer, before: Answer) -> bool:
    return "3" in said(before) and "3" not in said(answer)


def fits(answer: Answer, _: Answer) -> bool:
    try:
        return json.loads(said(answer)).get("n") in (7, 8)
    except (ValueError, AttributeError):
        return False


def is_object(answer: Answer, _: Answer) -> bool:
    return said(answer).lstrip().startswith("{")


def never(*_: Any) -> bool:
    """Return False: this model cannot do it, so an answer with status 200 has ignored the field."""
    return False


def accepted(*_: Any) -> bool:
    """Return True: the field asks for what holds anyway."""
    return True


def first_token(answer: Answer) -> list[dict[str, Any]]:
    return (answer["choices"][0].get("logprobs") or {}).get("content") or []


def usage(answer: Answer, name: str) -> int:
    return (answer.get("usage") or {}).get(name, 0)


def prompt_grew(answer: Answer, before: Answer) -> bool:
    def read(told: Answer) -> int:
        cached = usage(told, "cache_read_input_tokens")
        number = usage(told, "prompt_tokens") or usage(told, "input_tokens") + cached
        return number or told.get("prompt_eval_count", 0)

    return read(answer) > read(before)


def json_form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


CHAT_PROBES = [
    Probe("max_tokens", GREEDY | {"max_tokens": 3}, lambda a, _: usage(a, "completion_tokens") == 3),
    Probe(
        "max_completion_tokens", GREEDY | {"max_completion_tokens": 3}, lambda a, _: usage(a, "completion_tokens") == 3
    ),
    Probe("temperature", CHAT | {"temperature": 2, "seed": 1}, differs),
    Probe("top_p", CHAT | {"temperature": 2, "top_p": 1e-6}, lambda a, b: not differs(a, b)),
    Probe("top_k", CHAT | {"temperature": 2, "top_k": 1}, lambda a, b: not differs(a, b)),
    Probe("seed", CHAT | {"temperature": 2, "seed": 3}, differs),
    Probe("stop", GREEDY | {"stop": ["3"]}, stopped),
    Probe("n", GREEDY | {"n": 2}, lambda a, _: len(a["choices"]) == 2),
    Probe("n (more than slots)", GREEDY | {"n": 100}, lambda a, _: len(a["choices"]) == 100),
    Probe("logprobs", GREEDY | {"logprobs": True}, lambda a, _: len(first_token(a)) > 0),
    Probe(
        "top_logprobs",
        GREEDY | {"logprobs": True, "top_logprobs": 2},
        lambda a, _: bool(first_token(a)) and len(first_token(a)[0]["top_logprobs"]) == 2,
    ),
    Probe("logit_bias", GREEDY | {"logit_bias": {"30": -100, "33": -100, "504": -100, "19556": -100}}, differs),
    Probe("logit_bias (no such token)", GREEDY | {"logit_bias": {"99999999": 5}}, never),
    Probe("frequency_penalty", GREEDY | {"frequency_penalty": 2, "max_tokens": 64}, differs),
    Probe("presence_penalty", GREEDY | {"presence_penalty": 2, "max_tokens": 64}, differs),
    Probe("response_format json_object", GREEDY | {"response_format": {"type": "json_object"}}, is_object),
    Probe("response_format json_schema", GREEDY | json_form(SCHEMA), fits),
    Probe("response_format (schema that cannot be kept to)", GREEDY | json_form(IMPOSSIBLE), never),
    Probe("tools", GREEDY | {"tools": [TOOL]}, prompt_grew),
    Probe(
        "tool_choice required",
        GREEDY | {"tools": [TOOL, OTHER], "tool_choice": "required", "max_tokens": 90},
        lambda a, _: bool(calls(a)),
    ),
    Probe(
        "tool_choice by name",
        GREEDY
        | {
            "tools": [TOOL, OTHER],
            "tool_choice": {"type": "function", "function": {"name": "other"}},
            "max_tokens": 90,
        },
        lambda a, _: calls(a) == ["other"],
    ),
    Probe("tool_choice none", GREEDY | {"tools": [TOOL], "tool_choice": "none"}, lambda a, _: not calls(a)),
    Probe(
        "tool message",
        GREEDY
        | {
            "messages": [
                *CHAT["messages"],
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "pick", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "seven " * 9},
            ]
        },
        lambda a, b: usage(a, "prompt_tokens") > usage(b, "prompt_tokens") + 20,
    ),
    Probe(
        "messages: developer role",
        GREEDY | {"messages": [{"role": "developer", "content": "Answer in French."}, *CHAT["messages"]]},
        differs,
    ),
    Probe("messages: image", GREEDY | {"messages": [{"role": "user", "content": IMAGE}]}, never),
    Probe("messages: unknown field", GREEDY | {"messages": [CHAT["messages"][0] | {"frobnicate": 1}]}, never),
    Probe("messages: too long", GREEDY | {"messages": LONG}, never),
    Probe("reasoning_effort high", GREEDY | {"reasoning_effort": "high"}, never),
    Probe("store", GREEDY | {"store": True}, never),
    Probe("service_tier flex", GREEDY | {"service_tier": "flex"}, never),
    Probe(
        "modalities audio", GREEDY | {"modalities": ["text", "audio"], "audio": {"voice": "x", "format": "wav"}}, never
    ),
    Probe("prediction", GREEDY | {"prediction": {"type": "content", "content": "One"}}, never),
    Probe("web_search_options", GREEDY | {"web_search_options": {}}, never),
    Probe("verbosity low", GREEDY | {"verbosity": "low"}, never),
    Probe("functions", GREEDY | {"functions": [TOOL["function"]]}, prompt_grew),
    Probe("model (unknown)", GREEDY | {"model": "no-such-model"}, never),
    Probe("temperature -1", CHAT | {"temperature": -1}, never),
    Probe("an unknown field", GREEDY | {"frobnicate": 1}, never),
    Probe("grammar", GREEDY | {"grammar": 'root ::= "seven"'}, lambda a, _: said(a) == "seven"),
    Probe("grammar (does not parse)", GREEDY | {"grammar": "root ::= ("}, never),
    Probe("min_p, repeat_penalty, mirostat …", GREEDY | {"repeat_penalty": 5.0, "max_tokens": 64}, differs),
    Probe("user", GREEDY | {"user": "me"}, accepted),
]

COMPLETION_PROBES = [
    Probe("max_tokens", TEXT | {"max_tokens": 3}, lambda a, _: usage(a, "completion_tokens") == 3),
    Probe("prompt: several", TEXT | {"prompt": ["a", "b"]}, lambda a, _: len(a["choices"]) == 2),
    Probe("prompt: usage of several", TEXT | {"prompt": ["a", "b"]}, lambda a, _: usage(a, "completion_tokens") > 12),
    Probe("echo", TEXT | {"echo": True}, lambda a, _: said(a).startswith("One, two")),
    Probe("suffix", TEXT | {"suffix": "ten."}, never),
    Probe("best_of", TEXT | {"best_of": 3}, never),
    Probe(
        "logprobs",
        TEXT | {"logprobs": 2},
        lambda a, _: len(((a["choices"][0].get("logprobs") or {}).get("token_logprobs")) or []) > 0,
    ),
    Probe("stop", TEXT | {"stop": "six"}, lambda a, b: "six" in said(b) and "six" not in said(a)),
    Probe("an unknown field", TEXT | {"frobnicate": 1}, never),
]

EMBEDDING_PROBES = [
    Probe("input: a text", {"model": "m", "input": "a"}, lambda a, _: len(a["data"]) == 1),
    Probe("input: tokens", {"model": "m", "input": [[1, 2], [3]]}, lambda a, _: len(a["data"]) == 2),
    Probe(
        "encoding_format",
        {"model": "m", "input": "a", "encoding_format": "base64"},
        lambda a, _: isinstance(a["data"][0]["embedding"], str),
    ),
    Probe(
        "dimensions", {"model": "m", "input": "a", "dimensions": 8}, lambda a, _: len(a["data"][0]["embedding"]) == 8
    ),
    Probe("an unknown field", {"model": "m", "input": "a", "frobnicate": 1}, never),
]

RESPONSE_PROBES = [
    Probe("input", RESPONSE, lambda a, _: bool(said(a))),
    Probe("instructions", RESPONSE | {"instructions": SYSTEM}, prompt_grew),
    Probe("max_output_tokens", RESPONSE | {"max_output_tokens": 16}, lambda a, _: usage(a, "output_tokens") <= 16),
    Probe("tools", RESPONSE | {"tools": [FLAT]}, prompt_grew),
    Probe(
        "tool_choice required",
        RESPONSE | {"tools": [FLAT], "tool_choice": "required", "max_output_tokens": 90},
        lambda a, _: bool(calls(a)),
    ),
    Probe(
        "tool_choice by name",
        RESPONSE
        | {"tools": [FLAT, FLAT_OTHER], "tool_choice": {"type": "function", "name": "other"}, "max_output_tokens": 90},
        lambda a, _: calls(a) == ["other"],
    ),
    Probe(
        "text.format json_schema",
        RESPONSE | {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
        fits,
    ),
    Probe("previous_response_id", RESPONSE | {"previous_response_id": "resp_1"}, never),
    Probe("store", RESPONSE | {"store": True}, never),
    Probe("background", RESPONSE | {"background": True}, never),
    Probe("conversation", RESPONSE | {"conversation": "conv_1"}, never),
    Probe(
        "truncation auto",
        RESPONSE
        | {
            "truncation": "auto",
            "input": [
                {"role": "user", "content": "word " * 3000},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "Count."},
            ],
        },
        lambda a, _: "settle" in a,
    ),
    Probe("metadata", RESPONSE | {"metadata": {"a": "b"}}, lambda a, _: a.get("metadata") == {"a": "b"}),
    Probe("tools: web_search", RESPONSE | {"tools": [{"type": "web_search"}]}, never),
    Probe("an unknown field", RESPONSE | {"frobnicate": 1}, never),
]

MESSAGE_PROBES = [
    Probe("messages", MESSAGE, lambda a, _: bool(said(a))),
    Probe("system", MESSAGE | {"system": SYSTEM}, prompt_grew),
    Probe("max_tokens", MESSAGE | {"max_tokens": 3}, lambda a, _: usage(a, "output_tokens") == 3),
    Probe(
        "stop_sequences",
        MESSAGE | {"stop_sequences": ["3"]},
        lambda a, _: a.get("stop_sequence") == "3" and a["stop_reason"] == "stop_sequence",
    ),
    Probe("tools", MESSAGE | {"tools": [MINE]}, prompt_grew),
    Probe(
        "tool_choice any",
        MESSAGE | {"tools": [MINE], "tool_choice": {"type": "any"}, "max_tokens": 90},
        lambda a, _: bool(calls(a)),
    ),
    Probe(
        "tool_choice tool",
        MESSAGE
        | {
            "tools": [MINE, MINE | {"name": "other"}],
            "tool_choice": {"type": "tool", "name": "other"},
            "max_tokens": 90,
        },
        lambda a, _: calls(a) == ["other"],
    ),
    Probe("tools: web_search", MESSAGE | {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, never),
    Probe(
        "thinking",
        MESSAGE | {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        lambda a, _: a["content"][0]["type"] == "thinking",
    ),
    Probe(
        "messages: image",
        MESSAGE
        | {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
                    ],
                }
            ]
        },
        never,
    ),
    Probe("top_k", MESSAGE | {"temperature": 1, "top_k": 1}, lambda a, b: not differs(a, b)),
    Probe("mcp_servers", MESSAGE | {"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, never),
    Probe("messages: too long", MESSAGE | {"messages": LONG}, never),
    Probe("an unknown field", MESSAGE | {"frobnicate": 1}, never),
]

OLLAMA_PROBES = [
    Probe("messages", OLLAMA, lambda a, _: bool(said(a))),
    Probe(
        "options.num_predict",
        OLLAMA | {"options": {"num_predict": 3, "temperature": 0}},
        lambda a, _: a["eval_count"] == 3,
    ),
    Probe("options.num_ctx (more than served)", OLLAMA | {"options": {"num_ctx": 1 << 20}}, never),
    Probe("options.stop", OLLAMA | {"options": {"stop": ["3"], "num_predict": 24, "temperature": 0}}, stopped),
    Probe("options: unknown", OLLAMA | {"options": {"frobnicate": 1}}, never),
    Probe("format json", OLLAMA | {"format": "json"}, is_object),
    Probe("format schema", OLLAMA | {"format": SCHEMA}, fits),
    Probe("tools", OLLAMA | {"tools": [TOOL]}, prompt_grew),
    Probe("think", OLLAMA | {"think": True}, lambda a, _: bool(a["message"].get("thinking"))),
    Probe("images", OLLAMA | {"messages": [CHAT["messages"][0] | {"images": ["aGk="]}]}, never),
    Probe("messages: too long", OLLAMA | {"messages": LONG}, never),
    Probe("an unknown field", OLLAMA | {"frobnicate": 1}, never),
]

ENDPOINTS = {
    "/v1/chat/completions": (GREEDY, CHAT_PROBES),
    "/v1/completions": (TEXT, COMPLETION_PROBES),
    "/v1/embeddings": ({"model": "m", "input": "a"}, EMBEDDING_PROBES),
    "/v1/responses": (RESPONSE, RESPONSE_PROBES),
    "/v1/messages": (MESSAGE, MESSAGE_PROBES),
    "/api/chat": (OLLAMA, OLLAMA_PROBES),
}


def ask(side: Side, path: str, body: dict[str, Any]) -> tuple[int, Answer]:
    headers = {"Authorization": f"Bearer {side.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(side.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, {}


def verdict(side: Side, path: str, probe: Probe, before: tuple[int, Answer]) -> str:
    status, answer = ask(side, path, probe.body)
    if status == 404 and before[0] == 404:
        return "absent"
    if status == 501 and before[0] == 501:
        return "absent"
    if status >= 500:
        return "failed"
    if status != 200:
        return "refused"
    try:
        return "done" if probe.told(answer, before[1]) else "**ignored**"
    except (KeyError, IndexError, TypeError):
        return "**ignored**"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    given = parser.parse_args()
    counts: dict[str, Counter[str]] = {"settle": Counter(), "llama.cpp": Counter()}
    with both_sides(given.model, 4, 1024) as (gateway, bare):
        sides = {"settle": gateway, "llama.cpp": bare}
        print("| endpoint | field | settle | llama.cpp bare |\n|---|---|---|---|")
        for path, (plain, probes) in ENDPOINTS.items():
            before = {name: ask(side, path, plain) for name, side in sides.items()}
            for probe in probes:
                found = {name: verdict(side, path, probe, before[name]) for name, side in sides.items()}
                for name, word in found.items():
                    counts[name][word] += 1
                print(f"| {path} | {probe.field} | {found['settle']} | {found['llama.cpp']} |", flush=True)
    for name, words in counts.items():
        print(f"\n{name}: {', '.join(f'{number} {word}' for word, number in words.most_common())}")


if __name__ == "__main__":
    main()

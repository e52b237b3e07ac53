"""LM Studio's shape, over a socket, with a real child behind it."""

import pytest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "def f"}], "max_tokens": 8, "temperature": 0}
STATS = {"tokens_per_second", "time_to_first_token", "generation_time", "stop_reason"}


def check_numbers(told):
    assert set(told["stats"]) == STATS and told["stats"]["stop_reason"] == "maxPredictedTokensReached"
    assert told["stats"]["generation_time"] >= 0 and told["stats"]["tokens_per_second"] > 0
    assert told["model_info"] == {"arch": "llama", "quant": "F32", "format": "gguf", "context_length": 512}
    assert told["runtime"]["supported_formats"] == ["gguf"]


def test_models(live):
    live.ask("/v1/chat/completions", CHAT)
    listed = {model["id"]: model for model in live.ask("/api/v0/models").json["data"]}
    assert {"tiny", "plain", "tiny:notes"} <= set(listed)
    tiny = listed["tiny"]
    assert tiny["type"] == "llm" and tiny["arch"] == "llama" and tiny["compatibility_type"] == "gguf"
    assert tiny["state"] == "loaded" and tiny["loaded_context_length"] == tiny["max_context_length"] == 512
    assert live.ask("/api/v0/models/tiny:notes").json["id"] == "tiny:notes"
    assert live.ask("/api/v0/models/nope").status == 404


def test_chat(live):
    told = live.ask("/api/v0/chat/completions", CHAT).json
    check_numbers(told)
    assert told["choices"] == live.ask("/v1/chat/completions", CHAT).json["choices"]
    reply = live.ask("/api/v0/chat/completions", CHAT | {"stream": True, "ttl": 700})
    assert reply.body.endswith(b"data: [DONE]\n\n")
    text = "".join(choice["delta"].get("content") or "" for event in reply.events for choice in event["choices"])
    assert text == told["choices"][0]["message"]["content"]
    check_numbers(reply.events[-1])
    assert reply.events[-1]["usage"]["completion_tokens"] == 8
    assert 700 in [loaded.idle_seconds for loaded in live.gateway.backend.pool.loaded()]
    live.ask("/api/v0/chat/completions", CHAT | {"ttl": 600})


def test_completions(live):
    body = {"model": "tiny", "prompt": "def f", "max_tokens": 6, "temperature": 0}
    told = live.ask("/api/v0/completions", body).json
    check_numbers(told)
    events = live.ask("/api/v0/completions", body | {"stream": True}).events
    assert "".join(event["choices"][0]["text"] for event in events) == told["choices"][0]["text"]
    check_numbers(events[-1])


def test_embeddings(live):
    told = live.ask("/api/v0/embeddings", {"model": "tiny", "input": "def f"}).json
    assert told["data"] == live.ask("/v1/embeddings", {"model": "tiny", "input": "def f"}).json["data"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/v0/chat/completions", CHAT | {"ttl": 0}, 400),
        ("/api/v0/chat/completions", CHAT | {"draft_model": "x"}, 400),
        ("/api/v0/chat/completions", CHAT | {"model": "nope"}, 404),
        ("/api/v0/completions", {"model": "tiny", "prompt": ["a", "b"]}, 400),
        ("/api/v0/completions", {"model": "tiny", "prompt": "a", "n": 2}, 400),
        ("/api/v0/embeddings", {"model": "tiny", "input": "x", "frob": 1}, 400),
        ("/api/v0/nope", {}, 404),
        ("/api/v1/models/load", {}, 404),
    ],
)
def test_refusals(live, path, body, status):
    refused = live.ask(path, body)
    assert refused.status == status and refused.json["error"]["message"]

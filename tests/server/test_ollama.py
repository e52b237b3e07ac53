"""Ollama's shape, over a socket, with a real child behind it; with Ollama's own Python client too."""

import json

import pytest

from tests.server.conftest import KEY, until

MESSAGES = [{"role": "user", "content": "def f"}]
OPTIONS = {"num_predict": 8, "temperature": 0}
CHAT = {"model": "tiny", "messages": MESSAGES, "options": OPTIONS}
TEXT = {"model": "tiny", "prompt": "def f", "options": OPTIONS}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
COUNTS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


@pytest.fixture
def client(live):
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=live.address, headers={"Authorization": f"Bearer {KEY}"})
    yield client
    client._client.close()


def whole(live, path, body):
    reply = live.ask(path, body | {"stream": False})
    assert reply.status == 200, reply.body
    return reply.json


def test_root_and_version(live):
    root = live.ask("/", key="")
    assert root.status == 200 and root.body == b"Ollama is running"
    assert live.ask("/", method="HEAD").status == 200
    told = live.ask("/api/version").json
    assert tuple(map(int, told["version"].split("."))) >= (0, 30, 0) and told["settle"]


@pytest.mark.parametrize("name", ["tiny", "tiny:latest"])
def test_chat_comes_in_lines(live, name):
    reply = live.ask("/api/chat", CHAT | {"model": name})
    assert reply.headers["content-type"] == "application/x-ndjson"
    *pieces, last = reply.lines
    assert all(line["model"] == name and line["created_at"].endswith("Z") for line in reply.lines)
    assert pieces and all(line["done"] is False and line["message"]["role"] == "assistant" for line in pieces)
    assert last["done"] is True and last["done_reason"] == "length" and last["eval_count"] == 8
    assert all(type(last[name]) is int for name in COUNTS)
    told = whole(live, "/api/chat", CHAT)
    assert told["message"]["content"] == "".join(line["message"]["content"] for line in pieces)
    assert told["done"] is True and told["prompt_eval_count"] == last["prompt_eval_count"]


def test_generate_takes_turns_or_goes_on(live):
    told = whole(live, "/api/generate", TEXT)
    assert told["response"] == whole(live, "/api/chat", CHAT)["message"]["content"]
    lines = live.ask("/api/generate", TEXT).lines
    assert "".join(line["response"] for line in lines) == told["response"] and lines[-1]["done_reason"] == "length"
    raw = whole(live, "/api/generate", TEXT | {"raw": True})
    theirs = {"model": "tiny", "prompt": "def f", "max_tokens": 8, "temperature": 0}
    reply = live.ask("/v1/completions", theirs)
    assert reply.status == 200, reply.body
    assert raw["response"] == reply.json["choices"][0]["text"]
    assert raw["prompt_eval_count"] < told["prompt_eval_count"]
    # a model that takes no turns goes on with the text, as with Ollama
    assert whole(live, "/api/generate", TEXT | {"model": "plain"})["response"] == raw["response"]
    longer = whole(live, "/api/generate", TEXT | {"system": "You write Python."})
    assert longer["prompt_eval_count"] > told["prompt_eval_count"] + 5


def test_empty_prompt_loads_and_keep_alive_0_unloads(live):
    loaded = live.ask("/api/generate", {"model": "tiny", "keep_alive": "30m"}).json
    assert loaded["done_reason"] == "load" and loaded["response"] == "" and loaded["done"] is True
    names = [model["name"] for model in live.ask("/api/ps").json["models"]]
    assert "tiny:latest" in names and len(set(names)) == len(names)
    assert live.ask("/api/chat", {"model": "tiny", "messages": []}).json["done_reason"] == "load"
    unloaded = live.ask("/api/chat", {"model": "tiny", "messages": [], "keep_alive": 0}).json
    assert unloaded["done_reason"] == "unload" and unloaded["message"]["content"] == ""
    assert "tiny:latest" not in _running(live)
    assert live.ask("/api/chat", CHAT | {"keep_alive": 0}).lines[-1]["done"]
    assert "tiny:latest" not in _running(live)


def _running(live) -> list[str]:
    """The models of /api/ps, once those that are on their way out are gone."""
    until(lambda: not live.gateway.backend.pool._models.leaving)
    return [model["name"] for model in live.ask("/api/ps").json["models"]]


@pytest.mark.parametrize(
    ("given", "seconds"), [(90, 90), ("5m", 300), ("1h30m", 5400), ("-1", None), (-1, None), ("250ms", 0.25)]
)
def test_keep_alive(live, given, seconds):
    assert live.ask("/api/chat", CHAT | {"keep_alive": given}).status == 200
    (loaded,) = [
        model
        for model in live.gateway.backend.pool.loaded()
        if model.key.path.stem == "tiny" and model.key.use == "generate" and not model.busy and not model.is_leaving
    ]
    assert loaded.idle_seconds == (float("inf") if seconds is None else seconds)
    row = next(m for m in live.ask("/api/ps").json["models"] if m["name"] == "tiny:latest")
    assert row["expires_at"].endswith("Z") and (row["expires_at"] > "2300") == (seconds is None)
    live.ask("/api/chat", CHAT | {"keep_alive": 600})


def test_format_is_held_to(live):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    room = {"options": OPTIONS | {"num_predict": 60}}
    for path, body in (("/api/chat", CHAT), ("/api/generate", TEXT), ("/api/generate", TEXT | {"raw": True})):
        told = whole(live, path, body | room | {"format": schema})
        assert set(json.loads(told["response"] if "response" in told else told["message"]["content"])) == {"a"}
    refused = live.ask("/api/chat", CHAT | {"format": {"type": "object", "not": {"required": ["x"]}}})
    assert refused.status == 400 and refused.json["error"].startswith("format: ")


def test_tools_are_called_with_objects(live):
    asked = CHAT | {"tools": [TOOL], "tool_choice": "required", "options": {"num_predict": 120, "temperature": 0}}
    lines = live.ask("/api/chat", asked).lines
    (calls,) = [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]]
    assert [call["function"]["name"] for call in calls] == ["weather"] and lines[-1]["done_reason"] == "stop"
    assert calls[0]["function"]["arguments"]["city"] in ("Rome", "Oslo")
    assert whole(live, "/api/chat", asked)["message"]["tool_calls"][0]["function"] == calls[0]["function"]
    assert live.ask("/api/chat", CHAT | {"tools": [TOOL]}).lines[-1]["done"]
    done = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [done]},
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
    ]
    longer = whole(live, "/api/chat", CHAT | {"messages": turns})["prompt_eval_count"]
    assert longer > whole(live, "/api/chat", CHAT)["prompt_eval_count"] + 10


def test_calls_are_told_whole():
    from settle.server.apis.ollama import LineWriter
    from settle.server.models.model_entry import ModelEntry

    def chunk(delta, reason=None):
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    def call(index, **function):
        return {"tool_calls": [{"index": index, "id": f"c{index}", "function": function}]}

    answer = LineWriter(ModelEntry("m", __file__), "m", True, 512, 0)
    chunks = [
        chunk({"reasoning_content": "hm"}),
        chunk(call(0, name="a", arguments="")),
        chunk(call(0, arguments='{"x": ')),
        chunk(call(0, arguments="1}")),
        chunk(call(1, name="b", arguments='{"cut')),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "timings": {}},
    ]
    lines = [line for one in chunks for line in answer.lines(one)]
    told = answer.merged(lines)
    assert told["message"]["tool_calls"] == [{"id": "c0", "function": {"index": 0, "name": "a", "arguments": {"x": 1}}}]
    assert told["message"]["thinking"] == "hm" and told["message"]["content"] == 'b {"cut' and told["done"] is True


def test_probabilities(live):
    told = whole(live, "/api/chat", CHAT | {"logprobs": True, "top_logprobs": 2})
    assert len(told["logprobs"]) == 8 and all(len(token["top_logprobs"]) == 2 for token in told["logprobs"])
    lines = live.ask("/api/generate", TEXT | {"raw": True, "logprobs": True}).lines
    tokens = [token for line in lines for token in line.get("logprobs", ())]
    assert len(tokens) == 8 and all(token["logprob"] <= 0 and "top_logprobs" not in token for token in tokens)


def test_options_reach_the_model(live):
    def text(**options):
        return whole(live, "/api/generate", TEXT | {"raw": True, "options": OPTIONS | options})["response"]

    assert text(temperature=2, seed=5) == text(temperature=2, seed=5) != text(temperature=2, seed=6)
    assert text(temperature=2, top_k=1) == text()
    longer = text(num_predict=30)
    assert text(num_predict=30, stop=[longer[5:8]]) == longer[: longer.index(longer[5:8])]
    assert text(repeat_penalty=1.8, repeat_last_n=-1, num_predict=30) != longer
    everything = {"num_ctx": 512, "num_gpu": -1, "num_thread": 0, "num_batch": 512, "use_mmap": True, "numa": False}
    everything |= {"main_gpu": 0, "low_vram": False, "f16_kv": True, "penalize_newline": True, "tfs_z": 1.0}
    everything |= {"num_keep": 4, "min_p": None, "mirostat": 0, "typical_p": 1.0, "use_mlock": False}
    assert text(**everything) == text()


def test_too_long_is_refused_unless_it_may_be_cut(live):
    turns = [{"role": "user", "content": "def f\n" * 100}, {"role": "assistant", "content": "x"}] * 3 + MESSAGES
    refused = live.ask("/api/chat", CHAT | {"messages": turns})
    assert refused.status == 400 and "512" in refused.json["error"]
    told = whole(live, "/api/chat", CHAT | {"messages": turns, "truncate": True})
    assert told["settle"]["trimmed"]["messages"] > 0 and told["prompt_eval_count"] < 512
    long = {"model": "tiny", "input": ["def f" * 400, "x"]}
    refused = live.ask("/api/embed", long)
    assert refused.status == 400 and "512" in refused.json["error"]
    cut = live.ask("/api/embed", long | {"truncate": True}).json
    assert len(cut["embeddings"]) == 2 and cut["settle"] == {"truncated": 1}


def test_embeddings(live):
    told = live.ask("/api/embed", {"model": "tiny", "input": ["def f", "import os"]}).json
    assert [len(vector) for vector in told["embeddings"]] == [64, 64] and told["prompt_eval_count"] > 2
    theirs = live.ask("/v1/embeddings", {"model": "tiny", "input": "def f"}).json["data"][0]["embedding"]
    assert told["embeddings"][0] == pytest.approx(theirs, abs=1e-4)
    old = live.ask("/api/embeddings", {"model": "tiny", "prompt": "def f"}).json
    assert old["embedding"] == pytest.approx(theirs, abs=1e-4)
    assert live.ask("/api/embed", {"model": "tiny", "input": []}).json["embeddings"] == []
    assert live.ask("/api/embed", {"model": "tiny:notes", "input": "x"}).status == 400


def test_two_names_are_not_one(live):
    for path in ("/api/show", "/api/pull"):
        refused = live.ask(path, {"model": "tiny", "name": "plain"})
        assert refused.status == 400 and "another model" in refused.json["error"]
    assert live.ask("/api/show", {"model": "tiny", "name": "tiny"}).status == 200


def test_tags_and_show(live):
    rows = {model["name"]: model for model in live.ask("/api/tags").json["models"]}
    assert {"tiny:latest", "plain:latest", "tiny:notes"} <= set(rows)
    row = rows["tiny:latest"]
    assert row["digest"] == "ab" * 32 and row["size"] > 0 and row["details"]["family"] == "llama"
    assert rows["tiny:notes"]["digest"] != row["digest"] and len(rows["tiny:notes"]["digest"]) == 64
    told = live.ask("/api/show", {"name": "tiny:latest"}).json
    info = told["model_info"]
    assert info["general.architecture"] == "llama" and info["llama.context_length"] == 512
    assert info["llama.embedding_length"] == 64 and info["general.parameter_count"] > 0
    assert info["tokenizer.ggml.tokens"] is None and "tools" in told["capabilities"]
    assert told["parameters"] == "num_ctx 512" and "message" in told["template"]
    full = live.ask("/api/show", {"model": "tiny", "verbose": True}).json
    assert len(full["model_info"]["tokenizer.ggml.tokens"]) == 512 and full["tensors"]
    assert str(live.gateway.backend.catalogue.find("tiny").path.parent) not in json.dumps(full)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("frobnicate", 1, "frobnicate"),
        ("shift", True, "shift"),
        ("format", "xml", "format"),
        ("think", "extremely", "think"),
        ("think", True, "think"),
        ("top_logprobs", 2, "top_logprobs"),
        ("keep_alive", "soon", "keep_alive"),
        ("keep_alive", "1" * 60, "keep_alive"),
        ("messages", [{"role": "user", "content": "x", "images": ["aGk="]}], "images"),
        ("messages", [{"role": "user", "content": "x", "frob": 1}], "frob"),
        ("messages", [{"role": "user", "content": "x", "tool_name": "y"}], "tool"),
        ("messages", [{"role": "wizard", "content": "x"}], "role"),
        ("tools", [{"type": "retrieval"}], "tools"),
        ("options", {"num_ctx": 513}, "num_ctx"),
        ("options", {"num_ctx": 0}, "num_ctx"),
        ("options", {"num_thread": 7}, "num_thread"),
        ("options", {"num_gpu": 3}, "num_gpu"),
        ("options", {"use_mmap": False}, "use_mmap"),
        ("options", {"temperature": -1}, "temperature"),
        ("options", {"top_p": 2}, "top_p"),
        ("options", {"num_predict": 0}, "num_predict"),
        ("options", {"num_predict": -3}, "num_predict"),
        ("options", {"tfs_z": 0.5}, "tfs_z"),
        ("options", {"stop": [""]}, "stop"),
        ("options", {"frob": 1}, "frob"),
        ("model", "nope", "nope"),
    ],
)
def test_nothing_of_a_chat_is_ignored(live, field, value, named):
    refused = live.ask("/api/chat", CHAT | {field: value})
    assert refused.status in (400, 404) and set(refused.json) == {"error"} and named in refused.json["error"]


def test_without_a_key_nothing_but_the_root(live):
    refused = live.ask("/api/tags", key="")
    assert refused.status == 401 and isinstance(refused.json["error"], str)


def test_an_answer_whose_client_leaves_is_stopped(live):
    live.leave("/api/chat", CHAT | {"options": {"num_predict": 300, "ignore_eos": True}})


def test_official_client(client):
    assert "tiny:latest" in [model.model for model in client.list().models]
    assert client.show("tiny").modelinfo["llama.context_length"] == 512
    answer = client.chat("tiny", MESSAGES, options=OPTIONS)
    assert answer.message.content and answer.eval_count == 8 and answer.done
    pieces = [piece.message.content for piece in client.chat("tiny", MESSAGES, options=OPTIONS, stream=True)]
    assert "".join(pieces) == answer.message.content
    assert client.chat("tiny", MESSAGES, options=OPTIONS, tools=[TOOL], keep_alive="5m").done
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    told = client.chat("tiny", MESSAGES, options={"num_predict": 60}, format=schema).message.content
    assert json.loads(told)["n"] in (1, 2)
    assert client.generate("tiny", "def f", options=OPTIONS).response
    assert len(client.embed("tiny", ["def f", "x"]).embeddings) == 2 and client.embeddings("tiny", "x").embedding
    assert "tiny:latest" in [model.model for model in client.ps().models]
    assert client.pull("tiny").status == "success"

"""A server whose model has a draft: the same answers, and nothing said that llama.cpp does not know then."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from settle.formats.gguf import export_gguf
from settle.infer.child_process import Draft
from settle.server.models.model_entry import ModelEntry, facts
from settle.server.models.model_loader import estimate_bytes
from tests.server.conftest import serving
from tests.trained import trained

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "class A:\n    def f(self"}], "max_tokens": 24}
TEXT = {"model": "tiny", "prompt": "class A:\n    def f(self", "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def drafted(stocked):
    """A server of `tiny`, for which a rounded copy of itself proposes."""
    model, base = trained(), stocked / "models" / "tiny" / "tiny.gguf"
    path = stocked / "guess.gguf"
    export_gguf(model.part, model.weights, model.tokenizer, path, "q8_0", {"name": "guess"})
    with serving(stocked, entries=(ModelEntry("tiny", base),), draft=Draft(path, 4, 0.0)) as server:
        yield server


def text(reply) -> str:
    assert reply.status == 200, reply.body
    choice = reply.json["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}, {"stop": [")"], "temperature": 0}]
)
def test_it_says_the_same(drafted, live, how):
    for path, body in (("/v1/chat/completions", CHAT | how), ("/v1/completions", TEXT | how)):
        assert text(drafted.ask(path, body)) == text(live.ask(path, body))


def test_the_draft_is_asked_and_often_right(drafted):
    reply = drafted.ask("/completion", {"model": "tiny", "prompt": TEXT["prompt"], "n_predict": 24, "temperature": 0})
    assert reply.status == 200, reply.body
    said = reply.json
    assert 0 < said["timings"]["draft_n_accepted"] <= said["timings"]["draft_n"]


def test_many_at_once_and_an_adapter_too(drafted, live):
    bodies = [TEXT | {"prompt": f"def f{i}(", "model": model} for i in range(4) for model in ("tiny", "tiny:notes")]
    with ThreadPoolExecutor(8) as pool:
        ours = list(pool.map(lambda body: text(drafted.ask("/v1/completions", body)), bodies))
    assert ours == [text(live.ask("/v1/completions", body)) for body in bodies]
    assert ours[0] != ours[1]


def test_a_schema_is_kept_to(drafted):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    assert text(drafted.ask("/v1/chat/completions", CHAT | asked | {"max_tokens": 40})).replace(" ", "")[:5] == '{"a":'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", TEXT | {"logprobs": 1}),
        ("/completion", {"model": "tiny", "prompt": "def", "n_probs": 2, "n_predict": 4}),
    ],
)
def test_probabilities_are_refused_and_not_made_up(drafted, live, path, body):
    refused = drafted.ask(path, body)
    assert refused.status == 400 and b"draft" in refused.body
    assert live.ask(path, body).status == 200


def test_its_memory_counts(drafted):
    text(drafted.ask("/v1/completions", TEXT))
    (loaded,) = {up.key.path: up for up in drafted.gateway.backend.pool.loaded()}.values()
    draft = loaded.child.load.draft
    assert loaded.needs == estimate_bytes(loaded.facts, loaded.context, loaded.slots, facts(draft.path))
    assert loaded.needs > estimate_bytes(loaded.facts, loaded.context, loaded.slots)

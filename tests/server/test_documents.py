"""A collection as a model, over a socket, in every shape, with a real child behind it."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from settle.retrieve.answer import write_answer
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_loader import PoolSettings
from tests.retrieve.asked import TEXTS, index
from tests.retrieve.conftest import joined  # noqa: F401  a fixture
from tests.server.conftest import add_adapter, fill_store, serving, until

ROTATE = "How do I rotate the key?"
UNKNOWN = "Who won the football championship in Norway?"
ASKED = {"model": "docs@tiny", "messages": [{"role": "user", "content": ROTATE}]}
SAID = "Run `vault rotate` and restart the gateway. [1] It works for 99 minutes. [1]"


@pytest.fixture(scope="module")
def stocked(tmp_path_factory, joined):  # noqa: F811
    """A home of its own: models, an adapter, and two collections."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("SETTLE_HOME", str(folder))
        add_adapter(folder, "notes", fill_store(folder))
        index("docs", folder / "docs", TEXTS)
        yield folder


@pytest.fixture(scope="module")
def live(stocked):
    with serving(stocked) as server:
        yield server


@pytest.fixture
def saying(monkeypatch):
    """Makes the model say a text, by the grammar that it is held to."""

    def say(text: str = SAID) -> str:
        monkeypatch.setattr(write_answer, "_GRAMMAR", f'root ::= "{text}"\n')
        return text

    return say


def test_collections_are_in_every_list(live, stocked):
    ids = {m["id"] for m in live.ask("/v1/models").json["data"]}
    assert {"docs@tiny", "docs@tiny:notes", "tiny", "plain"} <= ids and "docs@plain" not in ids
    tags = {m["name"]: m for m in live.ask("/api/tags").json["models"]}
    assert tags["docs@tiny:latest"]["capabilities"] == ["completion"]
    assert "docs@tiny" in {m["id"] for m in live.ask("/api/v0/models").json["data"]}
    shown = live.ask("/api/show", {"model": "docs@tiny"}).json
    assert shown["capabilities"] == ["completion"] and "FROM tiny" in shown["modelfile"]
    assert live.ask("/v1/models/docs@tiny").status == 200


def test_an_answer_with_its_sources(live, saying):
    saying()
    told = live.ask("/v1/chat/completions", ASKED).json
    message, about = told["choices"][0]["message"], told["settle"]
    assert message["content"].startswith("Run `vault rotate` and restart the gateway. [")
    assert "99 minutes. [not in the documents]\n\nSources:\n[" in message["content"]
    assert told["model"] == "docs@tiny" and told["choices"][0]["finish_reason"] == "stop"
    assert told["usage"]["prompt_tokens"] > 50 and told["usage"]["completion_tokens"] > 10
    assert [s["supported"] for s in about["sentences"]] == [True, False] and about["kind"] == "written"
    (note,) = message["annotations"]
    cited = note["url_citation"]
    text = message["content"][cited["start_index"] : cited["end_index"]]
    assert text == "Run `vault rotate` and restart the gateway." and cited["url"].startswith("file:///")
    assert cited["url"].endswith("/docs/keys.md#L5") and cited["title"].startswith("Keys")


def test_a_stream_is_the_whole_answer_in_pieces(live, saying):
    saying()
    whole = live.ask("/v1/chat/completions", ASKED).json["choices"][0]["message"]
    reply = live.ask("/v1/chat/completions", ASKED | {"stream": True})
    assert reply.body.endswith(b"data: [DONE]\n\n")
    deltas = [choice["delta"] for event in reply.events for choice in event["choices"]]
    assert deltas[0]["role"] == "assistant" and len(reply.events) > 4
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    assert [delta["annotations"] for delta in deltas if "annotations" in delta] == [whole["annotations"]]
    assert reply.events[-1]["settle"]["question"] == ROTATE


def test_a_refusal_is_an_ordinary_answer_and_loads_no_model(stocked):
    with serving(stocked) as fresh:
        asked = ASKED | {"messages": [{"role": "user", "content": UNKNOWN}]}
        told = fresh.ask("/v1/chat/completions", asked).json
        content = told["choices"][0]["message"]["content"]
        assert content.startswith("The documents do not answer this") and "\n\nNearest:\n[1] " in content
        assert told["settle"]["refused"] and not fresh.gateway.backend.pool.loaded()


def test_anthropic(live, saying):
    saying()
    body = ASKED | {"max_tokens": 200}
    told = live.ask("/v1/messages", body).json
    (block,) = told["content"]
    assert block["type"] == "text" and "Sources:" in block["text"] and told["stop_reason"] == "end_turn"
    (citation,) = block["citations"]
    assert citation["type"] == "search_result_location" and "vault rotate" in citation["cited_text"]
    assert citation["source"].endswith("keys.md#L5")
    events = live.ask("/v1/messages", body | {"stream": True}).events
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == block["text"]
    assert [delta["citation"] for delta in deltas if delta["type"] == "citations_delta"] == [citation]
    counted = live.ask("/v1/messages/count_tokens", ASKED)
    assert counted.status == 400 and "docs@tiny" in counted.json["error"]["message"]


def test_responses(live, saying):
    saying()
    body = {"model": "docs@tiny", "input": ROTATE}
    told = live.ask("/v1/responses", body).json
    (part,) = told["output"][0]["content"]
    assert "Sources:" in part["text"] and told["settle"]["kind"] == "written"
    (note,) = part["annotations"]
    assert note["type"] == "url_citation" and part["text"][note["start_index"] : note["end_index"]].endswith("gateway.")
    events = live.ask("/v1/responses", body | {"stream": True}).events
    added = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert [event["annotation"]["url"] for event in added] == [note["url"]]


def test_ollama(live, saying):
    saying()
    told = live.ask("/api/chat", ASKED | {"stream": False}).json
    assert "Sources:" in told["message"]["content"] and told["settle"]["sentences"][0]["supported"]
    lines = live.ask("/api/chat", ASKED).lines
    assert "".join(line["message"]["content"] for line in lines) == told["message"]["content"]
    assert lines[-1]["done"] and lines[-1]["settle"]["kind"] == "written"
    generated = live.ask("/api/generate", {"model": "docs@tiny:latest", "prompt": ROTATE, "stream": False}).json
    assert generated["response"] == told["message"]["content"]


def test_an_adapter_answers_too(live, saying):
    saying()
    told = live.ask("/v1/chat/completions", ASKED | {"model": "docs@tiny:notes"}).json
    assert told["model"] == "docs@tiny:notes" and told["settle"]["supported"]


def test_a_question_that_goes_on_from_the_one_before(live, saying):
    saying("The old key works for 15 minutes. [1]")
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ROTATE},
        {"role": "assistant", "content": "Run `vault rotate`. [1]"},
        {"role": "user", "content": "and how long does the old key work?"},
    ]
    told = live.ask("/v1/chat/completions", ASKED | {"messages": turns}).json
    assert told["settle"]["sentences"][0]["place"].endswith("keys.md:5")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [*ASKED["messages"], {"role": "assistant", "content": "Run"}]}, "messages"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_reason(live, more, param):
    refused = live.ask("/v1/chat/completions", ASKED | more)
    assert refused.status == 400 and refused.json["error"]["param"] == param
    assert "docs@tiny answers from documents" in refused.json["error"]["message"]


def test_it_is_no_model_for_anything_else(live):
    for path, body in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/completion", {"prompt": "a"}),
        ("/apply-template", {"messages": ASKED["messages"]}),
        ("/v1/chat/completions/input_tokens", {"messages": ASKED["messages"]}),
    ):
        refused = live.ask(path, body | {"model": "docs@tiny"})
        assert refused.status == 400 and "from documents" in json.dumps(refused.json), (path, refused.json)
    refused = live.ask("/api/delete", {"model": "docs@tiny"}, "DELETE")
    assert refused.status == 400 and "settle index docs --delete" in refused.json["error"]
    assert live.ask("/api/copy", {"source": "docs@tiny", "destination": "x"}).status == 400
    assert live.ask("/v1/chat/completions", ASKED | {"model": "other@tiny"}).status == 404


def test_sampling_is_obeyed(live):
    def text(**sampling):
        return live.ask("/v1/chat/completions", ASKED | sampling).json["settle"]["answer"]

    assert text() == text() and text(temperature=2.0, seed=1) == text(temperature=2.0, seed=1)


def test_what_is_indexed_meanwhile_is_found(live, stocked):
    asked = ASKED | {"messages": [{"role": "user", "content": "Where is the violin of the captain?"}]}
    assert live.ask("/v1/chat/completions", asked).json["settle"]["refused"]
    texts = TEXTS | {"violin.md": "# Violin\n\nThe violin of the captain is in the cabin below the bridge.\n"}
    index("docs", stocked / "docs", texts)
    told = live.ask("/v1/chat/completions", asked).json["settle"]
    assert not told["refused"] and any(p.endswith("violin.md:3") for s in told["sources"] for p in s["places"])
    assert len(live.gateway.backend.documents._collections._open) == 1
    index("second", stocked / "second", {"a.md": "# A\n\nOne."})
    assert live.ask("/v1/models/second@tiny").status == 200
    shutil.rmtree(stocked / "collections" / "second")
    assert live.ask("/v1/chat/completions", ASKED | {"model": "second@tiny"}).status == 404


def test_many_at_the_same_time(live, saying):
    saying()
    questions = [ROTATE, UNKNOWN, "When does the kitchen open?"] * 4

    def ask(question):
        return live.ask("/v1/chat/completions", ASKED | {"messages": [{"role": "user", "content": question}]}).json

    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(ask, questions))
    assert [t["settle"]["refused"] for t in told] == [False, True, False] * 4
    assert all(opened.users == 0 for opened in live.gateway.backend.documents._collections._open.values())


def test_a_client_that_leaves_stops_the_model(live):
    connection = live.open("/v1/chat/completions", ASKED | {"stream": True, "temperature": 2.0, "max_tokens": 500})
    time.sleep(0.3)
    connection.close()
    assert until(lambda: not any(loaded.busy for loaded in live.gateway.backend.pool.loaded()))
    assert not any(opened.users for opened in live.gateway.backend.documents._collections._open.values())


def test_only_what_was_named_is_served(stocked):
    from settle.server.serve import ModelChoice, find_entries

    (entry,) = find_entries(ModelChoice(["docs@tiny"]))
    assert (entry.id, entry.collection) == ("docs@tiny", "docs")
    catalogue = ModelCatalogue([entry], is_fixed=True)
    assert [e.id for e in catalogue.offered()] == ["docs@tiny"] and not catalogue.entries()
    (model,) = find_entries(ModelChoice(["tiny"]))
    assert "docs@tiny" not in {e.id for e in ModelCatalogue([model], is_fixed=True).offered()}
    with serving(stocked, PoolSettings(context=512, slots=1, threads=1), (entry,)) as fresh:
        assert fresh.ask("/v1/chat/completions", ASKED).status == 200

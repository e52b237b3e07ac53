"""What Ollama's shape changes in the store, and what it leaves alone; and everything that it refuses by a path."""

import hashlib
import json

import pytest

from settle.library.store import StoredModel, add_model, find_model
from settle.wire.errors import ApiError
from tests.server.conftest import serving
from tests.server.test_ollama import CHAT, TEXT, client, whole

__all__ = ["client"]  # a fixture


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/generate", TEXT | {"template": "{{ .Prompt }}"}, 400),
        ("/api/generate", TEXT | {"context": [1, 2]}, 400),
        ("/api/generate", TEXT | {"images": ["aGk="]}, 400),
        ("/api/generate", TEXT | {"suffix": "return"}, 400),
        ("/api/generate", TEXT | {"raw": True, "system": "x"}, 400),
        ("/api/generate", TEXT | {"model": "plain", "system": "x"}, 400),
        ("/api/generate", TEXT | {"width": 100}, 400),
        ("/api/embed", {"model": "tiny", "input": "x", "dimensions": 3}, 400),
        ("/api/embed", {"model": "tiny", "input": "x", "options": {"temperature": 1}}, 400),
        ("/api/embed", {"model": "tiny", "input": ["x", ""]}, 400),
        ("/api/show", {"model": "nope"}, 404),
        ("/api/show", {"model": "tiny", "system": "x"}, 400),
        ("/api/push", {"model": "tiny"}, 501),
        ("/api/blobs/sha256:ab", {}, 403),
        ("/api/nope", {}, 404),
        ("/api/pull", {"model": "smollm2"}, 403),
        ("/api/pull", {"model": "/etc/passwd"}, 400),
        ("/api/pull", {"model": "../../x"}, 400),
        ("/api/pull", {"model": "wheel:--index-url=x"}, 400),
        ("/api/pull", {"model": "tiny", "insecure": True}, 400),
        ("/api/copy", {"source": "nope", "destination": "x"}, 404),
        ("/api/copy", {"source": "tiny", "destination": "../x"}, 400),
        ("/api/copy", {"source": "tiny", "destination": "plain:latest"}, 409),
        ("/api/copy", {"source": "", "destination": "x"}, 400),
        ("/api/create", {"model": "made"}, 400),
        ("/api/create", {"model": "made", "from": "tiny", "system": "x"}, 400),
        ("/api/create", {"model": "made", "from": "tiny", "quantize": "q4_0"}, 400),
        ("/api/create", {"model": "made", "files": {"a.gguf": "sha256:ab"}}, 400),
        ("/api/create", {"model": "made", "from": "tiny", "adapters": {"nope": ""}}, 404),
        ("/api/create", {"model": "made", "from": "tiny", "adapters": {"notes": "sha256:ab"}}, 400),
        ("/api/create", {"model": "made", "from": "plain", "adapters": {"tiny:notes": ""}}, 400),
    ],
)
def test_refusals(live, path, body, status):
    refused = live.ask(path, body)
    assert refused.status == status and set(refused.json) == {"error"} and refused.json["error"]


def test_copies_outlive_what_they_are_of(live, stocked):
    source = live.gateway.backend.catalogue.find("plain").path
    assert live.ask("/api/copy", {"source": "plain", "destination": "copied:latest"}).status == 200
    assert live.ask("/api/copy", {"source": "copied", "destination": "twice"}).status == 200
    assert (stocked / "models" / "twice" / "twice.gguf").stat().st_ino == source.stat().st_ino
    assert live.ask("/api/delete", {"model": "copied"}, "DELETE").status == 200
    assert not (stocked / "models" / "copied").exists() and find_model("twice").sha256 == "ab" * 32
    assert whole(live, "/api/generate", TEXT | {"model": "twice"}) ["response"]  # fmt: skip
    assert live.ask("/api/delete", {"name": "twice:latest"}, "DELETE").status == 200
    assert live.ask("/api/delete", {"name": "twice:latest"}, "DELETE").status == 404 and source.exists()


def test_of_a_linked_model_only_the_link_goes(live, tmp_path):
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(live.gateway.backend.catalogue.find("plain").path.read_bytes())
    add_model(StoredModel("linked", "gguf", outside, "cd" * 32, "path:outside"))
    assert live.ask("/api/copy", {"source": "linked", "destination": "linked2"}).status == 200
    assert find_model("linked2").path == outside
    for name in ("linked", "linked2"):
        assert live.ask("/api/delete", {"model": name}, "DELETE").status == 200 and find_model(name) is None
    assert outside.exists()


def test_runs_and_what_adapters_stand_on_are_not_deleted(live):
    for name, status in (("tiny:notes", 403), ("tiny", 409), ("", 400)):
        refused = live.ask("/api/delete", {"model": name}, "DELETE")
        assert refused.status == status and refused.json["error"]
    assert find_model("tiny") is not None


def test_an_adapter_under_a_name_of_its_own(live):
    body = {"model": "writer", "from": "tiny", "adapters": {"notes": ""}}
    assert live.ask("/api/create", body).lines[-1] == {"status": "success"}
    try:
        theirs = whole(live, "/api/chat", CHAT | {"model": "tiny:notes"})["message"]
        assert whole(live, "/api/chat", CHAT | {"model": "writer:latest"})["message"] == theirs
        assert theirs != whole(live, "/api/chat", CHAT)["message"]
        assert "writer:latest" in [model["name"] for model in live.ask("/api/tags").json["models"]]
        assert live.ask("/api/create", body | {"from": "tiny:notes", "adapters": None}).status == 409
    finally:
        assert live.ask("/api/delete", {"model": "writer"}, "DELETE").status == 200
    assert live.ask("/api/show", {"model": "writer"}).status == 404
    assert live.gateway.backend.catalogue.find("tiny:notes").adapter.exists()


def test_a_fixed_server_changes_nothing(stocked, live):
    entry = live.gateway.backend.catalogue.find("plain")
    with serving(stocked, entries=(entry,)) as fixed:
        assert fixed.ask("/api/copy", {"source": "plain", "destination": "x"}).status == 403
        assert fixed.ask("/api/delete", {"model": "plain"}, "DELETE").status == 403
        assert fixed.ask("/api/pull", {"model": "smollm2"}).status == 403
        assert fixed.ask("/api/pull", {"model": "plain"}).lines[-1] == {"status": "success"}


def test_pulling_from_where_it_is_allowed(live, tmp_path, monkeypatch):
    """Another program's store on this machine is a source that needs no network."""
    blob = tmp_path / "blobs" / f"sha256-{'0' * 64}"
    blob.parent.mkdir()
    blob.write_bytes(live.gateway.backend.catalogue.find("plain").path.read_bytes())
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "theirs" / "1b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64}
    manifest.write_text(json.dumps({"layers": [layer]}))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setattr(live.gateway.store, "pull_from", frozenset({"ollama"}))
    assert live.ask("/api/pull", {"model": "hf.co/owner/name"}).status == 403
    assert live.ask("/api/pull", {"model": "theirs:7b"}).status == 404
    broken = live.ask("/api/pull", {"model": "theirs:1b"})  # its hash is not what its name says
    assert broken.status == 200 and "sha256" in broken.lines[-1]["error"] and find_model("theirs-1b") is None
    good = hashed(blob)
    layer["digest"] = f"sha256:{good}"
    blob.rename(blob.with_name(f"sha256-{good}"))
    manifest.write_text(json.dumps({"layers": [layer]}))
    lines = live.ask("/api/pull", {"model": "ollama:theirs:1b"}).lines
    assert lines[0] == {"status": "pulling manifest"} and lines[-1] == {"status": "success"}
    assert live.ask("/api/pull", {"model": "theirs:1b", "stream": False}).json == {"status": "success"}
    assert live.ask("/api/delete", {"model": "theirs-1b"}, "DELETE").status == 200
    assert blob.with_name(f"sha256-{good}").exists()


def hashed(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_official_client_changes_the_store(client):  # noqa: F811
    ollama = pytest.importorskip("ollama")
    assert client.copy("plain", "cloned").status == "success"
    assert client.create("again", from_="cloned").status == "success"
    for name in ("cloned", "again"):
        assert client.delete(name).status == "success"
    with pytest.raises(ollama.ResponseError) as refused:
        client.show("cloned")
    assert refused.value.status_code == 404 and "cloned" in refused.value.error


def test_one_change_of_a_model_at_a_time(live):
    with live.gateway.store._change("x"):
        with pytest.raises(ApiError) as refused, live.gateway.store._change("x"):
            pass
        assert refused.value.status == 409
    with live.gateway.store._change("x"):
        pass

"""Embeddings over HTTP: our own server, really running, and one on this machine that fails as servers do."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from settle.base.errors import DataError, ResourceError, UsageError
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.retrieve.index.embedders import openai
from settle.retrieve.index.embedders.gguf import Gguf
from settle.retrieve.index.embedders.openai import Openai
from tests.bert import TEXTS, tiny_bert

AWAY, SLOW = 0, 1  # instead of a status: hangs up, takes its time


class Server(ThreadingHTTPServer):
    """Gives each text the vector (length, 1), after the replies that are planned."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.planned, self.asked, self.keys = [], [], []
        self.redirect, self.others = "", []  # where a 302 leads; requests that are no POST

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.others.append(self.path)
        self.send_error(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        status, said = self.server.planned.pop(0) if self.server.planned else (200, None)
        if status == AWAY:
            self.connection.close()
            return
        time.sleep(0.3 * (status == SLOW))
        rows = [{"index": i, "embedding": [len(text), 1]} for i, text in enumerate(body["input"])]
        raw = said if isinstance(said, bytes) else json.dumps(said or {"data": rows[::-1]}).encode()
        self.send_response(200 if status == SLOW else status)
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("Retry-After", "0")
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def serving():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(openai, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("A_KEY", "sk-1")
    with serving() as server:
        yield server


def test_texts_go_in_batches_with_prefixes_and_come_back_in_order(server):
    with Openai(url=server.url, model="m", batch=2, document_prefix="p ", key_variable="A_KEY").open() as opened:
        assert opened.width == 2 and opened.most == 480 - 1
        vectors = opened.documents(["a", "bb", "ccc"])
    assert [len(body["input"]) for body in server.asked] == [1, 2, 1] and set(server.keys) == {"Bearer sk-1"}
    expected = np.array([[3, 1], [4, 1], [5, 1]]) / np.hypot([3, 4, 5], 1)[:, None]
    assert vectors.dtype == np.float32 and np.allclose(vectors, expected)


def test_a_server_that_is_busy_or_away_is_asked_again(server):
    opened = Openai(url=server.url, model="m").open()
    server.planned = [(503, b"loading"), (429, {"error": {"message": "slow down"}}), (AWAY, None)]
    assert np.allclose(opened.query("abc"), np.array([3, 1]) / np.hypot(3, 1)) and len(server.asked) == 5
    server.planned = [(500, {"error": "broken"})] * openai.TRIES
    with pytest.raises(ResourceError, match="in 5 tries: 500 broken"):
        opened.query("abc")
    hasty = Openai(url=server.url, model="m", seconds=0.1).open()
    server.planned = [(SLOW, None)] * openai.TRIES
    with pytest.raises(ResourceError, match="timed out"):
        hasty.query("abc")


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        ((401, {"error": {"message": "no such key"}}), UsageError, "wants a key: 401 no such key"),
        ((404, {"detail": "nothing here"}), UsageError, "has no model 'm'"),
        ((400, {"error": "input is too long"}), DataError, "refused the texts: 400 input is too long"),
        ((200, b"<html>"), DataError, "no JSON"),
        ((200, {"data": [{"index": 0}]}), DataError, "holds no embeddings"),
        ((200, {"data": []}), DataError, "0 vectors for 1 texts"),
        ((200, {"data": [{"index": 0, "embedding": [0, 0]}]}), DataError, "point nowhere"),
        ((503, b""), UsageError, "gives no vectors: 503"),
    ],
)
def test_what_a_server_says_is_told_with_what_to_do(server, reply, error, says):
    server.planned = [reply]
    with pytest.raises(error, match=says) as raised:
        Openai(url=server.url, model="m").open()
    assert raised.value.fix


def test_what_is_asked_wrongly(server, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="no server and model"):
        Openai(url="localhost:8080", model="m").open()
    monkeypatch.delenv("A_KEY")
    with pytest.raises(UsageError, match="the environment has no A_KEY"):
        Openai(url=server.url, model="m", key_variable="A_KEY").open()
    with serving() as gone:
        url = gone.url
    with pytest.raises(UsageError, match="refused"):
        Openai(url=url, model="m").open()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="is no tokenizer"):
        Openai(url=server.url, model="m", tokenizer=str(tmp_path / "tokenizer.json")).open()


def test_a_server_whose_model_was_exchanged_is_noticed(server):
    opened = Openai(url=server.url, model="m").open()
    server.planned = [(200, {"data": [{"index": 0, "embedding": [1, 2, 3]}]})]
    with pytest.raises(DataError, match="vectors of 3 numbers now, it was 2"):
        opened.query("x")


def test_tokens_are_guessed_on_the_safe_side_or_counted(server, tmp_path):
    folder = tiny_bert(tmp_path / "bert")
    guessing = Openai(url=server.url, model="m").open()
    counting = Openai(url=server.url, model="m", tokenizer=str(folder / "tokenizer.json")).open()
    assert counting.count(["rotate the key", ""]) == [3, 0] and guessing.count(["rotate the key", ""]) == [4, 0]
    assert guessing.count(["don't\n\n  stop 42 東京"]) == [1 + 1 + 1 + 1 + 2 + 2 + 4]


def test_url_model_and_prefixes_are_the_identity(server):
    base = {"url": server.url, "model": "m"}
    others = [{"model": "n"}, {"query_prefix": "q"}, {"document_prefix": "d"}, {"url": server.url + "/"}, {"batch": 2}]
    first, *found = [Openai(**base | more).open().identity for more in ({}, *others)]
    assert [identity == first for identity in found] == [False, False, False, True, True]


def test_our_own_server(tmp_path, home):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    from settle.server.models.model_entry import ModelEntry
    from tests.server.conftest import KEY
    from tests.server.conftest import serving as settle_serving

    path = encoder_to_gguf(tiny_bert(tmp_path / "bert"), tmp_path / "tiny-bert.gguf", "tiny-bert", "")
    with pytest.MonkeyPatch.context() as patch, settle_serving(home, entries=(ModelEntry("tiny-bert", path),)) as live:
        patch.setenv("SETTLE_KEY", KEY)
        asked = {"url": f"{live.address}/v1", "key_variable": "SETTLE_KEY"}
        with Openai(model="tiny-bert", **asked).open() as remote, Gguf(model=str(path)).open() as here:
            assert remote.width == 64
            assert np.abs(remote.documents(TEXTS) - here.documents(TEXTS)).max() < 1e-3
        with pytest.raises(UsageError, match="has no model 'other'"):
            Openai(model="other", **asked).open()
        patch.setenv("SETTLE_KEY", "wrong")
        with pytest.raises(UsageError, match="does not take the key in SETTLE_KEY"):
            Openai(model="tiny-bert", **asked).open()


def test_a_redirect_is_not_followed_and_the_key_stays(monkeypatch):
    monkeypatch.setenv("EMBEDDER_KEY", "sk-secret")
    with serving() as server, serving() as other:
        server.redirect = f"http://127.0.0.2:{other.server_port}/v1/embeddings"
        server.planned = [(302, None)]
        with pytest.raises(UsageError, match="leads elsewhere"):
            Openai(url=server.url, model="m", key_variable="EMBEDDER_KEY").open()
        assert server.keys == ["Bearer sk-secret"] and other.keys == [] and other.others == []


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_documents_for_this_machine_go_through_no_proxy(variable, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server, serving() as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
        for host in ("127.0.0.1", "localhost"):
            Openai(url=server.url.replace("127.0.0.1", host), model="m").open().documents(["my secret document"])
        assert len(server.asked) == 4 and proxy.asked == []

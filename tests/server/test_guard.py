"""Attacks: none gets in, none brings the server down."""

import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from settle.base.chat_template import TemplateFailure
from settle.infer.template_check import require_renders
from settle.library.store import StoredModel, add_model, store
from settle.machine import cpu_seconds, resident
from settle.server.guard import Limits
from settle.server.http_server import MOST_PIPELINED
from settle.server.models import loaded_model, model_loader, model_pool
from settle.server.models.model_loader import PoolSettings
from settle.wire.errors import ApiError
from settle.wire.fields import parse
from tests.base.bombs import COMPILED, REVIEW
from tests.hostile import with_metadata
from tests.server.conftest import KEY, ORIGIN, serving, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "def f"}], "max_tokens": 2}


@pytest.fixture(autouse=True)
def still_answers(live):
    yield
    assert live.ask("/v1/chat/completions", CHAT).status == 200


SHOWN = """
from settle.base.event_log import Events
from settle.server.serve import ModelChoice, _report
from settle.show import Face
_report(Events(listeners=[Face(False, False)]), "http://127.0.0.1:1", "sk-settle-secret", ModelChoice(), ["m"])
"""


def test_a_services_log_does_not_get_the_key():
    """A terminal does."""
    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sk-settle-secret" not in done.stdout + done.stderr and "server/key" in done.stdout + done.stderr
    ours, theirs = pytest.importorskip("pty").openpty()
    subprocess.run([sys.executable, "-c", SHOWN], stdout=theirs, stderr=theirs, check=True)
    assert b"sk-settle-secret" in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7388",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "a b",
        "localhost:80@evil",
        "[::1]:80@evil",
        "[::1]evil",
    ],  # fmt: skip
)
def test_foreign_hosts(live, host):
    assert live.ask("/v1/models", headers={"Host": host}).status in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "[::1]:80", "LOCALHOST", "x.localhost"])
def test_own_hosts(live, host):
    assert live.ask("/v1/models", headers={"Host": host}).status == 200


def test_two_hosts(live):
    raw = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    assert b" 400 " in talk(live, raw.encode()).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:3000", "null", "chrome-extension://other"]
)
def test_foreign_origins(live, origin):
    refused = live.ask("/v1/chat/completions", CHAT, headers={"Origin": origin})
    assert refused.status == 403 and "access-control-allow-origin" not in refused.headers
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert live.ask("/v1/chat/completions", method="OPTIONS", headers=preflight, key="").status == 403


def test_a_page_without_an_origin(live):
    assert live.ask("/v1/models", headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert live.ask("/v1/models", headers={"Sec-Fetch-Site": "none"}).status == 200


def test_an_origin_that_was_let_in(live):
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    preflight |= {"Access-Control-Request-Headers": "authorization, x-stainless-os"}
    answer = live.ask("/api/chat", method="OPTIONS", headers=preflight, key="")
    assert answer.status == 204 and answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    answer = live.ask("/v1/chat/completions", CHAT, headers={"Origin": ORIGIN})
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == ORIGIN
    assert live.ask("/v1/chat/completions", CHAT, headers={"Origin": ORIGIN}, key="").status == 401


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/metrics", "/nope", "/models"])
@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], KEY + "x", "ä"])
def test_keys(live, path, key):
    refused = live.ask(
        path, headers={"Authorization": f"Bearer {key}".encode().decode("latin-1")} if key else {}, key=""
    )
    assert refused.status == 401 and KEY not in refused.body.decode()


def test_other_headers_for_the_key(live):
    assert live.ask("/v1/models", headers={"x-api-key": KEY}, key="").status == 200
    assert live.ask("/health", key="").status == 200


def test_without_a_key(stocked):
    with serving(stocked, key=None) as server:
        assert server.ask("/v1/models", key="").status == 200
        assert server.ask("/v1/models", headers={"Origin": "https://evil.example"}, key="").status == 403
        assert server.ask("/v1/models", headers={"Host": "evil.example"}, key="").status == 403


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "tiny/../plain",
        "tiny\x00",
        "a" * 10_000,
        "file:///etc/passwd",
        "",
        " ",
    ],
)
def test_no_name_leads_out_of_the_store(live, name):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        body = {"model": name, "prompt": "x"} if path == "/v1/completions" else CHAT | {"model": name}
        body = {"model": name, "input": "x"} if path == "/v1/embeddings" else body
        assert live.ask(path, body).status in (400, 404)
    for path in ("/v1/chat/completions", "/v1/chat/completions/input_tokens"):
        assert live.ask(path, CHAT | {"lora": [{"id": name}]}).status in (400, 404)


@pytest.mark.parametrize(
    "path", ["/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "//etc/passwd", "/%00"]
)
def test_no_path_leads_out_of_the_store(live, path):
    answer = live.ask(path)
    assert answer.status in (400, 404) and b"root:" not in answer.body


def test_large_bodies(live):
    assert b" 413 " in talk(live, head("200000000")).split(b"\r\n")[0]


def test_large_bodies_without_a_length(stocked):
    with serving(stocked, limits=Limits(body=1 << 20)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        piece = b"x" * (1 << 16)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", (piece for _ in range(20)), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


@pytest.mark.parametrize(("key", "status"), [(KEY, 413), ("wrong", 401)])
def test_who_still_sends_gets_to_read_why_not(live, key, status):
    """64 MiB fill every buffer on the way: a connection that was just closed would be reset under the client."""
    for has_length in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
        headers = {"Authorization": f"Bearer {key}"} | ({"Content-Length": str(64 << 20)} if has_length else {})
        pieces = (b"x" * (1 << 20) for _ in range(64))
        connection.request("POST", "/v1/completions", pieces, headers, encode_chunked=not has_length)
        response = connection.getresponse()
        assert response.status == status and response.read() and response.getheader("connection") == "close"
        connection.close()


def test_a_body_that_nobody_wants_is_not_read_for_ever(live, monkeypatch):
    from settle.server import guard

    monkeypatch.setattr(guard, "DISCARD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as slow:
        slow.sendall(head("100").replace(KEY.encode(), b"wrong") + b"{")
        assert slow.makefile("rb").read().startswith(b"HTTP/1.1 401")  # to the end of the connection


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "99999999999999999999", "0x10"])
def test_lengths_that_are_none(live, length):
    assert talk(live, head(length))[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413", b"")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"messages":' + b"[" * 500 + b"]" * 500 + b"}",
        b"{",
        b"\xff\xfe",
        b'{"model": "tiny", "messages": [], "temperature": NaN}',
        b'{"model": "tiny", "messages": [], "seed": 1' + b"0" * 5000 + b"}",
        b'{"model": "\\ud800", "messages": []}',
        b"null",
        b"[]",
        b'"x"',
        b"",
    ],
)
def test_bodies_that_are_none(live, body):
    answer = live.ask("/v1/chat/completions", body, method="POST")
    assert answer.status == 400 and answer.json["error"]["message"]


@pytest.mark.parametrize(
    "number", [-1, -(1 << 31), 1 << 31, 1 << 63, 1 << 64, 10**400, 1e308, -1e308, 1.5, True, "1", [1]]
)
def test_numbers(live, number):
    from settle.server.apis.openai import ChatBody

    for name in ChatBody.model_fields:
        if name not in ("messages", "model"):
            answer = live.ask("/v1/chat/completions", CHAT | {name: number})
            assert answer.status in (200, 400), (name, answer.body)


def test_a_header_that_trickles_in(live, monkeypatch):
    from settle.server import http_server

    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        ended = False
        for _ in range(100):
            time.sleep(0.05)
            try:
                slow.sendall(b"X: y\r\n")
            except OSError:
                ended = True
                break
        assert ended


def test_a_header_without_end(live):
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as wide, pytest.raises(OSError):
        wide.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        for _ in range(1000):
            wide.sendall(b"y" * 4096)
            time.sleep(0.001)
        raise AssertionError("4 MB of header were taken")


def test_a_body_that_trickles_in(stocked, monkeypatch):
    from settle.server import guard

    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    with serving(stocked) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
        slow.sendall(head("100") + b"{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_bodies_that_do_not_end_keep_nobody_out(stocked):
    """The one that was silent for the longest gives way."""
    limits = Limits(requests=4)
    with serving(stocked, PoolSettings(context=512, slots=1, threads=1), limits=limits) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(6)]
        try:
            for one in slow[:4]:
                one.sendall(head("100") + b"{")
                time.sleep(0.05)
            slow[0].sendall(b" ")
            time.sleep(0.1)
            assert [server.ask("/v1/chat/completions", CHAT).status for _ in range(3)] == [200] * 3
            for one in slow[4:]:
                one.sendall(head("100") + b"{")
            for one in slow[1:3]:
                assert one.recv(100).startswith(b"HTTP/1.1 408")
            slow[0].sendall(b'"' + b"a" * 97)  # no JSON, and whole
            assert slow[0].recv(100).startswith(b"HTTP/1.1 400")
        finally:
            for one in slow:
                one.close()


def test_too_many_requests(stocked):
    limits = Limits(requests=1)
    with serving(stocked, PoolSettings(context=512, slots=1, threads=1), limits=limits) as server:
        held = server.open("/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 300, "ignore_eos": True})
        response = held.getresponse()
        assert response.read(10)
        refused = server.ask("/v1/models")
        assert refused.status == 503 and refused.headers["retry-after"]
        assert server.ask("/health").status == 200
        response.read()
        held.close()
        assert server.ask("/v1/models").status == 200


def test_too_long_a_request_is_cut_off(stocked):
    limits, endless = Limits(seconds=0.5), CHAT | {"max_tokens": 400, "ignore_eos": True, "stream": True}
    with serving(stocked, PoolSettings(context=512, slots=1, threads=1), limits=limits) as server:
        with ThreadPoolExecutor(8) as pool:
            ended = list(pool.map(lambda _: cut_off(server, endless), range(40)))
        assert any(ended) and server.ask("/v1/models").status == 200


def test_a_request_that_takes_too_long_before_its_first_byte(stocked):
    """The engine hangs: every API says so in its own words, and the audit does not say that the client left."""
    with serving(stocked, PoolSettings(context=512, slots=1, threads=1), limits=Limits(seconds=2.0)) as server:
        assert any(server.ask("/v1/chat/completions", CHAT).status == 200 for _ in range(60))  # loading goes on
        child = psutil.Process(server.gateway.backend.pool.loaded()[0].child.pid)
        child.suspend()
        try:
            ollama = {"model": "tiny", "messages": CHAT["messages"], "stream": False}
            asked = {"/v1/chat/completions": CHAT, "/v1/messages": CHAT, "/api/chat": ollama}
            with ThreadPoolExecutor(3) as threads:  # each takes the two seconds
                answers = list(threads.map(server.ask, asked, asked.values()))
            assert [answer.status for answer in answers] == [504] * 3
            assert "no answer within 2 s" in answers[0].json["error"]["message"]
            assert answers[1].json["type"] == "error" and isinstance(answers[2].json["error"], str)
        finally:
            child.resume()
        lines = (stocked / "server" / "audit.jsonl").read_text().splitlines()
        assert [json.loads(line)["status"] for line in lines[-3:]] == [504, 504, 504]
        assert any(server.ask("/v1/chat/completions", CHAT).status == 200 for _ in range(60))


TRAILERS = {
    "many": b"X-Aaaaaaa: " + b"b" * 1000 + b"\r\n",
    "small": b"a:b\r\n",
    "one without end": b"b" * 4096,
    "chunk extensions": b";a=" + b"b" * 4096,
}


@pytest.mark.parametrize("key", [KEY, "wrong"])
@pytest.mark.parametrize("kind", TRAILERS)
def test_trailers_have_a_bound(live, kind, key):
    """One connection without a key made the server grow by 1.5 GB in seven seconds."""
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}"]
    start = "5" if kind == "chunk extensions" else "0\r\n" + ("X: " if kind == "one without end" else "")
    raw = "\r\n".join([*lines, "Transfer-Encoding: chunked", "", start]).encode()
    unit, sent = TRAILERS[kind] * (1 + (16 << 10) // len(TRAILERS[kind])), 0
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as wide:
        wide.sendall(raw)
        with pytest.raises(OSError):
            while sent < 64 << 20:
                wide.sendall(unit)
                sent += len(unit)
    assert sent < 16 << 20  # what the two ends of the socket hold


def test_chunked_bodies_still_work(live):
    """Chunks of one byte each, and a trailer."""
    body = json.dumps(CHAT).encode()
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body)
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
    head = "\r\n".join([*lines, "Content-Type: application/json", "Transfer-Encoding: chunked", "", ""]).encode()
    assert talk(live, head + chunks + b"0\r\nX-Checksum: 1\r\n\r\n").startswith(b"HTTP/1.1 200")
    large = b"a" * (1 << 20)
    answer = talk(live, head + b"100000\r\n" + large + b"\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400"), answer


@pytest.mark.parametrize(
    "body", [b'{"a":[' + b"[]," * (1 << 19) + b"[]]}", b'{"a":[' + b"1," * (1 << 22) + b"1]}"], ids=["lists", "numbers"]
)
def test_bodies_of_millions_of_values(live, body):
    assert live.ask("/v1/chat/completions", body, method="POST").status == 413


def test_a_body_of_too_much_is_refused_sooner_than_it_would_parse():
    """The server answers nobody else meanwhile."""
    body = b'{"a":[' + b'{"":1},' * (1 << 20) + b"1]}"
    begin = time.process_time()
    with pytest.raises(ApiError):
        parse(body)
    refused = time.process_time()
    json.loads(body)
    assert refused - begin < (time.process_time() - refused) / 2


@pytest.mark.parametrize("path", [b"/health", b"/v1/models"], ids=["open", "without a key"])
def test_requests_that_wait_for_no_answer_have_a_bound(live, path):
    """One connection without a key made the server grow by 700 MB in fifteen seconds."""
    request, sent = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 0
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as wide, pytest.raises(OSError):
        while sent < 64 << 20:
            wide.sendall(request * 1000)
            sent += len(request) * 1000
    assert sent < 16 << 20  # what the two ends of the socket hold
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as polite:
        polite.sendall(request * MOST_PIPELINED)
        answers = b""
        while answers.count(b"HTTP/1.1 ") < MOST_PIPELINED:
            answers += polite.recv(1 << 16) or pytest.fail("it was closed")


def test_a_text_may_hold_any_number_of_brackets(live):
    text = '[{"\\,' * (1 << 18)
    answer = live.ask("/tokenize", {"model": "tiny", "content": text[: 1 << 19]})
    assert answer.status == 200
    assert parse(json.dumps({"content": text}).encode()) == {"content": text}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", lambda text: CHAT | {"messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", lambda text: {"model": "tiny", "prompt": text, "max_tokens": 1}),
        ("/completion", lambda text: {"model": "tiny", "prompt": text, "n_predict": 1}),
        ("/v1/responses", lambda text: {"model": "tiny", "input": text, "truncation": "auto"}),
    ],
    ids=["chat", "completions", "completion", "trimmed"],
)
def test_a_prompt_of_megabytes_is_not_counted_first(live, monkeypatch, path, body):
    """To count the tokens of 31 MB took 74 s. No context of 512 tokens holds them, whatever they are."""
    from settle.server.requests import chat, engine

    async def never(*_, **__):
        raise AssertionError("this takes minutes")

    assert live.ask("/v1/chat/completions", CHAT).status == 200
    monkeypatch.setattr(chat, "tokenize", never)
    monkeypatch.setattr(chat, "apply_template", never)
    refused = live.ask(path, body("a " * (4 << 20)))
    assert refused.status == 400 and "at least" in refused.json["error"]["message"], refused.body
    assert engine.require_possible(["def f"], live.gateway.backend.pool.loaded()[0]) is None


def cut_off(server, body) -> bool:
    try:
        return not server.ask("/v1/chat/completions", body).body.endswith(b"data: [DONE]\n\n")
    except (http.client.HTTPException, OSError):
        return True


def test_many_connections_that_say_nothing(live):
    idle = [socket.create_connection(("127.0.0.1", live.port), timeout=20) for _ in range(200)]
    assert live.ask("/v1/models").status == 200
    for connection in idle:
        connection.close()


def test_websockets_and_odd_methods(live):
    for method in ("PUT", "PATCH", "TRACE", "CONNECT", "BREW"):
        raw = f"{method} /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        assert talk(live, raw.encode())[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 405", b"HTTP/1.1 404")


def test_prompts_are_kept_only_when_asked(live, stocked, tmp_path):
    secret = "xyzzy secret"
    live.ask("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": secret}]})
    live.ask("/v1/models", headers={"User-Agent": "comes after"})
    end, kept = time.monotonic() + 20, ""
    while "comes after" not in kept and time.monotonic() < end:  # a line is written a moment after its answer
        kept = (stocked / "server" / "audit.jsonl").read_text()
    assert secret not in kept
    line = next(line for line in map(json.loads, reversed(kept.splitlines())) if line["route"].endswith("completions"))
    assert line["model"] == "tiny" and line["status"] == 200 and line["completion_tokens"] >= 1 and line["client"]
    (tmp_path / "server").mkdir()
    with serving(tmp_path, prompts=True) as server:
        server.ask("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": secret}]})
    assert secret in (tmp_path / "server" / "audit.jsonl").read_text()


def test_metrics(live):
    live.ask("/v1/chat/completions", CHAT | {"stream": True})
    end, text = time.monotonic() + 20, ""
    while ("settle_first_token_seconds_count 0" in text or not text) and time.monotonic() < end:
        text = live.ask("/metrics").body.decode()
    assert 'settle_requests_total{route="openai.chat_completions",status="200"}' in text
    assert 'settle_tokens_total{model="tiny",kind="completion"}' in text and "settle_first_token_seconds_count" in text


def head(length: str) -> bytes:
    """Of a request whose body is to come."""
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def talk(live, raw: bytes) -> bytes:
    """What comes back for bytes sent as they are."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
        connection.sendall(raw)
        connection.settimeout(20)
        try:
            return connection.recv(4096)
        except ConnectionResetError:
            return b""


BOMBS = {
    "steps": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "hangs": REVIEW["int square"],
    "memory": REVIEW["width of a star"],
    "compiled": COMPILED["title"],
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_template_that_would_not_end(model_with, live, bomb):
    """A bomb in a model's file costs its request, and nothing else; lists of models do not run it."""
    model_with("bomb", bomb)
    done = threading.Event()
    others: list[int] = []

    def other() -> None:
        while not done.wait(0.05):  # without a rest it would take the core from the bomb, which then lasts longer
            others.extend(live.ask(path).status for path in ("/v1/models", "/api/tags", "/health"))

    busy = threading.Thread(target=other)
    busy.start()
    memory = psutil.Process().memory_info().rss
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(live.ask, "/v1/chat/completions", CHAT | {"model": "bomb"}) for _ in range(2)]
        answered = live.ask("/v1/chat/completions", CHAT | {"max_tokens": 4})
        refused = [one.result() for one in asked]
    done.set()
    busy.join()
    assert answered.status == 200 and others and set(others) == {200}
    assert [one.status for one in refused] == [400] * 2
    assert {one.json["error"]["code"] for one in refused} == {"template_runaway"}
    assert live.ask("/v1/chat/completions/input_tokens", CHAT | {"model": "bomb"}).status == 400
    assert psutil.Process().memory_info().rss - memory < 256 << 20


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BODY = "{% for m in messages %}{{ m.content }}{% endfor %}"
DIVERGING = {  # what comes first fails in the sandbox, and not in llama.cpp
    "append": "{% set l = [] %}{% set _ = l.append(1) %}",
    "plus": "{% set q = 'a' + 1 %}",
    "dunder": "{% set q = ''['__class__'] %}{% set q = q.__mro__ %}",
    "none": "{% set q = none.x %}{% set q = q.y %}",
    "deep": "{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(400) }}",
}


@pytest.mark.parametrize("first", DIVERGING.values(), ids=DIVERGING)
def test_a_template_that_fails_in_the_sandbox_is_not_run(model_with, live, first):
    """llama.cpp would run what comes after, without end, while it loads the model."""
    model_with("diverges", first + LOOP + BODY)
    refused = live.ask("/v1/chat/completions", CHAT | {"model": "diverges"})
    assert refused.json["error"]["code"] in ("template_runaway", "model_broken")
    assert "chat template" in refused.json["error"]["message"]


def test_a_template_may_object_by_its_own_words():
    """llama.cpp's own conversations may be to its liking; a template for tools may need some."""
    require_renders("{% if messages|length < 2 %}{{ raise_exception('a system message is needed') }}{% endif %}" + BODY)
    require_renders("{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + BODY)
    with pytest.raises(TemplateFailure, match="iterable"):
        require_renders("{% for tool in 7 %}{% endfor %}" + BODY)


def test_a_child_that_hangs_while_it_loads_delays_no_other(model_with, stocked, monkeypatch):
    """What only llama.cpp's own conversations show spins there: other models load, and the child ends with its last
    client."""
    monkeypatch.setattr(model_pool, "ABANDONED_SECONDS", 0.5)
    model_with("spins", "{% if messages[0].content != 'hello' %}" + LOOP + "{% endif %}" + BODY)
    with serving(stocked, PoolSettings(context=512, slots=1, threads=1)) as server:
        waiting = server.open("/v1/chat/completions", CHAT | {"model": "spins"})
        starting = server.gateway.backend.pool._loader.starting
        assert until(lambda: any(child.pid for child in starting))
        (child,) = starting
        process = psutil.Process(child.pid)
        assert server.ask("/v1/chat/completions", CHAT).status == 200
        assert child in starting and process.is_running()
        waiting.close()
        assert until(lambda: not starting) and until(lambda: not process.is_running())
        assert server.ask("/v1/chat/completions", CHAT).status == 200


def test_a_child_that_works_for_nobody_is_ended(model_with, stocked, monkeypatch):
    """What only one request shows spins on in llama.cpp after its client has left; one that rests stays."""
    monkeypatch.setattr(loaded_model, "REST_SECONDS", 1.0)
    monkeypatch.setattr(loaded_model, "RESTLESS", 0.1)  # on a busy machine one that spins gets no half of a core
    monkeypatch.setattr(model_pool, "CHECK_SECONDS", 0.2)
    spins = "{% if messages[0].content == 'spin' %}{% set q = 'a' + 1 %}" + LOOP + "{% endif %}"
    model_with("turns", spins + BODY)
    with serving(stocked, PoolSettings(context=512, slots=1, threads=1)) as server:
        for name in ("tiny", "turns"):
            assert server.ask("/v1/chat/completions", CHAT | {"model": name}).status == 200
        processes = {one.key.path.stem: psutil.Process(one.child.pid) for one in server.gateway.backend.pool.loaded()}
        before = cpu_seconds(processes["turns"].pid)
        asked = CHAT | {"model": "turns", "messages": [{"role": "user", "content": "spin"}]}
        waiting = server.open("/v1/chat/completions", asked)
        assert until(lambda: cpu_seconds(processes["turns"].pid) > before + 0.5) and processes["turns"].is_running()
        waiting.close()
        assert until(lambda: not processes["turns"].is_running())
        assert processes["tiny"].is_running()


def test_a_child_that_fills_the_memory_is_ended(model_with, stocked):
    bomb = "{% set n = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(30) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    model_with("swells", "{% if messages[0].content != 'hello' %}" + bomb + "{{ n.x }}{% endif %}" + BODY)
    few_threads = PoolSettings(context=512, slots=1, threads=1, waiting=1, ready_seconds=6)  # each has its stack
    with pytest.MonkeyPatch.context() as patch, serving(stocked, few_threads) as server:
        patch.setattr(model_loader, "SPARE_BYTES", 384 << 20)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(server.ask, "/v1/chat/completions", CHAT | {"model": "swells"})
            largest, starting = 0, server.gateway.backend.pool._loader.starting
            while not asked.done():
                largest = max([largest, *(resident(child.pid) for child in list(starting) if child.pid)])
                time.sleep(0.02)
        assert asked.result().status != 200 and 0 < largest < 640 << 20
        assert server.ask("/v1/chat/completions", CHAT).status == 200  # it is enough for a template that ends


@pytest.fixture
def model_with(request, stocked):
    """Adds a model of that name with that template to the store."""

    def add(name: str, template: str) -> None:
        folder = store() / name
        folder.mkdir()
        request.addfinalizer(lambda: shutil.rmtree(folder))  # the home is shared
        path = folder / f"{name}.gguf"
        path.write_bytes(_with_template((stocked / "models" / "tiny" / "tiny.gguf").read_bytes(), template))
        add_model(StoredModel(name, "gguf", path, "ab" * 32, f"test:{name}"))

    return add


def _truncated(path: Path, sound: Path) -> None:
    path.write_bytes(sound.read_bytes()[:900])


def _no_model(path: Path, sound: Path) -> None:
    path.write_bytes(b"GGUF" + b"\xff" * 64)


def _of_odd_numbers(path: Path, sound: Path) -> None:
    with_metadata(sound, path, {"llama.context_length": -1, "general.name": "\x1b[2J"})


def _no_file(path: Path, sound: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("breaks", [_truncated, _no_model, _of_odd_numbers, _no_file])
@pytest.mark.parametrize("damage", ["file", "record"])
def test_a_broken_model_does_not_break_the_lists(request, live, stocked, breaks, damage):
    """Every list of every API has the sound models, whatever lies beside them; the broken one is refused in words."""
    folder = store() / "broken"
    folder.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(folder))  # the home is shared
    path = folder / "broken.gguf"
    path.write_bytes(b"")
    add_model(StoredModel("broken", "gguf", path, "ab" * 32, "test:broken"))
    breaks(path, stocked / "models" / "tiny" / "tiny.gguf")
    if damage == "record":
        (folder / "model.json").write_text('{"name": 7')
    for listing in ("/v1/models", "/api/tags", "/api/v0/models", "/api/ps"):
        reply = live.ask(listing)
        assert reply.status == 200, (listing, reply.body)
        assert listing == "/api/ps" or b'"tiny' in reply.body
    asked = live.ask("/v1/chat/completions", CHAT | {"model": "broken"})
    assert 400 <= asked.status < 600 and asked.status != 500, asked.body
    assert "Traceback" not in asked.body.decode() and asked.json["error"]["message"]
    assert live.ask("/v1/models/tiny").status == 200


def _with_template(data: bytes, template: str) -> bytes:
    """A GGUF file's bytes with another template, padded so that the tensors stay aligned."""
    key = b"tokenizer.chat_template" + struct.pack("<I", 8)  # a string
    at = data.index(key) + len(key)
    (length,) = struct.unpack_from("<Q", data, at)
    written = template.encode()
    written += b" " * ((length - len(written)) % 32)
    return data[:at] + struct.pack("<Q", len(written)) + written + data[at + 8 + length :]


def test_arguments_of_a_template(live):
    """They may not stand in for what every template is given, nor keep the sandbox from running it."""
    for path in ("/v1/chat/completions", "/v1/chat/completions/input_tokens"):
        for name in ("messages", "tools", "self", "bos_token"):
            assert live.ask(path, CHAT | {"chat_template_kwargs": {name: "x"}}).status == 400
        assert live.ask(path, CHAT | {"chat_template_kwargs": {"x": "{{ 9 ** 9 ** 9 }}"}}).status == 200


def leading_on(length: int) -> dict:
    """A schema of objects, each of which refers to the next."""
    found = {f"d{n}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": found | {f"d{length}": {"type": "boolean"}}}


CHAIN = "\n".join(f'r{n}: r{n + 1} | "a"' for n in range(20_000))


@pytest.mark.parametrize(
    "asked",
    [
        {"grammar": "root ::= " + "(" * 100_000},
        {"grammar": "root ::= x"},
        {"grammar": " "},
        {"grammar": f'%llguidance {{}}\nstart: r0\n{CHAIN}\nr20000: "b"\n'},
        {"response_format": {"type": "json_object", "schema": leading_on(5_000)}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": leading_on(5_000)}}]},
    ],
    ids=["deep", "unknown", "empty", "rules", "schema", "tool"],
)
def test_grammars_that_lead_on_too_far(live, asked):
    """They would end the process that compiles them."""
    refused = live.ask("/v1/chat/completions", CHAT | asked)
    assert refused.status == 400, refused.body
    usual = {"type": "json_object", "schema": leading_on(20)}
    assert live.ask("/v1/chat/completions", CHAT | {"response_format": usual}).status == 200


def test_a_grammar_that_takes_too_long(live, monkeypatch):
    from settle.server import grammars

    grammars.close_checker()  # to start again takes longer than this
    monkeypatch.setattr(grammars, "SECONDS", 0.001)
    assert live.ask("/v1/chat/completions", CHAT | {"grammar": 'root ::= "a"'}).status == 400
    monkeypatch.undo()
    assert live.ask("/v1/chat/completions", CHAT | {"grammar": 'root ::= "a"'}).status == 200

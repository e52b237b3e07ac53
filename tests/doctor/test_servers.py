"""Servers of others, over real sockets: llama.cpp's own, the shapes of Ollama and LM Studio, and bad ones."""

import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.doctor import web
from settle.doctor.checks.answers.forgotten_start import ForgottenStart
from settle.doctor.doctor import DoctorOptions, doctor
from settle.doctor.find_subject import find_subject
from settle.doctor.served_model import Door
from settle.doctor.subject import Running
from settle.experiment.run import prove
from settle.infer.engine import Engine
from tests.doctor.chat_model import chat_model
from tests.records import into


class Shapes(http.server.BaseHTTPRequestHandler):
    """Answers GET and POST by what the class says; a chat counts words as tokens, and forgets all but the last."""

    answers: dict[str, object] = {}
    chat_path, is_ollama, longest = "", False, 100_000
    asked: list[tuple[str, dict]] = []

    def do_GET(self) -> None:
        self.reply(self.answers.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        if self.path != self.chat_path:
            self.reply(self.answers.get(self.path))
            return
        words = " ".join(message["content"] for message in body["messages"]).split()
        read = words[-self.longest :]
        text = (
            f"The code word is {read[4].strip('.')}." if read[:4] == ["The", "code", "word", "is"] else "I know none."
        )
        counts = len(read), len(text.split())
        if self.is_ollama:
            lines = [
                {"message": {"role": "assistant", "content": text}, "done": False},
                {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
                | {"prompt_eval_count": counts[0], "eval_count": counts[1]},
            ]
            self.send("".join(json.dumps(line) + "\n" for line in lines).encode())
            return
        chunks = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": counts[0], "completion_tokens": counts[1]}},
        ]
        self.send(("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n").encode())

    def reply(self, value: object) -> None:
        self.send(json.dumps(value if value is not None else {"error": "no such path"}).encode(), 200 if value else 404)

    def send(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


OLLAMA = {
    "chat_path": "/api/chat",
    "is_ollama": True,
    "answers": {
        "/api/version": {"version": "0.13.1"},
        "/api/tags": {"models": [{"name": "nomic:latest"}, {"name": "qwen3:4b", "model": "qwen3:4b", "size": 26}]},
        "/api/ps": {"models": [{"name": "qwen3:4b", "size_vram": 26, "context_length": 4096}]},
        "/api/show": {
            "parameters": 'num_ctx                        4096\nrepeat_penalty    1\nstop    "<|im_end|>"',
            "capabilities": ["completion", "tools"],
            "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960},
        },
    },
}
LMSTUDIO = {
    "chat_path": "/v1/chat/completions",
    "answers": {
        "/api/v0/models": {
            "data": [
                {"id": "nomic", "type": "embeddings", "state": "loaded", "max_context_length": 2048},
                {"id": "qwen3-4b", "type": "llm", "state": "not-loaded", "max_context_length": 40960},
                {"id": "gemma", "type": "vlm", "state": "loaded", "max_context_length": 8192}
                | {"loaded_context_length": 4096},
            ]
        },
        "/v1/models": {"data": [{"id": "nomic"}, {"id": "qwen3-4b"}, {"id": "gemma"}]},
    },
}


@contextmanager
def running(shapes: dict[str, object]):
    """Run a server in a thread; yield its address, and what it was asked."""
    asked: list[tuple[str, dict]] = []
    handler = type("Own", (Shapes,), {**shapes, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("shapes", "name", "context", "longest"),
    [(OLLAMA, "qwen3:4b", 4096, 40960), (LMSTUDIO, "gemma", 4096, 8192)],
)
def test_a_server_is_recognised_by_its_own_api_and_only_asked(home, shapes, name, context, longest):
    with running(shapes) as (address, asked):
        subject = find_subject(address, Running())
        model = subject.chat.answerer.model
        assert (model.name, model.context, model.longest) == (name, context, longest)
        assert [exchange.reply.answer for exchange in subject.chat.exchanges] == ["I know none."] * 2
        assert doctor(DoctorOptions(address), Events()) == 0
    assert {path for path, _ in asked} <= {shapes["chat_path"], "/api/show"}
    assert all(body["model"] == name for _, body in asked)


@pytest.mark.parametrize("shapes", [OLLAMA, LMSTUDIO])
def test_a_server_that_cuts_prompts_is_found_and_proven_by_shorter_ones(home, tmp_path, shapes):
    with running({**shapes, "longest": 600}) as (address, _):
        subject = find_subject(address, Running())
        (finding,) = ForgottenStart().detect(subject)
        trial = ForgottenStart().trial(finding, subject, tmp_path)
        proof = prove(trial, tmp_path / "measurements.jsonl", Events())
        assert (proof.state, proof.verified) == ("proven", True)
        assert "600" in finding.what


def test_settles_own_engine_is_a_llama_server_with_a_key(home):
    with Engine(chat_model(), 1024, threads=1) as engine:
        child = engine._child
        address = f"http://127.0.0.1:{child.address.port}"
        with pytest.raises(RunError, match="rejects"):
            find_subject(address, Running())
        subject = find_subject(address, Running(), door=Door(key=child.api_key))
        server = subject.chat.answerer
        assert server.kind.title == "llama-server" and server.model.context == 1024
        assert all(exchange.reply.is_answered for exchange in subject.chat.exchanges)
        events: list = []
        assert doctor(DoctorOptions(address, key=child.api_key), Events(listeners=[into(events)])) == 0
        with pytest.raises(UsageError, match="has no model"):
            find_subject(address, Running(), door=Door("another", child.api_key))


BAD = {
    "nothing that is known": ({"answers": {"/v1/models": "a text"}}, "like no server that is known"),
    "no chat": ({"answers": {"/v1/models": {"data": [{"id": "m"}, {"id": 7}, None]}}}, "refuses /v1/chat"),
    "no model that chats": ({"answers": {"/api/v0/models": {"data": []}}}, "no model that chats"),
    "nonsense for an answer": (
        {"answers": {"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": {"hello": 1}}},
        "answers no chat",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_server_that_answers_nonsense_is_an_error_that_says_so(home, how):
    shapes, says = BAD[how]
    with running(shapes) as (address, _), pytest.raises(RunError, match=says):
        find_subject(address, Running())


def test_no_server_and_one_that_never_answers_are_said_to_be(home, monkeypatch):
    monkeypatch.setattr(web, "LOOK_SECONDS", 0.3)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shapes) as server:  # listens, and nobody accepts
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(RunError, match="does not answer within"):
            find_subject(address, Running())
    with pytest.raises(RunError, match="nothing answers"):
        find_subject(address, Running())
    with pytest.raises(UsageError, match="no address"):
        find_subject("http://", Running())


def test_a_word_is_said_before_anything_leaves_this_machine(home):
    events: list = []
    with pytest.raises(RunError):
        doctor(DoctorOptions("http://192.0.2.1:9", only=["18"]), Events(listeners=[into(events)]))
    assert any("leaves this machine" in event.get("text", "") for event in events)

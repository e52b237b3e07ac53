"""A real server on a free port, with a tiny model that is really trained, in this process; llama.cpp is its child."""

import asyncio
import collections
import contextlib
import http.client
import io
import json
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from settle.audit.door import listen
from settle.base.files import write_json
from settle.base.run import Run
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.infer.child_process import Draft
from settle.library.store import StoredModel, add_model
from settle.server import app, http_server
from settle.server.audit import Audit
from settle.server.gateway import Gateway
from settle.server.guard import Access, Limits
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_loader import PoolSettings
from tests.trained import adapter, trained

KEY = "sk-settle-0123456789abcdef"
ORIGIN = "chrome-extension://jfgfiigpkhlkbnfnbobbkinehhfdhndo"
# a model that thinks before it answers, unless it is told not to
THINKING = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.reasoning_content -%}"
    "{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- message.content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{{- '<think>\n' -}}{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{- '\n</think>\n\n' -}}{%- endif -%}{%- endif -%}"
)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, parsed, without [DONE]."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    @property
    def lines(self) -> list[Any]:
        """Lines of JSON, parsed."""
        return [json.loads(line) for line in self.body.splitlines() if line]


_REPLIES: collections.deque[Reply] = collections.deque(maxlen=3)


@dataclass
class Live:
    """A server that runs. gateway: its insides."""

    address: str
    gateway: Gateway
    loop: asyncio.AbstractEventLoop
    server: http_server.Server
    key: str | None = KEY

    @property
    def port(self) -> int:
        port = urllib.parse.urlsplit(self.address).port
        assert port
        return port

    def ask(
        self,
        path: str,
        body: Any = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        key: str = KEY,
    ) -> Reply:
        """One request; `body` as JSON unless it is bytes."""
        connection = self.open(path, body, method, headers, key)
        try:
            response = connection.getresponse()
            reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
            _REPLIES.append(reply)
            return reply
        finally:
            connection.close()

    def open(
        self,
        path: str,
        body: Any = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        key: str = KEY,
    ) -> http.client.HTTPConnection:
        """A request that was sent; its answer is to be read, or not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent | (headers or {}))
        return connection

    def leave(self, path: str, body: Any) -> None:
        """Leave in the middle of an answer: it must be stopped."""
        connection = self.open(path, body)
        response = connection.getresponse()
        assert response.read(10)
        connection.close()
        response.close()
        assert until(lambda: not any(loaded.busy for loaded in self.gateway.backend.pool.loaded()), 20)

    def run(self, work: Any) -> Any:
        """A coroutine in the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


def until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it holds before that many seconds are over."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@contextlib.contextmanager
def serving(
    home: Path,
    pool_settings: PoolSettings | None = None,
    entries: tuple[ModelEntry, ...] = (),
    key: str | None = KEY,
    limits: Limits | None = None,
    prompts: bool = False,
    draft: Draft | None = None,
) -> Iterator[Live]:
    """A server in a thread. draft: for the first of the entries."""
    up = threading.Event()
    made: dict[str, Any] = {}
    listening = listen("127.0.0.1", 0)
    built = app.build_app(
        ModelCatalogue(entries, bool(entries), {entries[0].path.resolve(): draft} if draft else {}),
        pool_settings or PoolSettings(context=512, slots=2, threads=1),
        Access(key, origins=lambda: frozenset({ORIGIN})),
        limits or Limits(),
        Audit(home / "server" / "audit.jsonl", prompts),
    )
    made["server"] = http_server.Server(built.asgi, up.set)

    def run() -> None:
        async def work() -> None:
            made["loop"] = asyncio.get_running_loop()
            await made["server"].serve(sockets=[listening])

        asyncio.run(work())

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(20)
    try:
        port = listening.getsockname()[1]
        yield Live(f"http://127.0.0.1:{port}", built.gateway, made["loop"], made["server"], key)
    finally:
        made["server"].should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive(), _where_it_is(made["loop"])


def _where_it_is(loop: asyncio.AbstractEventLoop) -> str:
    """What a server that does not end is doing: its tasks, and every thread of this process."""
    text = io.StringIO()
    for task in asyncio.all_tasks(loop):
        task.print_stack(file=text)
    for number, frame in sys._current_frames().items():
        name = next(
            (thread.name for thread in threading.enumerate() if thread.ident == number), "a thread without name"
        )
        text.write(f"{name}:\n{''.join(traceback.format_stack(frame)[-8:])}\n")
    return text.getvalue()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure shows the last answers of the server: what a test looks for is often missing because it refused."""
    report = yield
    if report.when == "call" and report.failed and _REPLIES:
        report.sections.append(("Last replies", "\n".join(f"{r.status} {r.body[:500]!r}" for r in _REPLIES)))
    return report


def add_adapter(
    home: Path, name: str, base: Path, seed: int = 0, strength: float = 0.5, metadata: dict[str, str] | None = None
) -> Path:
    """A LoRA as `settle tune` leaves it: a finished run over a base of the store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(home))
        run = Run.create("tune", name)
    part = trained().part
    path = run.out / f"{name}-lora.gguf"
    export_lora(part, adapter(part, seed=seed, strength=strength), path, "f32", metadata or {})
    write_json(run.path / "plan.json", {"tuning": {"base": str(base), "base_name": base.stem}})
    write_json(run.path / "result.json", {"verdict": "settled"})
    return path


def fill_store(home: Path) -> Path:
    """The tiny model under the name `tiny`; `plain` is the same without a chat template."""
    model = trained()
    for name in ("tiny", "plain"):
        folder = home / "models" / name
        folder.mkdir(parents=True)
        path = export_gguf(model.part, model.weights, model.tokenizer, folder / f"{name}.gguf", "f32", {"name": name})
        if name == "plain":
            _without_template(path)
        add_model(StoredModel(name, "gguf", path, "ab" * 32, f"test:{name}"))
    return home / "models" / "tiny" / "tiny.gguf"


def _without_template(path: Path) -> None:
    """Rename the key in place: same length, so nothing moves."""
    data = path.read_bytes()
    assert data.count(b"tokenizer.chat_template") == 1
    path.write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templato"))


@pytest.fixture(scope="session")
def stocked(tmp_path_factory) -> Iterator[Path]:
    """A SETTLE_HOME with models and an adapter, for the whole session."""
    home = tmp_path_factory.mktemp("serve") / "home"
    home.mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("SETTLE_HOME", str(home))
    add_adapter(home, "notes", fill_store(home))
    yield home
    patch.undo()


@pytest.fixture(scope="session")
def live(stocked) -> Iterator[Live]:
    """A server that all tests share."""
    with serving(stocked) as server:
        yield server


@pytest.fixture(autouse=True)
def at_home(stocked, monkeypatch):
    """Every test of this room sees the stocked home, whatever ran before."""
    monkeypatch.setenv("SETTLE_HOME", str(stocked))


@pytest.fixture(scope="session")
def thinker(stocked) -> str:
    """An adapter that brings the template of a model that reasons."""
    base = stocked / "models" / "tiny" / "tiny.gguf"
    add_adapter(stocked, "thinker", base, strength=0.01, metadata={"template": THINKING})
    return "tiny:thinker"

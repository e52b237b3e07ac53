"""Real clients, end to end, against `settle serve`: which of them work, and their versions.

    python bench/clients.py MODEL.gguf [--cn FILE] [--cline FILE] [--librechat FOLDER]
        [--open-webui VENV --playwright FOLDER]

The clients of Python (openai, anthropic, ollama, litellm) run in this process when they are installed. --cn, --cline:
the programs of @continuedev/cli and cline from npm, set up by `settle connect CLIENT --write` in a home of their own.
--librechat: a folder with @librechat/agents. --open-webui: a virtual environment with open-webui; a browser does what
a person would, driven by playwright-core of the folder --playwright. Page Assist is not packaged: its requests are
replayed with its Origin.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from settle.library.store import StoredModel, add_model

NODE = Path(__file__).parent / "node"
ORIGIN = "chrome-extension://jfgfiigpkhlkbnfnbobbkinehhfdhndo"
ASKED = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "name": "greet",
    "description": "greets a person",
    "parameters": {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Alan"]}},
        "required": ["name"],
        "additionalProperties": False,
    },
}


class Server(NamedTuple):
    address: str
    key: str
    environment: dict[str, str]


def openai_sdk(server: Server) -> str:
    import openai

    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=server.key) as client:
        assert [model.id for model in client.models.list()] == ["m"]
        whole = client.chat.completions.create(model="m", messages=ASKED, max_tokens=20)
        assert whole.choices[0].message.content
        with client.chat.completions.create(model="m", messages=ASKED, max_tokens=20, stream=True) as chunks:
            assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 1
        tools = [{"type": "function", "function": TOOL}]
        called = client.chat.completions.create(model="m", messages=ASKED, tools=tools, tool_choice="required")
        arguments = json.loads(called.choices[0].message.tool_calls[0].function.arguments)
        assert arguments["name"] in ("Ada", "Alan")
        assert client.responses.create(model="m", input="Say hello.", max_output_tokens=20, store=False).output_text
        assert len(client.embeddings.create(model="m", input=["a", "b"]).data) == 2
    return "chat, stream, tools, responses, embeddings, models"


def anthropic_sdk(server: Server) -> str:
    import anthropic

    with anthropic.Anthropic(base_url=server.address, api_key=server.key) as client:
        assert client.messages.create(model="m", max_tokens=20, messages=ASKED).content[0].text
        with client.messages.stream(model="m", max_tokens=20, messages=ASKED) as stream:
            assert sum(bool(text) for text in stream.text_stream) > 1
        mine = {"name": "greet", "description": "greets", "input_schema": TOOL["parameters"]}
        choice = {"type": "any"}
        called = client.messages.create(model="m", max_tokens=90, messages=ASKED, tools=[mine], tool_choice=choice)
        assert called.stop_reason == "tool_use" and called.content[-1].input["name"] in ("Ada", "Alan")
        assert client.messages.count_tokens(model="m", messages=ASKED).input_tokens > 1
    return "messages, stream, tools, count_tokens"


def ollama_client(server: Server) -> str:
    import ollama

    client = ollama.Client(host=server.address, headers={"Authorization": f"Bearer {server.key}"})
    options = {"num_predict": 20}
    assert client.list().models and client.show("m").capabilities
    assert client.chat("m", ASKED, options=options).message.content
    assert sum(bool(p.message.content) for p in client.chat("m", ASKED, options=options, stream=True)) > 1
    said = client.chat("m", ASKED, format=TOOL["parameters"]).message.content
    assert json.loads(said)["name"] in ("Ada", "Alan")
    assert client.generate("m", "One, two,", options=options).response and client.embed("m", "a").embeddings
    assert client.ps().models
    return "list, show, chat, stream, format, generate, embed, ps"


def litellm_client(server: Server) -> str:
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    import litellm

    told = {"api_base": f"{server.address}/v1", "api_key": server.key, "messages": ASKED, "max_tokens": 20}
    assert litellm.completion("openai/m", **told).choices[0].message.content
    pieces = litellm.completion("openai/m", stream=True, **told)
    assert sum(bool(piece.choices[0].delta.content) for piece in pieces) > 1
    told["api_base"] = server.address
    assert litellm.completion("anthropic/m", **told).choices[0].message.content
    return "openai/, stream, anthropic/"


def page_assist(server: Server) -> str:
    """Send requests as the extension makes them for an Ollama and for an OpenAI provider."""
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}

    def ask(path: str, body: Any = None, method: str = "GET") -> bytes:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(server.address + path, data, headers, method="POST" if data else method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            told: bytes = answer.read()
            return told

    assert ask("/") == b"Ollama is running"
    assert json.loads(ask("/api/tags"))["models"] and json.loads(ask("/api/version"))["version"]
    chat = {"model": "m", "messages": ASKED, "stream": True, "options": {"num_predict": 20}, "keep_alive": "5m"}
    assert ask("/api/chat", chat).count(b"\n") > 2
    assert json.loads(ask("/api/embed", {"model": "m", "input": ["a"]}))["embeddings"]
    assert json.loads(ask("/v1/models"))["data"]
    assert b"[DONE]" in ask("/v1/chat/completions", {"model": "m", "messages": ASKED, "max_tokens": 9, "stream": True})
    return "tags, chat, embed, models, chat completions, with its Origin"


def program(server: Server, name: str, command: list[str]) -> str:
    """Run a program of npm that `settle connect` has set up."""
    with tempfile.TemporaryDirectory() as home:  # of its own: what other programs left would be read too
        environment = server.environment | {"HOME": home}
        settle = [sys.executable, "-m", "settle", "connect", name, "--model", "m", "--write"]
        subprocess.run(settle, env=environment, check=True, capture_output=True)
        done = subprocess.run(
            [word.replace("{HOME}", home) for word in command],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=400,
        )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-300:] or done.stdout[-300:]
    return "set up by settle connect, one prompt answered"


def librechat(server: Server, folder: Path) -> str:
    command = ["node", str(NODE / "librechat.mjs"), f"{server.address}/v1", server.key, "m"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-300:]
    return "one turn, streamed"


def open_webui(server: Server, venv: Path, playwright: Path, picture: Path) -> str:
    """Its server, and a browser before it."""
    with tempfile.TemporaryDirectory() as data, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = {
            "DATA_DIR": data,
            "OFFLINE_MODE": "true",
            "WEBUI_AUTH": "False",
            "ENABLE_OLLAMA_API": "False",
            "OPENAI_API_BASE_URL": f"{server.address}/v1",
            "OPENAI_API_KEY": server.key,
            "WEBUI_SECRET_KEY": "bench",
            "SCARF_NO_ANALYTICS": "true",
            "DO_NOT_TRACK": "true",
            "ANONYMIZED_TELEMETRY": "false",
        }
        command = [str(venv / "bin" / "open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
        with open(Path(data, "log"), "wb") as log:
            served = subprocess.Popen(command, env=server.environment | settings, stdout=log, stderr=log)
        try:
            wait(f"http://127.0.0.1:{port}/health", served)
            drive = ["node", str(NODE / "open_webui.mjs"), f"http://127.0.0.1:{port}", "m", str(picture)]
            done = subprocess.run(drive, cwd=playwright, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stderr[-400:]
            return done.stdout.strip()
        finally:
            served.terminate()
            served.wait(20)


def wait(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


@contextlib.contextmanager
def serving(model: Path) -> Iterator[Server]:
    """`settle serve` with one model called m, in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"SETTLE_HOME": home, "HOME": home}
        add_model(StoredModel("m", "gguf", model, "", f"file:{model.name}"))
        command = [sys.executable, "-m", "settle", "serve", "--port", "0", "--allow-origin", ORIGIN]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                note = Path(home, "server", "running.json")
                while not note.exists():
                    time.sleep(0.05)
                key = Path(home, "server", "key").read_text().strip()
                yield Server(json.loads(note.read_text())["address"], key, dict(os.environ))
            finally:
                process.terminate()


def versions(name: str, given: argparse.Namespace) -> str:
    def of_npm(folder: Path, package: str) -> str:
        return str(json.loads((folder / "node_modules" / package / "package.json").read_text())["version"])

    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    if name in ("cn", "cline"):
        said = subprocess.run([getattr(given, name), "--version"], capture_output=True, text=True).stdout
        return said.strip().splitlines()[-1]
    if name == "open-webui":
        python = [
            str(given.open_webui / "bin" / "python"),
            "-c",
            "from importlib.metadata import *; print(version('open-webui'))",
        ]
        return subprocess.run(python, capture_output=True, text=True).stdout.strip()
    return of_npm(given.librechat, "@librechat/agents") if name == "@librechat/agents" else "1.0.9, replayed"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--cn")
    parser.add_argument("--cline")
    for option in ("--librechat", "--open-webui", "--playwright"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--picture", type=Path, default=Path("open-webui.png"))
    given = parser.parse_args()
    trials: dict[str, Callable[[Server], str]] = {
        "openai": openai_sdk,
        "anthropic": anthropic_sdk,
        "ollama": ollama_client,
        "litellm": litellm_client,
        "page-assist": page_assist,
    }
    if given.cn:
        config = "{HOME}/.continue/config.yaml"
        trials["cn"] = lambda server: program(server, "continue", [given.cn, "--config", config, "-p", "Say hello."])
    if given.cline:
        trials["cline"] = lambda server: program(server, "cline", [given.cline, "--json", "Say hello."])
    if given.librechat:
        trials["@librechat/agents"] = lambda server: librechat(server, given.librechat)
    if given.open_webui:
        picture = given.picture.absolute()
        trials["open-webui"] = lambda server: open_webui(server, given.open_webui, given.playwright, picture)
    print("| client | version | works | what was done |\n|---|---|---|---|")
    with serving(given.model.absolute()) as server:
        for name, trial in trials.items():
            try:
                row = f"yes | {trial(server)}"
            except Exception as e:  # noqa: BLE001  one client's failure is a row
                row = f"**no** | {type(e).__name__}: {str(e)[:300]}"
            print(f"| {name} | {versions(name, given)} | {row.replace(chr(10), ' ')} |", flush=True)


if __name__ == "__main__":
    main()

"""Clients of the server, one file each: how one is set up, and which requests it sends."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from settle.base.python_command import module_command
from settle.base.registry import Part
from settle.connect.config_files import ConfigFile, Entry

NO_KEY = "none"  # for clients that insist on a key where the server needs none


@dataclass(frozen=True)
class Connection:
    """What a client needs to know of a server.

    address: without /v1. capabilities, context: of the model. embedder: a model for embeddings on the same server,
    or "". origin: of a browser extension, where the user gave it. replaces: whether another server's entry may be
    replaced, where a client has room for one only."""

    address: str
    key: str
    model: str
    context: int = 0
    capabilities: tuple[str, ...] = ()
    embedder: str = ""
    origin: str = ""
    replaces: bool = False

    @property
    def openai(self) -> str:
        return f"{self.address}/v1"


@dataclass(frozen=True)
class ClientRequest:
    """One request as a client sends it. what: in words. expects: the kind of answer."""

    what: str
    path: str
    body: Mapping[str, object] | None = None
    expects: Literal["models", "chat", "stream", "text", "embeddings", "preflight", "messages", "responses"] = "stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = ""

    @property
    def verb(self) -> str:
        return self.method or ("GET" if self.body is None else "POST")


class Client(Part):
    """The contract of a client. about: in a few words. needs: tokens of context that it is useful with."""

    about: ClassVar[str] = ""
    needs: ClassVar[int] = 2048

    def files(self, connection: Connection) -> list[ConfigFile]:
        """Its configuration files; none where others cannot write them."""
        return []

    def steps(self, connection: Connection) -> str:
        """Environment, commands, a program, or what to click, for a person to follow. "" where the files are enough."""
        return ""

    def note(self, connection: Connection) -> str:
        """Return what the user should also know, or ""."""
        return ""

    def origins(self, connection: Connection) -> frozenset[str]:
        """Return the origins of browser extensions, which must be let in."""
        return frozenset()

    def document_files(self, command: Entry) -> list[ConfigFile]:
        """Its files with an MCP server that it starts by a command; none where others cannot write them."""
        return []

    def requests(self, connection: Connection) -> list[ClientRequest]:
        """Return the requests that it sends once it is set up."""
        raise NotImplementedError


def cli_name(name: str) -> str:
    """Return the name of a client's file as people write it, and the reverse."""
    return name.replace("_", "-") if "_" in name else name.replace("-", "_")


def documents_command(collections: Sequence[str]) -> Entry:
    """Return how `settle mcp` is started, wherever the client is: command, args and env."""
    command, *args = module_command("settle", "mcp", *collections)
    home = os.environ.get("SETTLE_HOME")
    return {"command": command, "args": args, "env": {"SETTLE_HOME": home} if home else {}}


def environment(*names: str) -> Path | None:
    """Return the first of these variables that is set, as a path."""
    value = next((os.environ[name].strip() for name in names if os.environ.get(name, "").strip()), None)
    return Path(value).expanduser() if value else None


def settings_home() -> Path:
    """Where desktop programs keep their settings on this system."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if os.name == "nt":
        return environment("APPDATA") or Path.home() / "AppData" / "Roaming"
    return environment("XDG_CONFIG_HOME") or Path.home() / ".config"


SHORT = 24  # tokens of an answer
QUESTION = "Say hello in one short sentence."


def tool(name: str, about: str, parameter: str, parameter_about: str) -> dict[str, object]:
    """Return a function with one text as its argument; coding agents have dozens of them."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": "string", "description": parameter_about}},
                "required": [parameter],
            },
        },
    }


def list_models(path: str = "/v1/models", **headers: str) -> ClientRequest:
    return ClientRequest("its list of models", path, expects="models", headers=_named(headers))


def chat(
    connection: Connection,
    what: str = "a chat",
    system: str = "",
    headers: Mapping[str, str] | None = None,
    **more: object,
) -> ClientRequest:
    """Return a chat, streamed unless `stream` is false. more: fields of the body."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": QUESTION})
    body: dict[str, object] = {
        "model": connection.model,
        "messages": messages,
        "stream": True,
        "max_tokens": SHORT,
    } | more
    return ClientRequest(what, "/v1/chat/completions", body, "stream" if body["stream"] else "chat", headers or {})


def embed(connection: Connection, what: str = "embeddings") -> list[ClientRequest]:
    """Empty where the server has no model for embeddings."""
    if not connection.embedder:
        return []
    body = {"model": connection.embedder, "input": ["a passage of a document"]}
    return [ClientRequest(what, "/v1/embeddings", body, "embeddings")]


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}

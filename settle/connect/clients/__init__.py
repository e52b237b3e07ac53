"""Clients of the server, one file each: how one is set up, and which requests it sends."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from settle.base.errors import SettleError
from settle.base.registry import Part

NO_KEY = "none"  # for clients that insist on a key where the server needs none


class CannotMerge(SettleError):
    """A client's file cannot be extended without losing content; `fix` is what to add by hand."""


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
class ConfigFile:
    """A file that a client reads.

    merged: takes its text, None where there is no file, and adds our part; raises CannotMerge. part: what is added, to
    show."""

    path: Path
    part: str
    merged: Callable[[str | None], str]


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

    def requests(self, connection: Connection) -> list[ClientRequest]:
        """Return the requests that it sends once it is set up."""
        raise NotImplementedError


def cli_name(name: str) -> str:
    """Return the name of a client's file as people write it, and the reverse."""
    return name.replace("_", "-") if "_" in name else name.replace("-", "_")


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

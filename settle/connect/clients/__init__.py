"""Programs that a person talks to models with, one file each: how one is set up, and what it asks of a server."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from settle.base.errors import SettleError
from settle.base.registry import Part

NO_KEY = "none"  # clients insist on a key where the server needs none


class CannotMerge(SettleError):
    """A file of a client's that cannot be extended and keep what is in it; `fix` is what to put there by hand."""


@dataclass(frozen=True)
class Connection:
    """A server as a client has to know it. address: without /v1. capabilities, context: of the model.
    embedder: a model on the same server that was made for embeddings, or "". origin: of a browser extension, as it was
    given. replaces: whether another server's entry may give way, where a client has room for one only."""

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
        """The base URL of OpenAI's API."""
        return f"{self.address}/v1"


@dataclass(frozen=True)
class ConfigFile:
    """A file that a client reads. merged: its text, None where there is none, with our part in it; raises CannotMerge.
    part: what is added, to be shown."""

    path: Path
    part: str
    merged: Callable[[str | None], str]


@dataclass(frozen=True)
class Ask:
    """One request as a client sends it. what: in words. expects: what the answer has to be."""

    what: str
    path: str
    body: dict[str, Any] | None = None
    expects: Literal["models", "chat", "stream", "text", "embeddings", "preflight"] = "stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = ""

    @property
    def verb(self) -> str:
        return self.method or ("GET" if self.body is None else "POST")


class Client(Part):
    """The contract of a client. about: in a few words. needs: tokens of context below which it is of little use."""

    about: ClassVar[str] = ""
    needs: ClassVar[int] = 2048

    def files(self, connection: Connection) -> list[ConfigFile]:
        """Its own configuration, none where it has no file that others could write."""
        return []

    def steps(self, connection: Connection) -> str:
        """Environment, commands, a program, or what to click: to be printed. "" where the file is everything."""
        return ""

    def note(self, connection: Connection) -> str:
        """What is to be known beside it, "" for nothing."""
        return ""

    def origins(self, connection: Connection) -> frozenset[str]:
        """Of browser extensions: they must be let in."""
        return frozenset()

    def requests(self, connection: Connection) -> list[Ask]:
        """What it asks once it is set up."""
        raise NotImplementedError


def spelled(name: str) -> str:
    """The name of a client's file as people write it, and the other way round."""
    return name.replace("_", "-") if "_" in name else name.replace("-", "_")


def environment(*names: str) -> Path | None:
    """The first of these variables that is set, as a path."""
    found = next((os.environ[name].strip() for name in names if os.environ.get(name, "").strip()), None)
    return Path(found).expanduser() if found else None


def settings_home() -> Path:
    """Where programs with a window keep their settings on this system."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if os.name == "nt":
        return environment("APPDATA") or Path.home() / "AppData" / "Roaming"
    return environment("XDG_CONFIG_HOME") or Path.home() / ".config"

"""What servers and `settle connect` tell each other, in home()/server: which server runs, and who else may ask."""

import json
import os
from pathlib import Path
from typing import Any

import psutil

from settle.base.errors import RunError
from settle.base.run import home, read_json, write_json


def note_server(address: str, needs_key: bool) -> None:
    """A server runs at this address. Where it cannot be written it must be said to `settle connect` by hand."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        write_json(_folder() / "running.json", {"address": address, "pid": os.getpid(), "needs_key": needs_key})
    except OSError:
        pass


def forget_server(address: str) -> None:
    """It has ended."""
    found = running_server()
    if found and found["address"] == address:
        (_folder() / "running.json").unlink(missing_ok=True)


def running_server() -> dict[str, Any] | None:
    """address, pid and needs_key of the server that was started last and still runs."""
    path = _folder() / "running.json"
    try:
        found = read_json(path) if path.exists() else None
    except (RunError, OSError):
        return None
    return found if isinstance(found, dict) and psutil.pid_exists(found.get("pid", -1)) else None


def allowed_origins() -> frozenset[str]:
    """Web pages and browser extensions that may ask, as `settle connect` noted them."""
    try:
        return frozenset(json.loads((_folder() / "origins.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return frozenset()


def allow_origins(origins: frozenset[str]) -> None:
    """These may ask from now on, and no others."""
    _folder().mkdir(parents=True, exist_ok=True)
    write_json(_folder() / "origins.json", sorted(origins))


def _folder() -> Path:
    return home() / "server"

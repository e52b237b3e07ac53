"""What `settle serve` and `settle connect` share, in home()/server: the server that runs, its key, allowed origins."""

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import NamedTuple

import psutil

from settle.base.errors import RunError, UsageError, cannot_write
from settle.base.files import home, parse_json, read_json, write_atomic, write_json

CLOCK_SECONDS = 2.0  # that two readings of when a process began may differ
VALID_KEY = re.compile(r"[\x21-\x7e]{16,256}")


class RunningServer(NamedTuple):
    address: str
    pid: int
    needs_key: bool
    started: float = 0.0  # seconds since the epoch, of its process: ids of processes are used again


def note_server(address: str, needs_key: bool) -> None:
    """Record that a server runs at this address. Where that fails, `settle connect` needs --address."""
    with contextlib.suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True)
        server = RunningServer(address, os.getpid(), needs_key, psutil.Process().create_time())
        write_json(_folder() / "running.json", server._asdict())


def forget_server(address: str) -> None:
    """Remove the record of a server that has ended."""
    server = running_server()
    if server and server.address == address:
        (_folder() / "running.json").unlink(missing_ok=True)


def running_server() -> RunningServer | None:
    """Return the server that was started last, if it still runs."""
    try:
        server = RunningServer(**read_json(_folder() / "running.json"))
        started = psutil.Process(server.pid).create_time()
        return server if abs(started - server.started) < CLOCK_SECONDS else None
    except (RunError, OSError, psutil.Error, TypeError, ValueError):
        return None


def key_file() -> Path:
    return _folder() / "key"


def server_key(create: bool = True) -> str | None:
    """Return the key that requests to this machine's server must carry, readable by its owner only.

    create: make a key when there is none; otherwise return None. Raises ResourceError, and UsageError when others can
    read the file.
    """
    path = key_file()
    try:
        if not path.exists():
            if not create:
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            before = os.umask(0o077)  # others must not be able to read it for even a moment
            try:
                write_atomic(path, f"sk-settle-{secrets.token_urlsafe(24)}\n")
            finally:
                os.umask(before)
        if os.name != "nt" and path.stat().st_mode & 0o077:
            fix = f"run `chmod 600 {path}`, or better delete it: a new key is made"
            raise UsageError(f"other users can read {path}", fix)
        key = path.read_text(encoding="utf-8").strip()
    except OSError as e:
        raise cannot_write(path, e) from None
    if not VALID_KEY.fullmatch(key):
        raise UsageError(f"{path} holds no valid key", "delete it: a new key is made")
    return key


def allowed_origins() -> frozenset[str]:
    """Web pages and browser extensions that may send requests, as `settle connect` recorded them."""
    try:
        return frozenset(parse_json((_folder() / "origins.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return frozenset()


def allow_origins(origins: frozenset[str]) -> None:
    """Allow these origins to send requests, and no others."""
    _folder().mkdir(parents=True, exist_ok=True)
    write_json(_folder() / "origins.json", sorted(origins))


def client_names() -> dict[str, str]:
    """Names that clients gave to adapters → ids of the adapters. Empty when the file is missing or damaged."""
    try:
        names = parse_json((_folder() / "aliases.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(target) for name, target in names.items()} if isinstance(names, dict) else {}


def _folder() -> Path:
    return home() / "server"

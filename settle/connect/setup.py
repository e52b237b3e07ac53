"""What `settle connect` does: a server's models, a client's files written and taken back, and its requests tried."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settle.base.errors import ResourceError, RunError, UsageError
from settle.base.run import home, read_json, write_atomic
from settle.base.server_state import allow_origins, allowed_origins
from settle.connect.clients import Ask, ConfigFile, Connection

SECONDS = 600.0  # that an answer may take: the model may have to be loaded first
LIST_SECONDS = 30.0
LONGEST_SAID = 300


@dataclass(frozen=True)
class Tried:
    """What came of one request. why: it failed, "" when it did not."""

    what: str
    seconds: float
    why: str = ""

    @property
    def passed(self) -> bool:
        return not self.why


def served_models(address: str, key: str) -> list[dict[str, Any]]:
    """The models that a server lists. Raises RunError when there is no server, or it does not let us in."""
    try:
        status, _, body = _send(Connection(address, key, ""), Ask("", "/v1/models", expects="models"), LIST_SECONDS)
    except (OSError, http.client.HTTPException) as e:
        raise RunError(f"nobody answers at {address}: {_reason(e)}", "start a server: `settle serve`") from None
    if status in (401, 403):
        raise RunError(f"the server at {address} does not let us in: {_said(body)}", "give its key with --key")
    try:
        models: list[dict[str, Any]] = json.loads(body)["data"]
        if status != 200 or not all(isinstance(model["id"], str) for model in models):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"what answers at {address} is no server of OpenAI's API: {status} {_said(body)}", "check --address"
        ) from None
    return models


def try_out(connection: Connection, ask: Ask) -> Tried:
    """Send one request as the client would."""
    begun = time.monotonic()
    try:
        status, headers, body = _send(connection, ask)
        why = _complaint(ask, status, headers, body)
    except (OSError, http.client.HTTPException) as e:
        why = _reason(e)
    return Tried(ask.what, time.monotonic() - begun, why)


def save(name: str, files: list[ConfigFile], origins: frozenset[str]) -> list[Path]:
    """A client's files with our part in them, and its origins let in. What was there before is kept for `undo`.
    Raises CannotMerge, ResourceError, and RunError when another file of the same client can still be undone."""
    record = _record(name)
    if record and [entry["path"] for entry in record["files"]] != [str(file.path.resolve()) for file in files]:
        raise RunError(
            f"settings of {name} lie elsewhere too: {', '.join(e['path'] for e in record['files']) or 'none'}",
            f"`settle connect {name} --undo` first",
        )
    known = {entry["path"]: entry for entry in record["files"]} if record else {}
    entries, texts = [], []
    for file in files:
        path = file.path.resolve()  # what a link leads to: a link must stay one
        there = _bytes(path)
        text = file.merged(_text(path, there)).encode()
        before = known.get(str(path))
        if before is None or there is None or _hash(there) != before["wrote"]:
            before = {"path": str(path), "before": there and base64.b64encode(there).decode(), "mode": _mode(path)}
            before["made"] = [str(folder) for folder in path.parents if not folder.exists()]
        entries.append(before | {"wrote": _hash(text)})
        texts.append((path, text))
    fresh = origins - allowed_origins()
    kept = {"files": entries, "origins": sorted(fresh.union(record["origins"] if record else ()))}
    _write_private(_record_path(name), json.dumps(kept, indent=1).encode())
    for path, text in texts:
        _write_private(path, text)
    if fresh:
        allow_origins(allowed_origins() | fresh)
    return [path for path, _ in texts]


def undo(name: str, force: bool) -> list[str]:
    """What `save` did is taken back; what was done, in words. Raises UsageError when there is nothing to undo, and
    RunError when a file was changed since, unless `force`."""
    record = _record(name)
    if record is None:
        raise UsageError(f"there is nothing of {name} to undo", "`settle connect` lists what was connected")
    changed = [entry["path"] for entry in record["files"] if not force and not _is_ours(entry)]
    if changed:
        raise RunError(
            f"{', '.join(changed)} was changed since, so it stays as it is",
            "take the entry `settle` out by hand, or --force, which brings back what was there before",
        )
    told = [_restored(entry) for entry in record["files"]]
    if record["origins"]:
        allow_origins(allowed_origins() - set(record["origins"]))
        told.append(f"{', '.join(record['origins'])} may no longer ask")
    _record_path(name).unlink()
    return told


def is_connected(name: str) -> bool:
    """Whether `save` did something that was not undone."""
    return _record_path(name).exists()


def _restored(entry: dict[str, Any]) -> str:
    path = Path(entry["path"])
    if entry["before"] is None:
        path.unlink(missing_ok=True)
        for folder in entry["made"]:
            with contextlib.suppress(OSError):  # there is something else in it by now
                Path(folder).rmdir()
        return f"{path} is gone, as it was before"
    _write_private(path, base64.b64decode(entry["before"]))
    if os.name != "nt":
        path.chmod(entry["mode"])
    return f"{path} is as it was before"


def _is_ours(entry: dict[str, Any]) -> bool:
    """Whether a file is still as we wrote it, or was never written because we were interrupted."""
    there = _bytes(Path(entry["path"]))
    before = None if entry["before"] is None else base64.b64decode(entry["before"])
    return there == before or (there is not None and _hash(there) == entry["wrote"])


def _record_path(name: str) -> Path:
    return home() / "server" / "undo" / f"{name}.json"


def _record(name: str) -> dict[str, Any] | None:
    path = _record_path(name)
    found: dict[str, Any] | None = read_json(path) if path.exists() else None
    return found


def _write_private(path: Path, data: bytes) -> None:
    """Readable by its owner only, from the first moment on: there is a key in it."""
    before = os.umask(0o077)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror}", "make room or permission there") from None
    finally:
        os.umask(before)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as e:
        raise ResourceError(f"cannot read {path}: {e.strerror}", "check what is there") from None


def _text(path: Path, data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        raise ResourceError(f"{path} is no text in UTF-8", "save it as UTF-8") from None


def _mode(path: Path) -> int | None:
    return path.stat().st_mode & 0o7777 if path.exists() else None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Straight(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: the key must not go to where it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _send(connection: Connection, ask: Ask, seconds: float = SECONDS) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by small name, body. Raises OSError, HTTPException."""
    headers = {"User-Agent": "settle-connect"} | dict(ask.headers)
    if connection.key and ask.expects != "preflight":
        headers["Authorization"] = f"Bearer {connection.key}"
    data = None
    if ask.body is not None:
        data, headers["Content-Type"] = json.dumps(ask.body).encode(), "application/json"
    request = urllib.request.Request(connection.address + ask.path, data, headers, method=ask.verb)
    opener = urllib.request.build_opener(_Straight, urllib.request.ProxyHandler({}))  # no proxy leads to this machine
    try:
        with opener.open(request, timeout=seconds) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, {name.lower(): value for name, value in e.headers.items()}, e.read()


def _complaint(ask: Ask, status: int, headers: dict[str, str], body: bytes) -> str:
    """What is wrong with an answer, or ""."""
    if ask.expects == "preflight":
        allowed = headers.get("access-control-allow-origin") == ask.headers["Origin"]
        return "" if status == 204 and allowed else f"{status}: {_said(body)}"
    if status != 200:
        return f"{status}: {_said(body)}"
    try:
        if ask.expects in ("stream", "text"):
            return _stream_complaint(body, is_chat=ask.expects == "stream")
        told = json.loads(body)
        found = {
            "models": lambda: told["data"][0]["id"],
            "chat": lambda: told["choices"][0]["finish_reason"],
            "embeddings": lambda: told["data"][0]["embedding"],
        }[ask.expects]()
        return "" if found else f"the answer lacks what it should have: {_said(body)}"
    except (ValueError, KeyError, IndexError, TypeError):
        return f"the answer is not of the form expected: {_said(body)}"


def _stream_complaint(body: bytes, is_chat: bool) -> str:
    lines = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        return f"the stream breaks off: {_said(body)}"
    chunks = [json.loads(line) for line in lines[:-1]]
    broken = next((chunk["error"] for chunk in chunks if "error" in chunk), None)
    if broken:
        return str(broken.get("message", broken))[:LONGEST_SAID]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    if is_chat and not any(choice.get("delta") for choice in choices):
        return "the stream has no answer in it"
    return "" if any(choice.get("finish_reason") for choice in choices) else "the stream does not say why it ended"


def _said(body: bytes) -> str:
    """The server's own words."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(body)["error"]["message"])[:LONGEST_SAID]
    return body[:LONGEST_SAID].decode("utf-8", "replace").strip()


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__

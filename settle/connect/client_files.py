"""A client's files with our entry in them, and restored: what was there before is kept in home()/server/undo."""

import base64
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from settle.base.errors import ResourceError, RunError, UsageError, cannot_write
from settle.base.files import home, read_json, write_atomic
from settle.base.server_state import allow_origins, allowed_origins
from settle.connect.config_files import ConfigFile

# What was done for a client: `origins` that were let in, and `files`. Each of these has its `path`; `before`, the old
# content in base64, None where there was no file; `mode`, its permissions; `made`, folders that we made; and `wrote`,
# the sha256 of what we wrote.
_Record = dict[str, Any]
MCP = ".mcp"  # after a client's name: what was done for it to start `settle mcp`


def save(name: str, files: list[ConfigFile], origins: frozenset[str]) -> list[Path]:
    """Write our part into a client's files, and let its origins in.

    What was there before is kept for `undo`. Raises CannotMerge, ResourceError, and RunError when another file of
    the same client can still be undone."""
    record = _read_record(name)
    if record and [saved["path"] for saved in record["files"]] != [str(file.path.resolve()) for file in files]:
        places = ", ".join(saved["path"] for saved in record["files"]) or "none"
        raise RunError(
            f"settings of {name} are elsewhere too: {places}",
            f"run `settle connect {name.removesuffix(MCP)} --undo` first",
        )
    known = {saved["path"]: saved for saved in record["files"]} if record else {}
    saved_files: list[_Record] = []
    texts: list[tuple[Path, bytes]] = []
    for file in files:
        path = file.path.resolve()  # where a link leads: the link itself must stay one
        current = _read(path)
        text = file.merged(_text(path, current)).encode()
        saved = known.get(str(path))
        if saved is None or current is None or _hash(current) != saved["wrote"]:
            saved = {
                "path": str(path),
                "before": None if current is None else base64.b64encode(current).decode(),
                "mode": _mode(path),
                "made": [str(folder) for folder in path.parents if not folder.exists()],
                "wrote": "",
            }
        saved_files.append(saved | {"wrote": _hash(text)})
        texts.append((path, text))
    new_origins = origins - allowed_origins()
    all_origins = sorted(new_origins.union(record["origins"] if record else ()))
    content = json.dumps({"files": saved_files, "origins": all_origins}, indent=1)
    _write_private(_record_path(name), content.encode())
    for path, text in texts:
        _write_private(path, text)
    if new_origins:
        allow_origins(allowed_origins() | new_origins)
    return [path for path, _ in texts]


def undo(name: str, force: bool) -> list[str]:
    """Undo what `save` did; return what was done, in words.

    Raises UsageError when there is nothing to undo, and RunError when a file was changed since, unless `force`."""
    record = _read_record(name)
    if record is None:
        raise UsageError(f"there is nothing to undo for {name}", "`settle connect` lists what is connected")
    changed = [saved["path"] for saved in record["files"] if not force and not _is_as_written(saved)]
    if changed:
        raise RunError(
            f"{', '.join(changed)} was changed since, so it is left alone",
            "remove the entry `settle` by hand, or give --force, which restores the old file",
        )
    done = [_restore(saved) for saved in record["files"]]
    if record["origins"]:
        allow_origins(allowed_origins() - set(record["origins"]))
        done.append(f"no longer allowed: {', '.join(record['origins'])}")
    _record_path(name).unlink()
    return done


def is_connected(name: str) -> bool:
    """Return whether `save` did something that was not undone."""
    return _record_path(name).exists()


def saved_names(name: str) -> list[str]:
    """Return what `save` did for a client and for its MCP server, the newest first: both may be in one file."""
    there = [_record_path(one) for one in (name, name + MCP) if is_connected(one)]
    return [path.stem for path in sorted(there, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def _restore(saved: _Record) -> str:
    path = Path(saved["path"])
    if saved["before"] is None:
        path.unlink(missing_ok=True)
        for folder in saved["made"]:
            with contextlib.suppress(OSError):  # it holds something else by now
                Path(folder).rmdir()
        return f"{path} is removed, as before"
    _write_private(path, base64.b64decode(saved["before"]))
    if os.name != "nt" and saved["mode"] is not None:
        path.chmod(saved["mode"])
    return f"{path} is restored"


def _is_as_written(saved: _Record) -> bool:
    """Return whether a file is still as we wrote it, or was never written because we were interrupted."""
    current = _read(Path(saved["path"]))
    before = None if saved["before"] is None else base64.b64decode(saved["before"])
    return current == before or (current is not None and _hash(current) == saved["wrote"])


def _record_path(name: str) -> Path:
    return home() / "server" / "undo" / f"{name}.json"


def _read_record(name: str) -> _Record | None:
    path = _record_path(name)
    record: _Record | None = read_json(path) if path.exists() else None
    return record


def _write_private(path: Path, data: bytes) -> None:
    """Readable by its owner only, from the first moment on: there is a key in it."""
    before = os.umask(0o077)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as e:
        raise cannot_write(path, e) from None
    finally:
        os.umask(before)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as e:
        raise ResourceError(f"cannot read {path}: {e.strerror}", "check what is there") from None


def _text(path: Path, data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        raise ResourceError(f"{path} is not UTF-8 text", "save it as UTF-8") from None


def _mode(path: Path) -> int | None:
    return path.stat().st_mode & 0o7777 if path.exists() else None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

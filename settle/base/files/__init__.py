"""Files that are written whole or not at all, JSON that anyone may have written, and the folder that is settle's own.

Events, ledgers, answers, measurements and votes are kept in append-only files of JSON lines: a line that a crash or a
full disk cut off is ended before the next one is written, and passed over when read.

Nothing is imported here but Python's own library: child processes start with it.
"""

import contextlib
import errno
import functools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from settle.base.errors import RunError, UsageError, cannot_write

JsonObject = Mapping[str, Any]  # that anyone may have written
MOST_CHARACTERS = 1 << 20  # of a recipe, a template or a list of questions
MOST_LISTED = 30  # names that are proposed for what is typed
REPLACE_TRIES, REPLACE_SECONDS = 40, 0.05  # of a file that another program has open


def home() -> Path:
    """Where everything of settle's lives: $SETTLE_HOME, or ~/.settle."""
    folder = Path(os.environ.get("SETTLE_HOME") or Path.home() / ".settle").expanduser()
    _make_private(folder, is_own=not os.environ.get("SETTLE_HOME"))
    return folder


@functools.cache
def _make_private(folder: Path, is_own: bool) -> None:
    """Let nobody else on this machine read documents, conversations and training data.

    is_own: an earlier settle made the folder, perhaps for all to read. One that was there and was named by SETTLE_HOME,
    as one that a group shares, keeps its permissions.
    """
    with contextlib.suppress(OSError, RuntimeError):  # whoever writes there next says what is wrong
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_own and folder.stat().st_mode & 0o077:
            folder.chmod(0o700)


def read_bounded(path: Path, most: int = MOST_CHARACTERS, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Return the text of a file that the user named, which may be a device without an end.

    Raises OSError, with EFBIG where it has more than `most` characters, and UnicodeDecodeError.
    """
    with path.open(encoding=encoding, errors=errors) as f:
        text = f.read(most + 1)
    if len(text) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MB", str(path))
    return text


def read_object(path: Path, what: str) -> JsonObject:
    """Read a JSON file of the user's that holds an object. what: it is, for errors. Raises UsageError."""
    try:
        value = json.loads(read_bounded(path))
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}", f"give a file with {what}") from None
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} is no JSON: {str(e)[:100]}", f"write {what} as JSON") from None
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{path} holds no object", f"give a file with {what}")
    return value


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write beside, fsync, rename, fsync the folder: a reader sees the old file or the new one, never a part.

    Text is UTF-8. What is left in it of a name that is not (JSON holds it as an escape) never costs the file.
    Raises OSError that names the path, ENOSPC when the disk is full.
    """
    # threads and processes may write the same file at once
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with beside.open("wb") as f:
            f.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        _replace(beside, path)
        fsync_folder(path.parent)
    except BaseException as e:
        beside.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.filename is None:
            e.filename = str(path)  # a full disk does not say of itself where it is full
        raise


def _replace(source: Path, target: Path) -> None:
    """Rename a file over another one. Windows refuses as long as anybody reads that one: for a moment, usually."""
    for _ in range(REPLACE_TRIES if os.name == "nt" else 0):
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(REPLACE_SECONDS)
    source.replace(target)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, default=str, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON of a run's file. Raises RunError when it was damaged by hand."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise RunError(f"{path} is damaged: {e}", "restore the file, or start a new run") from None


def parse_json(text: str | bytes) -> Any:
    """JSON that anyone may have written. Raises JSONDecodeError, a ValueError, also where it is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deep", "", 0) from None


def sweep_leftovers(folder: Path, prefix: str) -> None:
    """Delete what killed processes left in a folder: what is called `prefix`, the process's number, and a sign.

    What a living process is working on stays.
    """
    import psutil  # takes as long to import as the rest of this room

    for path in folder.iterdir() if folder.is_dir() else ():
        found = re.match(rf"{re.escape(prefix)}(\d+)\b", path.name)
        if found and not psutil.pid_exists(int(found[1])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (POSIX only: Windows cannot open a folder)."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- append-only files of JSON lines ---


def append_lines(path: Path, records: Iterable[JsonObject], sync: bool = False, then: str = "") -> None:
    """Append records, a line each, and make the folder where there is none.

    sync: they survive a power cut. then: what to do once there is room, see `cannot_write`. Raises ResourceError.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as f:
            f.write(b"\n" * _is_torn(path) + lines.encode("utf-8", "backslashreplace"))
            f.flush()
            if sync:
                os.fsync(f.fileno())
    except OSError as e:
        raise cannot_write(path, e, then) from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file in order; none where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as f:
        for line in f:
            record = parse_line(line)
            if record is not None:
                yield record


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Return the record that a line holds; None for a torn line, and for JSON that is no object."""
    try:
        record = parse_json(line if isinstance(line, str) else line.decode("utf-8", "replace"))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def end_torn_line(path: Path) -> None:
    """End the last line of a file where it was cut off, so that the next one begins on its own."""
    if _is_torn(path):
        with path.open("ab") as f:
            f.write(b"\n")


def _is_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as f:
        f.seek(-1, os.SEEK_END)
        return f.read() != b"\n"


def paths_from(typed: str) -> list[str]:
    """Return a few files and folders whose path begins with what is typed, those of the home folder at first."""
    start = Path(typed or "~/").expanduser()
    folder = start if typed.endswith("/") or not typed else start.parent
    try:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        named = [path for path in found if str(path).startswith(str(start)) and not path.name.startswith(".")]
        return [f"{path}/" if path.is_dir() else str(path) for path in named[:MOST_LISTED]]
    except OSError:
        return []

"""Append-only files of JSON lines: events, ledgers, answers, measurements and votes are kept in them.

A line that a crash or a full disk cut off is ended before the next one is written, and passed over when read.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from settle.base.errors import cannot_write
from settle.base.files import parse_json


def append_lines(path: Path, records: Iterable[Mapping[str, object]], sync: bool = False, then: str = "") -> None:
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


def read_lines(path: Path) -> Iterator[dict[str, object]]:
    """Yield the records of a file in order; none where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as f:
        for line in f:
            record = parse_line(line)
            if record is not None:
                yield record


def parse_line(line: str | bytes) -> dict[str, object] | None:
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

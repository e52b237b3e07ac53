"""The only channel between work and faces: an append-only file of JSON lines, and listeners.

A file begins with an `opened` line that names the version of the format.
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pydantic import TypeAdapter, ValidationError

from settle.base.errors import RunError
from settle.base.events import VERSION, Event, Opened, Progress
from settle.base.files import JsonObject, end_torn_line, parse_line, read_lines

PROGRESS_SECONDS = 1.0  # between two lines of how far a piece of work is

Listener = Callable[[Event], None]


class Events:
    """Appends events to `path` (when given) and passes each to the listeners."""

    def __init__(self, path: Path | None = None, listeners: Sequence[Listener] = ()) -> None:
        self.path = path
        self.listeners = list(listeners)
        self._file: TextIO | None = None
        self._progress_at = 0.0

    def emit(self, event: Event) -> None:
        """Write one event. A full disk loses events and not the run: the checkpoint is what pauses that.

        Steps are frequent and cheap to lose, so lines are flushed to the system but not fsynced.
        """
        if self.path is not None:
            self._append(self.path, event)
        for listener in self.listeners:
            listener(event)

    def _append(self, path: Path, event: Event) -> None:
        """Write one line to the file; of progress, one a second."""
        if isinstance(event, Progress):
            if event.time - self._progress_at < PROGRESS_SECONDS and event.done != event.total:
                return
            self._progress_at = event.time
        try:
            if self._file is None:
                end_torn_line(path)
                self._file = path.open("a", encoding="utf-8")
                self._file.write(_line(Opened()))
            self._file.write(_line(event))
            self._file.flush()
        except OSError:
            self._drop()

    def move_to(self, path: Path) -> None:
        """From now on append to `path`; what the listeners got before is not written again."""
        self.close()
        self.path = path

    def close(self) -> None:
        self.path = None
        self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what was not written is lost
                self._file.close()
            self._file = None


def to_record(event: Event) -> JsonObject:
    """Return an event as its line in the file: time and kind first, numbers of other libraries made plain."""
    record = event.model_dump()
    return {"time": record.pop("time"), "kind": record.pop("kind"), **record}


def read_records(path: Path) -> Iterator[JsonObject]:
    """Yield the lines of a file in order, as plain objects; a torn line (a crash in mid-write) is passed over.

    Raises RunError when a newer settle wrote the file.
    """
    for record in read_lines(path):
        version = record.get("version")
        if record.get("kind") == "opened" and isinstance(version, int) and version > VERSION:
            raise RunError(
                f"{path} was written by settle {record.get('settle')} (events of version {version}); "
                f"this settle reads version {VERSION}",
                "pip install --upgrade settle-lm",
            )
        if "kind" in record:
            yield record


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file in order; one of an unknown kind is passed over. Raises RunError as `read_records`."""
    yield from (event for record in read_records(path) if (event := to_event(record)) is not None)


def to_event(record: JsonObject) -> Event | None:
    """Return a line of the file as an event; None when its kind or its fields are not those of one."""
    try:
        return _adapter().validate_python(record)
    except ValidationError:
        return None


def tail(path: Path, num_bytes: int) -> list[Event]:
    """Return the events in the last `num_bytes` of a file, which may be too long to read for a list."""
    if not path.exists():
        return []
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - num_bytes))
        lines = f.read().splitlines()
    records = [record for line in lines if (record := parse_record(line)) is not None]
    return [event for record in records if (event := to_event(record)) is not None]


def parse_record(line: str | bytes) -> JsonObject | None:
    """Return a line of the file as a plain object; None when it is torn, or no event."""
    record = parse_line(line)
    return record if record is not None and "kind" in record else None


@functools.cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Event)


def _line(event: Event) -> str:
    record = to_record(event)
    try:
        return json.dumps(record, default=_plain, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(record), default=_plain) + "\n"


def _plain(value: object) -> object:
    """Convert what JSON does not know: numpy and torch scalars, paths."""
    for method in ("item", "tolist"):
        if hasattr(value, method):
            plain: object = getattr(value, method)()
            return plain
    return str(value)


def _finite(value: object) -> object:
    """Replace what JSON has no number for, such as NaN, by a string that says so."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value

"""The only channel between work and faces: an append-only file of JSON lines, and listeners."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

Event = dict[str, Any]


class Events:
    """Appends events to `path` (when given) and hands each to the listeners."""

    def __init__(self, path: Path | None = None, listeners: Sequence[Callable[[Event], None]] = ()) -> None:
        self.path = path
        self.listeners = list(listeners)
        self._file: TextIO | None = None

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event with the time in epoch seconds. A full disk loses events and not the run: see `_append`.

        Steps are frequent and cheap to lose, so lines are flushed to the system but not fsynced.
        """
        event: Event = {"time": time.time(), "kind": kind, **fields}
        if self.path is not None:
            self._append(event)
        for listener in self.listeners:
            listener(event)

    def _append(self, event: Event) -> None:
        """One line to the file. Where it cannot be written it is lost: it is the checkpoint that pauses the run."""
        assert self.path is not None
        try:
            line = json.dumps(event, default=_plain, allow_nan=False)
        except ValueError:
            line = json.dumps(_finite(event), default=_plain)
        try:
            if self._file is None:
                _end_torn_line(self.path)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(line + "\n")
            self._file.flush()
        except OSError:
            self._drop()

    def move_to(self, path: Path) -> None:
        """From now on append to `path`; what the listeners heard before is not written again."""
        self.close()
        self.path = path

    def close(self) -> None:
        self.path = None
        self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # what was not written is lost, see `_append`
            self._file = None


def read_events(path: Path) -> Iterator[Event]:
    """The events of a file in order. A torn line (a crash in mid-write) is passed over."""
    if not path.exists():
        return
    with path.open("r", encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and "kind" in event:
                yield event


def _end_torn_line(path: Path) -> None:
    """If the last line was cut by a crash, end it, so that the next event starts on its own line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as f:
        f.seek(-1, 2)
        if f.read(1) != b"\n":
            f.write(b"\n")


def _plain(value: Any) -> Any:
    """numpy and torch scalars, paths: what JSON does not know."""
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes a string that says so."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value

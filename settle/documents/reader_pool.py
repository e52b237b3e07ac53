"""Documents read in a child process, ahead of the work on those before them."""

import contextlib
import json
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from settle.base.errors import UsageError
from settle.base.line_child import LineChild
from settle.base.python_command import module_command
from settle.documents.blocks import Block, Place
from settle.documents.confine import roots_as
from settle.documents.reader_child import Request
from settle.documents.readers import Reader

SECONDS = 120.0  # that one document may take
AHEAD = 4 << 20  # characters that are read before they are needed; the last document may exceed them
_EACH = 1 << 10  # characters that a document counts for beside its text


@dataclass(frozen=True)
class Read:
    """A document's blocks, notes on what was left out, and why it is unreadable, or ""."""

    path: Path
    blocks: list[Block]
    notes: tuple[str, ...]
    error: str


def reader_of(name: str) -> str | None:
    """Return the reader of a file of that name: by its suffix, or by the word that it begins with."""
    path = PurePath(name.lower())
    return _readers().get(path.suffix or path.name.split("-")[0])


@cache
def _readers() -> dict[str, str]:
    """Reader by suffix, with its dot, and by file name."""
    known: dict[str, str] = {}
    for reader, kind in Reader.parts().items():
        known |= dict.fromkeys((*kind.suffixes, *kind.names), reader)
    return known


def read_all(
    paths: Iterable[tuple[Path, str]], seconds: float = SECONDS, roots: Iterable[Path | str] | None = None
) -> Generator[Read, None, None]:
    """Read each (path, reader), in order. Closing the iterator ends the child.

    seconds: how long one may take. roots: files and folders that the documents lie in; on Linux the child can read no
    others. Raises UsageError when a library is missing that a reader needs.
    """
    child, ahead = _Child(seconds, roots_as(roots)), _Queue()

    def work() -> None:
        try:
            for path, reader in paths:
                if not ahead.put(child.read(path, reader)):
                    return
            ahead.put(None)
        except BaseException as e:  # noqa: BLE001  raised again below, in the thread that asked
            ahead.put(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (document := ahead.get()) is not None:
            if isinstance(document, BaseException):
                raise document
            yield document
    finally:
        ahead.stop()
        child.close()
        thread.join()


class _Queue:
    """A queue of documents read ahead, bounded by their text: many small files wait here, or one large one."""

    def __init__(self) -> None:
        self._documents: deque[Read | BaseException | None] = deque()
        self._size = 0
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, document: Read | BaseException | None) -> bool:
        """Wait for room; return False when nothing is needed any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._size < AHEAD)
            self._documents.append(document)
            self._size += _size(document)
            self._changed.notify_all()
            return not self._stopped

    def get(self) -> Read | BaseException | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._documents))
            document = self._documents.popleft()
            self._size -= _size(document)
            self._changed.notify_all()
            return document

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _size(document: Read | BaseException | None) -> int:
    return _EACH + sum(len(block.text) for block in document.blocks) if isinstance(document, Read) else 0


class _Child:
    """The process that reads: started for the first document, and again after it had to be ended."""

    def __init__(self, seconds: float, roots: str) -> None:
        self._seconds = seconds
        self._child = LineChild(module_command("settle.documents.reader_child", roots))

    def read(self, path: Path, reader: str) -> Read:
        """Return a document. Raises UsageError for a library that is missing."""
        request: Request = {"path": str(path), "reader": reader, "seconds": self._seconds}
        blocks: list[Block] = []
        notes: list[str] = []
        with contextlib.closing(self._child.lines(json.dumps(request).encode(), self._seconds)) as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                kind, *rest = json.loads(line)
                if kind == "block":
                    block_kind, text, place, level, lined, header = rest
                    blocks.append(Block(block_kind, text, Place(*place), level, lined, header))
                elif kind == "note":
                    notes.append(rest[0])
                elif kind == "missing":
                    raise UsageError(f"reading {path.name} needs {rest[0]}", "pip install 'settle-lm[rag]'")
                else:
                    error, continues = rest
                    if not continues or self._child.is_late:
                        self._child.close()
                    return Read(path, [] if error else blocks, tuple(notes), error)
        return Read(path, [], (), self._cause())

    def close(self) -> None:
        """End the process for good, also in the middle of a document that another thread waits for."""
        self._child.close(is_over=True)

    def _cause(self) -> str:
        """Return why a document is unreadable whose reader died."""
        code = self._child.exit_code()
        if self._child.is_late:
            return f"reading it takes more than {self._seconds:.0f} s"
        if code is None:
            return "reading was ended"
        return _cause(code)


def _cause(code: int) -> str:
    """Return why a reader died. code: as subprocess reports it."""
    if code >= 0:
        return "its reader ended without a word"
    name = signal.Signals(-code).name
    return "its reader was ended from outside: no memory left?" if name == "SIGKILL" else f"its reader crashed ({name})"

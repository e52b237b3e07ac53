"""Documents read in a child process, ahead of the work on those before them."""

import contextlib
import json
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from settle.base.child.python_command import module_command
from settle.base.errors import UsageError
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
    """The reader of a file of that name: by its suffix, or by the word that it begins with."""
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
    """Reads each (path, reader), in order; seconds: how long one may take. roots: files and folders that the documents
    lie in; on Linux the child can read no others. Closing the iterator ends the child.

    Raises UsageError when a library is missing that a reader needs.
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
        """Waits for room. False when nothing is needed any more."""
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
        self._seconds, self._roots = seconds, roots
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def read(self, path: Path, reader: str) -> Read:
        process = self._started()
        if process is None:
            return Read(path, [], (), "reading was ended")
        late = threading.Event()
        timer = threading.Timer(self._seconds, _kill_late, (process, late))
        timer.start()
        try:
            document, continues = _answer(
                process, path, {"path": str(path), "reader": reader, "seconds": self._seconds}
            )
        except (BrokenPipeError, json.JSONDecodeError, EOFError):
            self._end()
            why = f"reading it takes more than {self._seconds:.0f} s" if late.is_set() else _cause(process.wait())
            return Read(path, [], (), why)
        finally:
            timer.cancel()
        if late.is_set() or not continues:
            self._end()
        return document

    def close(self) -> None:
        """Ends the process for good, also in the middle of a document that another thread waits for."""
        with self._lock:
            self._closed = True
        self._end()

    def _started(self) -> "subprocess.Popen[str] | None":
        with self._lock:
            if self._process is None and not self._closed:
                self._process = subprocess.Popen(
                    module_command("settle.documents.reader_child", self._roots),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    encoding="utf-8",
                    process_group=0,  # Ctrl-C is for us: we end it
                )
            return self._process

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


def _kill_late(process: "subprocess.Popen[str]", late: threading.Event) -> None:
    late.set()
    process.kill()


def _answer(process: "subprocess.Popen[str]", path: Path, request: Request) -> tuple[Read, bool]:
    """The document, and whether the process can read another one. Raises EOFError when it dies."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    blocks: list[Block] = []
    notes: list[str] = []
    for line in process.stdout:
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
            return Read(path, [] if error else blocks, tuple(notes), error), continues
    raise EOFError


def _cause(code: int) -> str:
    """Why a document is unreadable whose reader died. code: as subprocess reports it."""
    if code >= 0:
        return "its reader ended without a word"
    name = signal.Signals(-code).name
    return "its reader was ended from outside: no memory left?" if name == "SIGKILL" else f"its reader crashed ({name})"

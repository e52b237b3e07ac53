"""Documents read in a child process, ahead of the work on those before them, and the rows of files for training.

Rows are streamed where their kind allows it, else made of blocks that the child reads.
"""

import contextlib
import json
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from settle.base.errors import UsageError
from settle.base.line_child import LineChild
from settle.base.python_command import extra_command, module_command
from settle.documents.blocks import Block, Place, Unreadable
from settle.documents.confine import roots_as
from settle.documents.reader_child import Request
from settle.documents.readers import Reader, as_record
from settle.documents.rows import Record, Row
from settle.documents.walk import FoundFile

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

    @property
    def size(self) -> int:
        """What it takes of the characters that are read ahead."""
        return _EACH + sum(len(block.text) for block in self.blocks)


def read_all(
    paths: Iterable[tuple[Path, str]], seconds: float = SECONDS, roots: Iterable[Path | str] | None = None
) -> Generator[Read, None, None]:
    """Read each (path, reader), in order. Closing the iterator ends the child.

    seconds: how long one may take. roots: files and folders that the documents lie in; on Linux the child can read no
    others. Raises UsageError when a library is missing that a reader needs.
    """
    child, ahead = _Child(seconds, roots_as(roots)), _Queue()

    def work() -> None:
        error: BaseException | None = None
        try:
            for path, reader in paths:
                if not ahead.put(child.read(path, reader)):
                    return
        except BaseException as e:  # noqa: BLE001  raised in the thread that asks
            error = e
        ahead.end(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while document := ahead.get():
            yield document
    finally:
        ahead.stop()
        child.close()
        thread.join()


class _Queue:
    """A queue of documents read ahead, bounded by their text: many small files wait here, or one large one."""

    def __init__(self) -> None:
        self._documents: deque[Read] = deque()
        self._size = 0
        self._is_ended = self._is_stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, document: Read) -> bool:
        """Wait for room; return False when nothing is needed any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._size < AHEAD)
            self._documents.append(document)
            self._size += document.size
            self._changed.notify_all()
            return not self._is_stopped

    def end(self, error: BaseException | None) -> None:
        """Say that no more documents come, or why."""
        with self._changed:
            self._is_ended, self._error = True, error
            self._changed.notify_all()

    def get(self) -> Read | None:
        """Wait for the next document; return None after the last, or raise what ended the reading."""
        with self._changed:
            self._changed.wait_for(lambda: self._documents or self._is_ended)
            if not self._documents:
                if self._error is not None:
                    raise self._error
                return None
            document = self._documents.popleft()
            self._size -= document.size
            self._changed.notify_all()
            return document

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()


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
                    raise UsageError(f"reading {path.name} needs {rest[0]}", extra_command("rag"))
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
        code = self._child.exit_code()
        if self._child.is_late:
            return f"reading it takes more than {self._seconds:.0f} s"
        if code is None:
            return "reading was ended"
        if code >= 0:
            return "its reader ended without a word"
        name = signal.Signals(-code).name
        return (
            "its reader was ended from outside: no memory left?"
            if name == "SIGKILL"
            else f"its reader crashed ({name})"
        )


class RowReader:
    """Reader of the rows of files, each once, in their order; the child reads the next ones meanwhile.

    on_note: called with what a reader left out. field: the column or key that holds the text, for the readers that have
    such. As a context manager it ends the child.
    """

    def __init__(
        self, files: Sequence[FoundFile], on_note: Callable[[FoundFile, str], None], field: str | None = None
    ) -> None:
        self._on_note, self._field = on_note, field
        fenced = [f for f in files if not Reader.part(f.reader).streams() and not f.compression]
        self._documents = read_all(((Path(f.path), f.reader) for f in fenced), roots={f.root for f in fenced})

    def rows(self, file: FoundFile) -> Iterator[Row]:
        """Yield the file's documents. Raises Unreadable with the reason when it has none to give."""
        reader = self._reader(file)
        if reader.streams():
            with file.open() as stream:
                yield from reader.rows(stream)
        else:
            yield from reader.rows_of(self._blocks(file))

    def records(self, file: FoundFile) -> Iterator[Record]:
        """Yield the file's rows with their named values. Raises Unreadable with the reason when it has none to give."""
        reader = self._reader(file)
        if reader.streams():
            with file.open() as stream:
                yield from reader.records(stream)
        else:
            yield from map(as_record, reader.rows_of(self._blocks(file)))

    def _reader(self, file: FoundFile) -> Reader:
        kind = Reader.part(file.reader)
        return kind.model_validate({"field": self._field} if "field" in kind.model_fields else {})

    def _blocks(self, file: FoundFile) -> list[Block]:
        """Return the blocks that the child read, of the next one of the files. Raises Unreadable."""
        if file.compression:
            raise Unreadable("a compressed document: unpack it first")
        document = next(self._documents)
        assert document.path == Path(file.path), "files are read once, in their order"
        for note in document.notes:
            self._on_note(file, note)
        if document.error:
            raise Unreadable(document.error)
        return document.blocks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._documents.close()

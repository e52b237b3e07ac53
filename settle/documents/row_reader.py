"""The rows of files for training: streamed where their kind allows it, else of the blocks that the child reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from settle.documents.blocks import Unreadable
from settle.documents.reader_pool import Read, read_all
from settle.documents.readers import Reader, as_record
from settle.documents.rows import Record, Row
from settle.documents.walk import FoundFile

OnNote = Callable[[FoundFile, str], None]


def missing_package(file: FoundFile) -> str | None:
    """The package that training needs to read this file and that is not installed."""
    kind = Reader.part(file.reader)
    return None if kind.streams() else next((p for p in kind.packages if find_spec(p) is None), None)


class RowReader:
    """Reads each of the files once, in their order; the child reads the next ones meanwhile.

    settings: given to the readers that have a field of that name. on_note: called with what a reader left out. As a
    context manager it ends the child.
    """

    def __init__(self, files: Sequence[FoundFile], settings: Mapping[str, object], on_note: OnNote) -> None:
        self._settings, self._on_note = settings, on_note
        fenced = [f for f in files if not Reader.part(f.reader).streams() and not f.compression]
        self._documents = read_all(((Path(f.path), f.reader) for f in fenced), roots={f.root for f in fenced})

    def rows(self, file: FoundFile) -> Iterator[Row]:
        """The file's documents. Raises Unreadable with the reason when it has none to give."""
        reader = self._reader(file)
        if reader.streams():
            with file.open() as stream:
                yield from reader.rows(stream)
        else:
            yield from reader.rows_of(self._document(file).blocks)

    def records(self, file: FoundFile) -> Iterator[Record]:
        """The file's rows with their named values. Raises Unreadable with the reason when it has none to give."""
        reader = self._reader(file)
        if reader.streams():
            with file.open() as stream:
                yield from reader.records(stream)
        else:
            yield from map(as_record, reader.rows_of(self._document(file).blocks))

    def _reader(self, file: FoundFile) -> Reader:
        kind = Reader.part(file.reader)
        return kind.model_validate({k: v for k, v in self._settings.items() if k in kind.model_fields})

    def _document(self, file: FoundFile) -> Read:
        """The blocks that the child read. Raises Unreadable."""
        if file.compression:
            raise Unreadable("a compressed document: unpack it first")
        document = next(self._documents)
        assert document.path == Path(file.path), "files are read once, in their order"
        for note in document.notes:
            self._on_note(file, note)
        if document.error:
            raise Unreadable(document.error)
        return document

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._documents.close()

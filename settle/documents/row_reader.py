"""The rows of files for training: streamed where their kind allows it, else made of blocks that the child reads."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from settle.documents.blocks import Unreadable
from settle.documents.reader_pool import Read, read_all
from settle.documents.readers import Reader, as_record
from settle.documents.rows import Record, Row
from settle.documents.walk import FoundFile

OnNote = Callable[[FoundFile, str], None]


class RowReader:
    """Reader of files, each once, in their order; the child reads the next ones meanwhile.

    on_note: called with what a reader left out. field: the column or key that holds the text, for the readers that have
    such. As a context manager it ends the child.
    """

    def __init__(self, files: Sequence[FoundFile], on_note: OnNote, field: str | None = None) -> None:
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
            yield from reader.rows_of(self._document(file).blocks)

    def records(self, file: FoundFile) -> Iterator[Record]:
        """Yield the file's rows with their named values. Raises Unreadable with the reason when it has none to give."""
        reader = self._reader(file)
        if reader.streams():
            with file.open() as stream:
                yield from reader.records(stream)
        else:
            yield from map(as_record, reader.rows_of(self._document(file).blocks))

    def _reader(self, file: FoundFile) -> Reader:
        kind = Reader.part(file.reader)
        return kind.model_validate({"field": self._field} if "field" in kind.model_fields else {})

    def _document(self, file: FoundFile) -> Read:
        """Return the blocks that the child read. Raises Unreadable."""
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

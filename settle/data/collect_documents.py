"""Inputs → one buffer of cleaned documents, with a reason for every row that was dropped or changed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from settle.base.errors import FULL_DISK, DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.registry import parts
from settle.data.cleaning import Cleaning, Note, Sweep
from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.files import Sources, row_format
from settle.data.ledger import Ledger
from settle.data.settings import DataSettings
from settle.documents.blocks import Unreadable
from settle.documents.compression import damage_error
from settle.documents.readers import Reader
from settle.documents.row_reader import RowReader

Step = Callable[[str, Note], str | None]

_REPORT_EVERY = 8 << 20  # characters between two progress events


class DocumentCollector:
    """Reads the files of one corpus through its cleaning passes.

    Held-out text that a person gave is what they want to be measured on: its characters are repaired and its secrets
    masked, but none of it is left out.
    """

    def __init__(self, sources: Sources, settings: DataSettings, ledger: Ledger, events: Events) -> None:
        self._files = sources.files
        self._num_train = len(sources.train)
        self._lines: dict[int, int] = {}  # of each file of plain text, how many its earlier pieces have
        self._settings = settings
        self._ledger = ledger
        self._events = events
        self._sweeps = _sweeps(settings)

    def read(self, work: Path) -> DocumentBuffer:
        """Every row, mended, on disk in `work`; a document's origin is its file's place in the list and its row."""
        writer = BufferWriter(work / "read")
        try:
            for number, row, text in self._rows():
                mended = self._mend(text, number, row)
                if mended is not None:
                    writer.append(mended, number, row)
        finally:
            writer.abandon()
        spool = writer.close()
        revising = [sweep for sweep in self._sweeps if sweep.revises()]
        return self._revise(spool, revising, work / "revised") if revising else spool

    def without_repeats(self, spool: DocumentBuffer) -> np.ndarray:
        """Which documents stay once duplicates are gone: bool (D,)."""
        remaining = np.ones(len(spool), bool)
        for sweep in self._sweeps if len(spool) > 1 else ():
            repeats = sweep.repeats(spool)
            if repeats is None:
                continue
            reason, repeated = repeats
            repeated &= spool.origins[:, 0] < self._num_train
            for document in np.flatnonzero(repeated & remaining).tolist():
                file, row = spool.origins[document].tolist()
                self.drop(reason, file, row)
            remaining &= ~repeated
        return remaining

    def drop(self, reason: str, file: int, row: int) -> None:
        """Note that a row which was read is left out after all."""
        self._ledger.drop(reason, self._where(file, row), "")

    def _rows(self) -> Iterator[tuple[int, int, str]]:
        """File number, row and text of every row that can be read."""
        total, done = sum(f.size for f in self._files), 0
        with RowReader(self._files, {"field": self._settings.field}, self._ledger.note_omission) as reader:
            for number, file in enumerate(self._files):
                reported = read = 0
                try:
                    for row in reader.rows(file):
                        self._ledger.read += 1
                        if "problem" in row:
                            self.drop(row["problem"], number, row["row"])
                            continue
                        yield number, row["row"], row["text"]
                        read += len(row["text"])
                        if read - reported >= _REPORT_EVERY:
                            reported = read
                            self._report(done + min(read, file.size), total)
                except Unreadable as e:
                    self._ledger.skip(e.what, file.name)
                except (OSError, EOFError, damage_error(file.compression)) as e:
                    if isinstance(e, OSError) and e.errno in FULL_DISK:
                        raise
                    self._ledger.skip("damaged, read up to the damage", file.name)
                except DataError as e:
                    raise DataError(f"{file.name}: {e.what}", e.fix) from None
                done += file.size
                self._report(done, total)

    def _report(self, done: int, total: int) -> None:
        self._events.emit(Progress(what="read", done=done, total=total, unit="bytes"))

    def _where(self, number: int, row: int) -> str:
        return f"{self._files[number].name}:{row}"

    def _mend(self, text: str, number: int, row: int) -> str | None:
        mended = self._through([sweep.mend for sweep in self._sweeps], text, number, row)
        if row_format(self._files[number]) == "text":
            self._lines[number] = self._lines.get(number, 0) + text.count("\n")
        return mended

    def _place(self, number: int, row: int, before: str) -> str:
        """Where the text after `before` is, as an editor opens it where it can."""
        file = self._files[number]
        if row_format(file) == "text":
            return f"{file.name}:{self._lines.get(number, 0) + before.count(chr(10)) + 1}"
        return self._where(number, row) if Reader.part(file.reader).has_columns else file.name

    def _revise(self, spool: DocumentBuffer, sweeps: list[Sweep], folder: Path) -> DocumentBuffer:
        writer = BufferWriter(folder)
        steps = [sweep.revise for sweep in sweeps]
        try:
            for first, data, ends in spool.chunks():
                begin = 0
                for document, end in enumerate(ends.tolist(), first):
                    number, row = spool.origins[document].tolist()
                    text = data[begin:end].decode()
                    mended = text if number >= self._num_train else self._through(steps, text, number, row)
                    if mended is not None:
                        writer.append(mended, number, row)
                    begin = end + 1
        finally:
            writer.abandon()
        return writer.close()

    def _through(self, steps: Sequence[Step], text: str, number: int, row: int) -> str | None:
        is_held_out = number >= self._num_train

        def note(what: str, reason: str, count: int, at: int = 0) -> None:
            if what == "found":
                self._ledger.find(reason, count, self._place(number, row, mended[:at]))
            elif what == "mended":
                self._ledger.mend(reason, self._where(number, row), text)
            elif not is_held_out:
                self._ledger.drop(reason, self._where(number, row), text)

        mended = text
        for step in steps:
            after = step(mended, note)
            if after is not None:
                mended = after
            elif not is_held_out:
                return None
        return mended


def _sweeps(settings: DataSettings) -> list[Sweep]:
    passes: list[type[Cleaning]] = sorted(parts("data/cleaning").values(), key=lambda p: p.rank)  # type: ignore[arg-type]
    options = {"mask": settings.mask}
    # secrets are looked for in any case
    return [
        p(**{k: v for k, v in options.items() if k in p.model_fields}).start()
        for p in passes
        if settings.clean or "mask" in p.model_fields
    ]

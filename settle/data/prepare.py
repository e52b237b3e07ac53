"""From inputs to token stores: read → clean → split → tokenizer → tokens. Streaming; reused when nothing changed."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from settle.base.errors import FULL_DISK, DataError
from settle.base.event_log import Events
from settle.base.events import Progress, TextSummary
from settle.base.files import home, read_json
from settle.base.registry import parts
from settle.data.cleaning import Cleaning, Note, Sweep
from settle.data.corpus import (
    SUMMARIZED,
    CorpusBuilder,
    Ledger,
    LedgerRecord,
    Sources,
    disk_full,
    fingerprint_of,
    row_kind,
    stored_corpus,
)
from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.settings import DataSettings
from settle.data.split import (
    SELECTION_SHARE,
    SIDES,
    TRAIN,
    Split,
    are_few,
    document_clusters,
    selecting_bytes,
    split_documents,
    split_given,
    split_sections,
    without_kin_of,
)
from settle.data.store import StoreWriter, TokenStore
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer, vocabulary_size
from settle.documents.blocks import Unreadable
from settle.documents.decode import damage_error
from settle.documents.reader_pool import RowReader
from settle.documents.readers import Reader

Step = Callable[[str, Note], str | None]
_REPORT_EVERY = 8 << 20  # characters between two progress events
_VERSION = 5  # of everything below: a change in what it makes of the same input counts this up
_IN_ONE_STRETCH = 4  # the version before: half of what judges selected, all of it next to what judges
_LEAST_TEXT = 2048
_DISK_PER_BYTE = 1.4
_SMALL = 4 << 20  # bytes that are prepared about as fast as torch is loaded
# enough to learn merges from; more text changes few of them and takes longer
_SAMPLE_PER_ENTRY, _SAMPLE_PIECE = 1000, 32768
_Chunk = tuple[int, bytes, np.ndarray]  # number of the first document, text, ends
_EncodedChunk = tuple[np.ndarray, np.ndarray, np.ndarray, slice]  # ids, lengths, sizes in bytes, documents


@dataclass(frozen=True)
class Corpus:
    """Everything training needs to know of its data.

    selection: what chooses the weights. held_out: what judges them, once. ledger: plain JSON values, see
    `Ledger.as_dict`.
    """

    train: TokenStore
    selection: TokenStore
    held_out: TokenStore
    tokenizer: ByteBpeTokenizer
    ledger: LedgerRecord
    fingerprint: str


_begun: dict[str, Future[Corpus]] = {}  # by what was asked


def prepare(inputs: list[str], settings: DataSettings, events: Events, known: str | None = None) -> Corpus:
    """Return the corpus of `inputs` (files, folders, `-`, `stdlib`) under $SETTLE_HOME/tokens, made if needed.

    known: fingerprint of one that was deleted, which is made as it was, also if the version before made it. Raises
    DataError when there is not enough usable text, ResourceError when the disk is full; then nothing remains.
    """
    begun = _begun.pop(_asked(inputs, settings), None) if known is None else None
    corpus = begun.result() if begun else _prepared(inputs, settings, events, known)
    ledger = corpus.ledger
    summary = {name: ledger[name] for name in SUMMARIZED}
    events.emit(TextSummary(**summary, read=ledger["read"], omissions=ledger.get("omissions", {})))
    return corpus


def begin_to_prepare(
    inputs: list[str], settings: DataSettings, then: Callable[[Corpus], object] = lambda corpus: None
) -> None:
    """Begin to prepare a few small files in a thread, while torch is loaded: `prepare` then waits for them.

    then: is called with the corpus in that thread, and not waited for.
    """
    files = [Path(file).expanduser() for file in inputs]
    files += [settings.held_out_from] if settings.held_out_from else []
    if files and all(file.is_file() for file in files) and sum(file.stat().st_size for file in files) <= _SMALL:
        pool = ThreadPoolExecutor(1)
        begun = _begun[_asked(inputs, settings)] = pool.submit(_prepared, inputs, settings, Events())
        begun.add_done_callback(lambda done: done.exception() or then(done.result()))
        pool.shutdown(wait=False)


def _asked(inputs: list[str], settings: DataSettings) -> str:
    return f"{inputs} {settings.model_dump()}"  # not as JSON: a file's name may be no UTF-8


def _prepared(inputs: list[str], settings: DataSettings, events: Events, known: str | None = None) -> Corpus:
    with CorpusBuilder.of(inputs, settings.held_out_from) as builder:
        choices = settings.model_dump(mode="json") | {"held_out_from": bool(builder.sources.held_out)}
        before, now = (fingerprint_of([v, *builder.sources.identity, choices]) for v in (_IN_ONE_STRETCH, _VERSION))
        fingerprint = before if known == before else now
        make = partial(_make, builder, settings, events, in_one_stretch=fingerprint == before)
        return builder.stored_or_made(fingerprint, _open, make)


def prepared(fingerprint: str) -> Corpus | None:
    """Return the corpus of that fingerprint if it was made before, and is still there and undamaged."""
    return stored_corpus(fingerprint, _open)


def _open(folder: Path) -> Corpus:
    return Corpus(
        TokenStore(folder / "train"),
        TokenStore(folder / "selection"),
        TokenStore(folder / "held_out"),
        ByteBpeTokenizer(folder / "tokenizer"),
        read_json(folder / "ledger.json"),
        folder.name,
    )


def _make(builder: CorpusBuilder, settings: DataSettings, events: Events, in_one_stretch: bool) -> list[str]:
    """Build the corpus, and return the names of its files."""
    sources, ledger, corpus = builder.sources, builder.ledger, builder.folder
    # plain text is written once as text and once as tokens: without room for both nothing is begun
    plain = sum(f.size for f in sources.files if row_kind(f) == "text" and not f.compression)
    if _DISK_PER_BYTE * plain > shutil.disk_usage(home()).free:
        raise disk_full(int(_DISK_PER_BYTE * plain))
    collector = DocumentCollector(sources, settings, ledger, events)
    spool, split = _documents(builder.work, sources, settings, collector, in_one_stretch)
    trained_bytes = int(spool.sizes[split.sides == TRAIN].sum())
    vocab_size = settings.vocab_size or vocabulary_size(trained_bytes)
    sample = _sample(spool, split.sides, min(1.0, _SAMPLE_PER_ENTRY * vocab_size / trained_bytes))
    tokenizer = ByteBpeTokenizer.train(sample, vocab_size, corpus / "tokenizer")
    stores = _tokenize(spool, split, tokenizer, corpus, events)
    train = stores["train"]
    ledger.kept_bytes = sum(store.num_bytes for store in stores.values())
    ledger.notes["tokenizer"] = {
        "entries": tokenizer.vocab_size,
        "bytes_per_token": round(train.num_bytes / train.num_tokens, 3),
    }
    for name, store in stores.items():
        ledger.notes[name] = {
            "documents": store.num_documents, "tokens": store.num_tokens, "bytes": store.num_bytes
        }  # fmt: skip
    return [file.name for file in sources.files]


def _documents(
    work: Path, sources: Sources, settings: DataSettings, collector: "DocumentCollector", in_one_stretch: bool
) -> tuple[DocumentBuffer, Split]:
    """Return the cleaned documents and the side of each. Raises DataError when one side is left without text."""
    ledger = collector.ledger
    spool = collector.read(work)
    remaining = collector.without_repeats(spool)
    text = int(spool.sizes[remaining].sum())
    if text < _LEAST_TEXT:
        fix = f"give at least {_LEAST_TEXT:,} bytes of text, better some hundred kilobytes"
        if ledger.dropped:
            fix += "; with --data.no-clean nothing is dropped"
        raise DataError(f"there is too little text to train on: {text:,} bytes ({ledger.summary()})", fix)
    given, share = None, settings.held_out
    if sources.held_out:
        given = spool.origins[:, 0] >= len(sources.train)
        remaining = without_kin_of(given, spool, remaining, collector.drop)
    own = remaining if given is None else remaining & ~given
    size = float(spool.sizes[own].sum())
    selecting = selecting_bytes(size, share, in_one_stretch)
    if are_few(spool, own, share):
        part = SELECTION_SHARE * share if in_one_stretch else selecting / size
        spool, split = split_sections(spool, remaining, share, work, given, part, in_one_stretch)
    elif given is None:
        split = split_documents(spool, remaining, share, selecting)
    else:
        split = split_given(spool, document_clusters(spool), remaining, given, selecting, by_rows=False)
    for side, name in SIDES.items():
        if not (split.sides == side).any():
            raise DataError(
                f"no {name.replace('_', '-')} text is left once similar passages are kept on one side "
                f"({ledger.summary()})",
                "give more varied text, or a held-out file of its own with --data.held-out-from",
            )
    ledger.kept = int(remaining.sum())
    return spool, split


def _sample(spool: DocumentBuffer, sides: np.ndarray, share: float) -> Iterator[str]:
    """Yield about `share` of the training text, evenly spread, in short pieces."""
    owed = 0.0
    for first, text, ends in spool.chunks():
        begin = 0
        for number, end in enumerate(ends.tolist(), first):
            if sides[number] == TRAIN:
                for start in range(begin, end, _SAMPLE_PIECE):
                    owed += share
                    if owed >= 1:
                        owed -= 1
                        yield text[start : min(start + _SAMPLE_PIECE, end)].decode("utf-8", "ignore")
            begin = end + 1


def _tokenize(
    spool: DocumentBuffer, split: Split, tokenizer: ByteBpeTokenizer, corpus: Path, events: Events
) -> dict[str, TokenStore]:
    """Write every kept document into the store of its side, in order; chunks are encoded on two threads."""

    def encode(chunk: _Chunk) -> _EncodedChunk:
        first, text, ends = chunk
        ids, after = tokenizer.encode_documents(text, ends)
        return ids, np.diff(after, prepend=0), np.diff(ends, prepend=-1) - 1, slice(first, first + len(ends))

    writers = {side: StoreWriter(corpus / name, tokenizer.eos_id, tokenizer.dtype) for side, name in SIDES.items()}
    done = 0
    with contextlib.ExitStack() as stack:
        for writer in writers.values():
            stack.enter_context(writer)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        for ids, lengths, sizes, these in _ahead(pool, encode, spool.chunks()):
            own, origins, families = split.sides[these], spool.origins[these], split.families[these]
            for side, writer in writers.items():
                mine = own == side
                if mine.any():
                    chosen = ids if mine.all() else ids[np.repeat(mine, lengths)]
                    where = np.column_stack([origins[mine], families[mine]])
                    writer.append(chosen, np.cumsum(lengths[mine]), where, int(sizes[mine].sum()))
            done += int(sizes.sum()) + len(sizes)
            events.emit(Progress(what="tokenize", done=done, total=spool.size, unit="bytes"))
        return {SIDES[side]: writer.close() for side, writer in writers.items()}


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Chunk], _EncodedChunk], items: Iterator[_Chunk], depth: int = 3
) -> Iterator[_EncodedChunk]:
    """Map over a pool that holds only `depth` items at a time."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= depth:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


class DocumentCollector:
    """Reads the files of one corpus through its cleaning passes.

    Held-out text that the user gave is what they want to be measured on: its characters are repaired and its secrets
    masked, but none of it is left out.
    """

    def __init__(self, sources: Sources, settings: DataSettings, ledger: Ledger, events: Events) -> None:
        self._files = sources.files
        self._num_train = len(sources.train)
        self._lines: dict[int, int] = {}  # of each file of plain text, how many its earlier pieces have
        self._settings = settings
        self.ledger = ledger
        self._events = events
        self._sweeps = _sweeps(settings)

    def read(self, work: Path) -> DocumentBuffer:
        """Write every row, mended, to disk in `work`; a document's origin is its file's number and its row."""
        with BufferWriter(work / "read") as writer:
            for number, row, text in self._rows():
                mended = self._through([sweep.mend for sweep in self._sweeps], text, number, row)
                if row_kind(self._files[number]) == "text":
                    self._lines[number] = self._lines.get(number, 0) + text.count("\n")
                if mended is not None:
                    writer.append(mended, number, row)
        spool = writer.close()
        revising = [sweep for sweep in self._sweeps if sweep.revises()]
        return self._revise(spool, revising, work / "revised") if revising else spool

    def without_repeats(self, spool: DocumentBuffer) -> np.ndarray:
        """Return which documents stay once duplicates are gone: bool (D,)."""
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
        self.ledger.drop(reason, self._where(file, row), "")

    def _rows(self) -> Iterator[tuple[int, int, str]]:
        """Yield the file number, the row and the text of every row that can be read."""
        total, done = sum(f.size for f in self._files), 0
        with RowReader(self._files, self.ledger.note_omission, self._settings.field) as reader:
            for number, file in enumerate(self._files):
                reported = read = 0
                try:
                    for row in reader.rows(file):
                        self.ledger.read += 1
                        if "problem" in row:
                            self.drop(row["problem"], number, row["row"])
                            continue
                        yield number, row["row"], row["text"]
                        read += len(row["text"])
                        if read - reported >= _REPORT_EVERY:
                            reported = read
                            self._report(done + min(read, file.size), total)
                except Unreadable as e:
                    self.ledger.skip(e.what, file.name)
                except (OSError, EOFError, damage_error(file.compression)) as e:
                    if isinstance(e, OSError) and e.errno in FULL_DISK:
                        raise
                    self.ledger.skip("damaged, read up to the damage", file.name)
                except DataError as e:
                    raise DataError(f"{file.name}: {e.what}", e.fix) from None
                done += file.size
                self._report(done, total)

    def _report(self, done: int, total: int) -> None:
        self._events.emit(Progress(what="read", done=done, total=total, unit="bytes"))

    def _where(self, number: int, row: int) -> str:
        return f"{self._files[number].name}:{row}"

    def _place(self, number: int, row: int, before: str) -> str:
        """Return where the text after `before` is, as an editor opens it where it can."""
        file = self._files[number]
        if row_kind(file) == "text":
            return f"{file.name}:{self._lines.get(number, 0) + before.count(chr(10)) + 1}"
        return self._where(number, row) if Reader.part(file.reader).has_columns else file.name

    def _revise(self, spool: DocumentBuffer, sweeps: list[Sweep], folder: Path) -> DocumentBuffer:
        steps = [sweep.revise for sweep in sweeps]
        with BufferWriter(folder) as writer:
            for first, data, ends in spool.chunks():
                begin = 0
                for document, end in enumerate(ends.tolist(), first):
                    number, row = spool.origins[document].tolist()
                    text = data[begin:end].decode()
                    mended = text if number >= self._num_train else self._through(steps, text, number, row)
                    if mended is not None:
                        writer.append(mended, number, row)
                    begin = end + 1
        return writer.close()

    def _through(self, steps: Sequence[Step], text: str, number: int, row: int) -> str | None:
        is_held_out = number >= self._num_train

        def note(what: str, reason: str, count: int, at: int = 0) -> None:
            if what == "found":
                self.ledger.find(reason, count, self._place(number, row, mended[:at]))
            elif what == "mended":
                self.ledger.mend(reason, self._where(number, row), text)
            elif not is_held_out:
                self.ledger.drop(reason, self._where(number, row), text)

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

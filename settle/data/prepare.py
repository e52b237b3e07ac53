"""From inputs to token stores: read → clean → split → tokenizer → tokens. Streaming; reused when nothing changed."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress, TextSummary
from settle.base.files import home, read_json, write_json
from settle.data.collect_documents import DocumentCollector
from settle.data.document_buffer import DocumentBuffer
from settle.data.files import Sources, corpus_folder, describe_sources, find_sources, row_format, stored_corpus
from settle.data.ledger import SUMMARIZED, Ledger, LedgerRecord
from settle.data.settings import DataSettings
from settle.data.split import (
    SIDES,
    TRAIN,
    Split,
    are_few,
    document_clusters,
    split_documents,
    split_given,
    split_sections,
    without_kin_of,
)
from settle.data.store import StoreWriter, TokenStore
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer, vocabulary_size
from settle.data.workspace import disk_full, publish, workspace
from settle.documents.walk import FoundFile

_VERSION = 4  # of everything below: a change in what it makes of the same input counts this up
_LEAST_TEXT = 2048
_DISK_PER_BYTE = 1.4
# enough to learn merges from; more text changes few of them and takes longer
_SAMPLE_PER_ENTRY, _SAMPLE_PIECE = 1000, 32768

_Chunk = tuple[int, bytes, np.ndarray]  # number of the first document, text, ends
_EncodedChunk = tuple[np.ndarray, np.ndarray, np.ndarray, slice]  # ids, lengths, sizes in bytes, documents


@dataclass(frozen=True)
class Corpus:
    """Everything training needs to know of its data. selection: what chooses the weights; held_out: what judges them,
    once. ledger: plain JSON values, see `Ledger.as_dict`."""

    train: TokenStore
    selection: TokenStore
    held_out: TokenStore
    tokenizer: ByteBpeTokenizer
    ledger: LedgerRecord
    fingerprint: str


def prepare(inputs: list[str], settings: DataSettings, events: Events) -> Corpus:
    """The corpus of `inputs` (files, folders, `-`, `stdlib`) under $SETTLE_HOME/tokens, made if it is not there yet.

    Raises DataError when there is not enough usable text, ResourceError when the disk is full; then nothing remains.
    """
    with workspace() as work:
        ledger = Ledger()
        sources = find_sources(inputs, settings.held_out_from, work, ledger)
        fingerprint = _fingerprint(sources, settings)
        folder = corpus_folder(fingerprint)
        known = prepared(fingerprint)
        if known is not None:
            _report(known, events)
            return known
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one is made again
        describe_sources(ledger, sources)
        _refuse_if_too_large(sources.files)
        _make(work, sources, settings, ledger, events)
        publish(work / "corpus", folder)
        corpus = _open(folder)
        _report(corpus, events)
        return corpus


def prepared(fingerprint: str) -> Corpus | None:
    """The corpus of that fingerprint if it was made before, and is still there and undamaged."""
    return stored_corpus(fingerprint, _open)


def _report(corpus: Corpus, events: Events) -> None:
    """What became of the text, for a face to show before anything is trained on it."""
    ledger = corpus.ledger
    summary = {name: ledger[name] for name in SUMMARIZED}
    events.emit(TextSummary(**summary, read=ledger["read"], omissions=ledger.get("omissions", {})))


def _open(folder: Path) -> Corpus:
    return Corpus(
        TokenStore(folder / "train"),
        TokenStore(folder / "selection"),
        TokenStore(folder / "held_out"),
        ByteBpeTokenizer(folder / "tokenizer"),
        read_json(folder / "ledger.json"),
        folder.name,
    )


def _make(work: Path, sources: Sources, settings: DataSettings, ledger: Ledger, events: Events) -> None:
    """Builds work/corpus."""
    spool, split = _documents(work, sources, settings, ledger, events)
    corpus, sides = work / "corpus", split.sides
    trained_bytes = int(spool.sizes[sides == TRAIN].sum())
    vocab_size = settings.vocab_size or vocabulary_size(trained_bytes)
    sample = _sample(spool, sides, min(1.0, _SAMPLE_PER_ENTRY * vocab_size / trained_bytes))
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
            "documents": store.num_documents,
            "tokens": store.num_tokens,
            "bytes": store.num_bytes,
        }
    write_json(corpus / "files.json", [f.name for f in sources.files])
    write_json(corpus / "ledger.json", ledger.as_dict())


def _documents(
    work: Path, sources: Sources, settings: DataSettings, ledger: Ledger, events: Events
) -> tuple[DocumentBuffer, Split]:
    """The cleaned documents and the side of each. Raises DataError when one side is left without text."""
    collector = DocumentCollector(sources, settings, ledger, events)
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
    if are_few(spool, remaining if given is None else remaining & ~given, share):
        spool, split = split_sections(spool, remaining, share, work, given)
    elif given is None:
        split = split_documents(spool, remaining, share)
    else:
        split = split_given(spool, document_clusters(spool), remaining, given, share, by_rows=False)
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
    """About `share` of the training text, evenly spread, in short pieces."""
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
    """Every kept document into the store of its side, in order; chunks are encoded on two threads."""

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
    """`map` over a pool that holds only `depth` items at a time."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= depth:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _fingerprint(sources: Sources, settings: DataSettings) -> str:
    choices = settings.model_dump(mode="json") | {"held_out_from": bool(sources.held_out)}
    content = [_VERSION, *sources.identity, choices]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _refuse_if_too_large(files: list[FoundFile]) -> None:
    """Plain text is written once as text and once as tokens: when there is no room for that, say so at once."""
    needed = int(_DISK_PER_BYTE * sum(f.size for f in files if row_format(f) == "text" and not f.compression))
    if needed > shutil.disk_usage(home()).free:
        raise disk_full(needed)

"""Rows of a question and a passage, for encoders: read, split by question, tokenized.

A row is two documents of a row store, the question and then the passage, each with the tokens that its encoder expects
around a text. Each ends with a mark that only the objective reads: at the end of a passage 1 where it answers the
question and 0 where it does not.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from settle.base.errors import DataError
from settle.base.files import read_json
from settle.data.corpus import CorpusBuilder, Ledger, LedgerRecord, fingerprint_of
from settle.data.layouts import Broken, find, text_of
from settle.data.store import RowStore, RowWriter
from settle.documents.reader_pool import RowReader
from settle.documents.rows import Values
from settle.documents.walk import FoundFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUESTIONS = ("question", "query", "anchor", "sentence1")
PASSAGES = ("passage", "document", "context", "positive", "text", "sentence2")
LABELS = ("label", "answers", "relevant", "score")
GROUPS = ("group", "topic")
SIDES = ("train", "held_out", "judgement")
QUESTION_TOKENS, PASSAGE_TOKENS = 64, 256  # of each, those around a text included; a longer one is cut
_VERSION = 1  # of what is made of the same input


@dataclass(frozen=True)
class Pair:
    """A question and a passage; group: questions of one group stay on one side."""

    question: str
    passage: str
    answers: bool
    group: str


@dataclass(frozen=True)
class PairCorpus:
    """Pairs to train on, to choose the weights by, and to judge them, two documents each.

    ledger: what was read.
    """

    train: RowStore
    held_out: RowStore
    judgement: RowStore
    ledger: LedgerRecord
    fingerprint: str


def prepare_pairs(
    inputs: Sequence[str], tokenizer: "Tokenizer", held_out: float, prefixes: tuple[str, str] = ("", "")
) -> PairCorpus:
    """Return the pairs of `inputs`, made if they are not there yet.

    held_out: share of the groups of questions, half of them to choose by and half to judge. prefixes: put before each
    question and before each passage. Raises DataError for rows that are not pairs, and when a side would have none.
    """
    with CorpusBuilder.of(inputs) as builder:
        known_by = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        content = ["pairs", _VERSION, *builder.sources.identity, held_out, known_by, *filter(None, prefixes)]
        return builder.stored_or_made(
            fingerprint_of(content), _open, lambda: _write_sides(builder, tokenizer, held_out, prefixes)
        )


def read_pairs(inputs: Sequence[str]) -> list[Pair]:
    """Return the pairs of `inputs` as they are written. Raises DataError for rows that are not pairs."""
    with CorpusBuilder.of(inputs) as builder:
        return [pair for _, _, pair in _pairs(builder.sources.files, builder.ledger)]


def _write_sides(
    builder: CorpusBuilder, tokenizer: "Tokenizer", held_out: float, prefixes: tuple[str, str]
) -> list[str]:
    """Write the store of each side, and return the names of the files."""
    with ExitStack() as stack:
        writers = {side: stack.enter_context(RowWriter(builder.folder / side, 0, np.uint32, 2)) for side in SIDES}
        families: dict[str, int] = {}
        for number, row, pair in _pairs(builder.sources.files, builder.ledger):
            origin = (number, row, families.setdefault(pair.group, len(families)))
            prefixed = replace(pair, question=prefixes[0] + pair.question, passage=prefixes[1] + pair.passage)
            _add(writers[_side(pair.group, held_out)], prefixed, tokenizer, origin)
            builder.ledger.kept += 1
        for side, writer in writers.items():
            if not writer.num_documents:
                raise DataError(f"no pairs are left for the {side.replace('_', '-')} side", "give more questions")
            writer.close()
    return [file.name for file in builder.sources.files]


def _add(writer: RowWriter, pair: Pair, tokenizer: "Tokenizer", origin: tuple[int, int, int]) -> None:
    """Add a question and its passage, each cut where it is too long, with its mark at the end."""
    texts = ((pair.question, QUESTION_TOKENS, None), (pair.passage, PASSAGE_TOKENS, pair.answers))
    for text, most, mark in texts:
        *inner, closing = tokenizer.encode(text).ids
        ids = np.array([*inner[: most - 1], closing, int(mark or 0)])
        supervised = np.zeros(len(ids), np.uint8)
        supervised[-1] = mark is not None
        writer.add(ids, supervised, origin, len(text.encode()))


def _pairs(files: Sequence[FoundFile], ledger: Ledger) -> Iterator[tuple[int, int, Pair]]:
    """Yield the file number, the row and the pair."""
    with RowReader(files, ledger.note_omission) as reader:
        for number, file in enumerate(files):
            for record in reader.records(file):
                ledger.read += 1
                try:
                    if "value" not in record or not isinstance(record["value"], Mapping):
                        raise Broken("a row without named values")
                    yield number, record["row"], _pair(record["value"])
                except Broken as e:
                    fix = "each row needs a question, a passage and, where not every passage answers, a label of 1 or 0"
                    raise DataError(f"{file.name}:{record['row']} is no pair: {e}", fix) from None


def _pair(row: Values) -> Pair:
    question, passage, label, group = (find(row, None, usual) for usual in (QUESTIONS, PASSAGES, LABELS, GROUPS))
    if question is None or passage is None:
        raise Broken(f"it has only {', '.join(map(repr, list(row)[:8]))}")
    mark = row[label] if label is not None else 1
    if mark not in (0, 1, "0", "1"):
        raise Broken(f"its label is {mark!r}")
    texts = text_of(row, question, "the question").strip(), text_of(row, passage, "the passage").strip()
    if not all(texts):
        raise Broken("an empty question or passage")
    own = str(row[group]) if group is not None else " ".join(texts[0].lower().split())
    return Pair(*texts, mark in (1, "1"), own)


def _side(group: str, held_out: float) -> str:
    """Return the side of a group, which depends on it alone, so that it stays when others are added."""
    place = int.from_bytes(hashlib.blake2b(group.encode("utf-8", "replace"), digest_size=8).digest()) / 2**64
    return "judgement" if place < held_out / 2 else "held_out" if place < held_out else "train"


def _open(folder: Path) -> PairCorpus:
    train, held_out, judgement = (RowStore(folder / side, 2) for side in SIDES)
    return PairCorpus(train, held_out, judgement, read_json(folder / "ledger.json"), folder.name)

"""What files hold, before anything is learned from them: their kind, about how much, and rows as they are learned.

Files are read by the readers of training, as far as a person waits for it.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.files import home
from settle.base.words.amounts import amount
from settle.data.corpus import Ledger, find_files
from settle.data.layouts import Example, Kind, Message
from settle.data.rows.collect import ExampleReader, of_one_sort
from settle.data.settings import ColumnSettings
from settle.documents.blocks import Unreadable
from settle.documents.decode import damage_error
from settle.documents.reader_pool import RowReader
from settle.documents.readers import Reader
from settle.documents.walk import FoundFile

MOST_ROWS, MOST_CHARACTERS, MOST_SECONDS = 20_000, 4_000_000, 4.0  # that are read
SHOWN, LONGEST = 5, 300  # rows that are shown; characters of one piece
KINDS = {
    "text": "Text", "documents": "Documents", "chat": "Rows of questions and answers", "decision": "Rows of decisions",
    "preference": "Rows with a better and a worse answer", "table": "A table whose columns do not say what they hold",
}  # fmt: skip
COLUMNS = {"prompt": "What is asked", "completion": "What is learned", "chosen": "Better", "rejected": "Worse"}
NO_PROMPT = ("", "nothing: it is plain text")
ROW_MARKS = 24  # bytes of a row's names and quotes, about


class RowPiece(NamedTuple):
    """A part of a row. who: speaks, or "". is_learned: the model learns to write it; otherwise it only reads it."""

    who: str
    text: str
    is_learned: bool


class LeftOut(NamedTuple):
    """Files or rows that are not learned. first: where the first of them is."""

    reason: str
    number: int
    first: str


@dataclass(frozen=True)
class DataPreview:
    """What files hold.

    kind: that of the rows; "documents" for text that its readers take out of pages; "table" where no column has a name
    that says what it holds. num_rows: that were read; is_all: there are no more. characters: in all files, estimated
    unless is_all. samples: (where, pieces). columns: what is read → its column; present: every column. num_bytes: of
    the files. refused: rows among those left out that training would stop at.
    """

    kind: Kind | Literal["documents", "table"]
    num_rows: int
    is_all: bool
    characters: int
    samples: list[tuple[str, list[RowPiece]]]
    columns: dict[str, str]
    present: list[str]
    left_out: list[LeftOut]
    num_files: int
    num_bytes: int
    refused: int = 0

    @property
    def is_text(self) -> bool:
        """Whether a model can be trained from scratch on it."""
        return self.kind in ("text", "documents")

    @property
    def amounts(self) -> str:
        """How much it is: more than 20,000 rows in 3 files, 12 MB."""
        files = f"{self.num_files:,} file{'s' * (self.num_files != 1)}, {amount(self.num_bytes, 'bytes')}"
        number = f"{'' if self.is_all else 'more than '}{self.num_rows:,} {'texts' if self.is_text else 'rows'}"
        return f"{number} in {files}" if self.num_rows else files

    @property
    def parts(self) -> dict[str, tuple[str, list[tuple[str, str]]]]:
        """What may be chosen where a table's columns are read: what is read → its column or "", and those it may be.

        These are pairs of a column and its label. Empty where a format fixes the columns.
        """
        names = ("chosen", "rejected") if self.kind == "preference" else ("prompt", "completion")
        if (
            not self.present
            or self.kind == "decision"
            or not (self.kind == "table" or {*names, "text"} & {*self.columns})
        ):
            return {}
        usual = self.columns or {names[0]: self.present[0], names[1]: self.present[-1]}
        usual = {"completion": usual["text"]} if "text" in usual else usual
        present = [(column, column) for column in self.present]
        return {name: (usual.get(name, ""), [NO_PROMPT] * (name == "prompt") + present) for name in names}


def preview(inputs: Sequence[str], columns: Mapping[str, str]) -> DataPreview:
    """Return what files and folders hold. columns: what is read → its column, where the user says it.

    Raises UsageError for a path that is not there, DataError where nothing can be read.
    """
    ledger = Ledger()
    files = find_files(inputs, home() / "tokens", ledger)
    if not files:
        raise DataError(f"there is nothing to learn from here ({ledger.summary()})", "choose another file or folder")
    tables = sum(file.size for file in files if Reader.part(file.reader).has_columns)
    if 2 * tables < sum(file.size for file in files):
        return _text(files, ledger)  # some JSON in a folder of text is text, too
    return _rows(of_one_sort(files, ledger), columns, ledger)


def _rows(files: list[FoundFile], columns: Mapping[str, str], ledger: Ledger) -> DataPreview:
    reading = ExampleReader(files, ColumnSettings.model_validate(columns), ledger, Events())
    present = _columns_of(files[0])
    num_bytes = sum(file.size for file in files)
    until = time.monotonic() + MOST_SECONDS
    examples: list[tuple[int, int, Example]] = []
    is_all = True
    try:
        for example in reading.examples():
            examples.append(example)
            if len(examples) == MOST_ROWS or time.monotonic() > until:
                is_all = False
                break
    except DataError:
        if reading.kind or columns or not present:
            raise
        return DataPreview("table", 0, True, 0, [], {}, present, _left_out(ledger), len(files), num_bytes)
    rows = [_pieces(example) for _, _, example in examples]
    characters = sum(len(piece.text) for row in rows for piece in row)
    if not is_all:
        characters = max(characters, round(num_bytes * characters / (characters + ROW_MARKS * len(rows))))
    shown = _spread([
        (f"{files[number].name}:{row}", _short(pieces)) for (number, row, _), pieces in zip(examples, rows, strict=True)
    ])  # fmt: skip
    used = {}
    for layout in reading.layouts.values():
        match layout["columns"]:
            case dict(named):
                used.update(named)
    refused = [LeftOut(reason, len(places), places[0]) for reason, places in reading.refused.rows.items()]
    return DataPreview(
        reading.kind or "chat", len(rows), is_all, characters, shown, used, present, [*refused, *_left_out(ledger)],
        len(files), num_bytes, reading.refused.count,
    )  # fmt: skip


def _columns_of(file: FoundFile) -> list[str]:
    """Return the names in a file's first rows, in their order; none where it cannot be read."""
    names: dict[str, None] = {}
    try:
        with RowReader([file], lambda file, note: None) as reader:
            for record in islice(reader.records(file), SHOWN):
                match record.get("value"):
                    case {**values}:
                        names |= dict.fromkeys(map(str, values))
    except (Unreadable, EOFError, damage_error(file.compression)):
        return []
    return list(names)


def _text(files: list[FoundFile], ledger: Ledger) -> DataPreview:
    total, until = sum(file.size for file in files), time.monotonic() + MOST_SECONDS
    texts: list[tuple[str, list[RowPiece]]] = []
    characters = num_read = 0
    is_all = True
    with RowReader(files, ledger.note_omission) as reader:
        for file in files:
            before = characters
            for where, text in _texts_of(file, reader, ledger):
                texts.append((where, _short([RowPiece("", text.strip(), True)])))
                characters += len(text)
                is_all = characters < MOST_CHARACTERS and time.monotonic() < until
                if not is_all:
                    break
            num_read += file.size if is_all else min(file.size, characters - before)
            if not is_all:
                break
    if not texts:
        raise DataError(f"there is no text in these files ({ledger.summary()})", "choose another file or folder")
    is_fenced = 2 * sum(not Reader.part(file.reader).streams() for file in files) > len(files)
    return DataPreview(
        "documents" if is_fenced else "text", len(texts), is_all, round(characters * total / max(1, num_read)),
        _spread(texts), {}, [], _left_out(ledger), len(files), total,
    )  # fmt: skip


def _texts_of(file: FoundFile, reader: RowReader, ledger: Ledger) -> Iterator[tuple[str, str]]:
    try:
        for row in reader.rows(file):
            if "text" in row:
                yield f"{file.name}:{row['row']}", row["text"]
            else:
                ledger.skip(row.get("problem", "a row without text"), f"{file.name}:{row['row']}")
    except Unreadable as e:
        ledger.skip(e.what, file.name)
    except (EOFError, damage_error(file.compression)):
        ledger.skip("damaged", file.name)


def _left_out(ledger: Ledger) -> list[LeftOut]:
    skipped = [LeftOut(why, entry["count"], entry["examples"][0]["where"]) for why, entry in ledger.skipped.items()]
    return [*skipped, *(LeftOut(note, 1, name) for name, notes in ledger.omissions.items() for note in notes)]


def _spread(samples: list[tuple[str, list[RowPiece]]]) -> list[tuple[str, list[RowPiece]]]:
    """Return a few of them, from the first to the last."""
    step = max(1.0, len(samples) / SHOWN)
    return [samples[int(step * i)] for i in range(min(SHOWN, len(samples)))]


def _pieces(example: Example) -> list[RowPiece]:
    if example.kind == "text":
        return [RowPiece("", example.text, True)]
    asked = [_turn(message) for message in example.messages]
    better = [_turn(message)._replace(who="better answer", is_learned=True) for message in example.chosen]
    worse = [_turn(message)._replace(who="worse answer", is_learned=False) for message in example.rejected]
    return [*(asked if not better else [turn._replace(is_learned=False) for turn in asked]), *better, *worse]


def _turn(message: Message) -> RowPiece:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", [])]
    text = "\n".join([message["content"], *calls]).strip()
    return RowPiece(message["role"], text, message["role"] == "assistant" and message.get("weight") != 0)


def _short(pieces: Sequence[RowPiece]) -> list[RowPiece]:
    return [
        piece._replace(text=f"{piece.text[:LONGEST]} …") if len(piece.text) > LONGEST else piece for piece in pieces
    ]

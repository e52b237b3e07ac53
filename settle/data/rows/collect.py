"""All examples on disk, checked, each once, and each on its side. Legend: R examples."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.data.cleaning.secrets import secrets_of
from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.files import Sources
from settle.data.layouts import Example, Kind
from settle.data.ledger import Ledger
from settle.data.rows.read_rows import ExampleReader, RefusedRows
from settle.data.settings import RowSettings
from settle.data.split import DROPPED, HELD_OUT, TRAIN, are_few, drop_kin_of_held_out, split_rows, split_sections
from settle.documents.readers import Reader
from settle.documents.walk import FoundFile


@dataclass(frozen=True)
class CollectedRows:
    """examples: of plain text the text, of other kinds JSON. sides: int8 (R,). names: of the files, by number."""

    examples: DocumentBuffer
    sides: np.ndarray
    kind: Kind
    names: list[str]

    def example(self, number: int) -> Example:
        """One example."""
        written = self.examples.read(number)
        return Example("text", text=written) if self.kind == "text" else Example(**json.loads(written))

    def line(self, number: int) -> str:
        """One example as JSON."""
        written = self.examples.read(number)
        return json.dumps(vars(Example("text", text=written))) if self.kind == "text" else written

    def origin(self, number: int) -> str:
        """Where an example comes from, as `file:row`."""
        file, row = self.examples.origins[number].tolist()
        return f"{self.names[file]}:{row}"


def collect_rows(sources: Sources, settings: RowSettings, ledger: Ledger, events: Events, work: Path) -> CollectedRows:
    """Every example of the files. Raises DataError for mixed or broken rows, and when a side would have none."""
    files, held_out_files = (_of_one_sort(side, ledger) for side in (sources.train, sources.held_out))
    reading = ExampleReader(files + held_out_files, settings.columns, ledger, events)
    examples, texts = BufferWriter(work / "examples"), BufferWriter(work / "texts")
    prompts: list[int] = []
    names = [f.name for f in files + held_out_files]
    try:
        for number, row, example in reading.examples():
            prompt, answer = _words(example)
            if example.kind != "text":
                examples.append(json.dumps(vars(example), ensure_ascii=False), number, row)
            texts.append(f"{prompt}\n\n{answer}" if answer else prompt, number, row)
            for secret, _ in secrets_of(_all_words(example)):
                ledger.find(secret, 1, f"{names[number]}:{row}")
            prompts.append(int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8).digest()))
    finally:
        examples.abandon()
        texts.abandon()
    refuse(reading.refused, settings, ledger)
    ledger.notes["layouts"] = reading.layouts
    similar, kind = texts.close(), reading.kind or "chat"
    spool = similar if kind == "text" else examples.close()
    collected = CollectedRows(spool, np.full(len(prompts), TRAIN, np.int8), kind, names)
    is_held_out = spool.origins[:, 0] >= len(files)
    if not settings.repeats:
        _drop_repeats(collected, is_held_out, ledger)
    remaining = collected.sides != DROPPED
    if held_out_files:
        collected.sides[remaining & is_held_out] = HELD_OUT
        drop_kin_of_held_out(
            similar,
            collected.sides,
            lambda reason, file, row: ledger.drop(reason, f"{collected.names[file]}:{row}", ""),
        )
    elif kind == "text" and are_few(similar, remaining, settings.held_out):
        spool, sides = split_sections(similar, remaining, settings.held_out, work)
        collected = CollectedRows(spool, sides, kind, names)
    else:
        collected.sides[:] = split_rows(similar, np.array(prompts, np.uint64), remaining, settings.held_out)
    _refuse_one_sided(collected, ledger)
    return collected


def _of_one_sort(files: list[FoundFile], ledger: Ledger) -> list[FoundFile]:
    """Leaves out text files that lie beside files of rows: a folder's README is no example."""
    rows = [file for file in files if Reader.part(file.reader).has_columns]
    for file in files if rows else ():
        if file not in rows:
            ledger.skip("text beside files of rows", file.name)
    return rows or files


def refuse(refused: RefusedRows, settings: RowSettings, ledger: Ledger) -> None:
    """Rows that cannot be used end the work, or are left out where that is what was asked for."""
    if refused.count and not settings.drop_broken:
        rows = "1 row" if refused.count == 1 else f"{refused.count} rows"
        raise DataError(f"{rows} cannot be used: {refused}", "fix them, or leave them out with --rows.drop-broken")
    for reason, places in refused.rows.items():
        for where in places:
            ledger.drop(reason, where, "")


def _drop_repeats(collected: CollectedRows, is_held_out: np.ndarray, ledger: Ledger) -> None:
    """Drops all but the first of identical examples; held-out ones that a person gave all stay."""
    _, first = np.unique(collected.examples.hashes, return_index=True)
    collected.sides[:] = DROPPED
    collected.sides[first] = TRAIN
    collected.sides[is_held_out] = TRAIN
    for number in np.flatnonzero(collected.sides == DROPPED).tolist():
        ledger.drop("exact duplicate", collected.origin(number), "")


def _refuse_one_sided(collected: CollectedRows, ledger: Ledger) -> None:
    if not len(collected.sides):
        raise DataError(
            f"there are no rows in what was given ({ledger.summary()})",
            "rows are read from .jsonl, .json, .csv and .parquet, one example each",
        )
    for side, name in ((TRAIN, "training"), (HELD_OUT, "held-out")):
        if not (collected.sides == side).any():
            remaining = int((collected.sides != DROPPED).sum())
            raise DataError(
                f"no {name} rows are left of {remaining} once those nearly the same are kept on one side "
                f"({ledger.summary()})",
                "give more varied examples, or held-out ones of their own with --rows.held-out-from",
            )


def _all_words(example: Example) -> str:
    """Everything that the model may learn to say."""
    turns = [*example.messages, *example.chosen, *example.rejected]
    return "\n\n".join([example.text, *(message["content"] for message in turns)])


def _words(example: Example) -> tuple[str, str]:
    """The prompt and the answer of an example, without the system prompt that all may share."""
    turns = [message["content"] for message in example.messages if message["role"] != "system"]
    if example.kind == "preference":
        return "\n\n".join(turns), "\n\n".join(m["content"] for m in (*example.chosen, *example.rejected))
    if example.kind == "text":
        return example.text, ""
    return turns[0], "\n\n".join(turns[1:])

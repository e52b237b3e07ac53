"""All examples on disk, checked, each once, and each on its side. Legend: R examples."""

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
from settle.data.rows.families import prompt_hash, words
from settle.data.rows.read_rows import ExampleReader, RefusedRows
from settle.data.settings import RowSettings
from settle.data.split import (
    DROPPED,
    SELECTION_SHARE,
    SIDES,
    TRAIN,
    are_few,
    judging_share,
    row_clusters,
    split_given,
    split_rows,
    split_sections,
    without_kin_of,
)
from settle.documents.readers import Reader
from settle.documents.walk import FoundFile


@dataclass(frozen=True)
class CollectedRows:
    """examples: of plain text the text, of other kinds JSON. sides: int8 (R,); families: int64 (R,), as in `Split`.
    names: of the files, by number."""

    examples: DocumentBuffer
    sides: np.ndarray
    families: np.ndarray
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

    def place(self, number: int) -> list[int]:
        """The file, the row and the family of an example, as a store keeps them."""
        return [*self.examples.origins[number].tolist(), int(self.families[number])]

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
            prompt, answer = words(example)
            if example.kind != "text":
                examples.append(json.dumps(vars(example), ensure_ascii=False), number, row)
            texts.append(f"{prompt}\n\n{answer}" if answer else prompt, number, row)
            for secret, _ in secrets_of(_all_words(example)):
                ledger.find(secret, 1, f"{names[number]}:{row}")
            prompts.append(prompt_hash(prompt))
    finally:
        examples.abandon()
        texts.abandon()
    refuse(reading.refused, settings, ledger)
    ledger.notes["layouts"] = reading.layouts
    similar, kind = texts.close(), reading.kind or "chat"
    spool = similar if kind == "text" else examples.close()
    is_held_out, remaining = spool.origins[:, 0] >= len(files), np.ones(len(spool), bool)
    if not settings.repeats:
        remaining = _without_repeats(spool, names, is_held_out, ledger)
    given, share = None, settings.held_out
    if held_out_files:
        given = is_held_out
        remaining = without_kin_of(
            given, similar, remaining, lambda reason, file, row: ledger.drop(reason, f"{names[file]}:{row}", "")
        )
    if kind == "text" and are_few(similar, remaining if given is None else remaining & ~given, share):
        spool, split = split_sections(similar, remaining, share, work, given)
    elif given is None:
        is_usual = kind != "text" and "held_out" not in settings.model_fields_set
        judging = judging_share(int(remaining.sum()), share) if is_usual else share
        split = split_rows(similar, np.array(prompts, np.uint64), remaining, judging, SELECTION_SHARE * share)
    else:
        levels = row_clusters(similar, np.array(prompts, np.uint64))
        split = split_given(similar, levels, remaining, given, share, by_rows=True)
    collected = CollectedRows(spool, split.sides, split.families, kind, names)
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


def _without_repeats(examples: DocumentBuffer, names: list[str], is_held_out: np.ndarray, ledger: Ledger) -> np.ndarray:
    """Which examples remain, bool (R,): the first of identical ones; held-out ones that a person gave all stay."""
    _, first = np.unique(examples.hashes, return_index=True)
    remaining = is_held_out.copy()
    remaining[first] = True
    for file, row in examples.origins[~remaining].tolist():
        ledger.drop("exact duplicate", f"{names[file]}:{row}", "")
    return remaining


def _refuse_one_sided(collected: CollectedRows, ledger: Ledger) -> None:
    if not len(collected.sides):
        raise DataError(
            f"there are no rows in what was given ({ledger.summary()})",
            "rows are read from .jsonl, .json, .csv and .parquet, one example each",
        )
    for side, name in SIDES.items():
        if not (collected.sides == side).any():
            remaining = int((collected.sides != DROPPED).sum())
            fix = "give more varied examples, or held-out ones of their own with --rows.held-out-from"
            if remaining < len(SIDES):
                rows = "1 row is" if remaining == 1 else f"{remaining} rows are"
                needed = "training, selection and test need rows of their own"
                raise DataError(f"{rows} too few: {needed} ({ledger.summary()})", fix)
            name = "training" if side == TRAIN else name.replace("_", "-")
            raise DataError(
                f"the {remaining} rows are too much alike: nearly the same rows are kept together, and none are left "
                f"for {name} ({ledger.summary()})",
                fix,
            )


def _all_words(example: Example) -> str:
    """Everything that the model may learn to say."""
    turns = [*example.messages, *example.chosen, *example.rejected]
    return "\n\n".join([example.text, *(message["content"] for message in turns)])

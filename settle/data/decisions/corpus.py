"""From files of labelled rows to the stores that a decision model is trained, calibrated and judged on.

There are three sides: rows that train, that select the weights and fit the temperatures, and that judge. Near
duplicates are on one side; classes are spread evenly over the sides, since rows may be few. Of training rows several
variants are stored, each with its options in another order; a store's `shares.bin` holds the share of every label.
Legend: R rows, K options.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.errors import DataError
from settle.base.files import read_json, write_json
from settle.base.tokenizer import Tokenizer
from settle.data.corpus import CorpusBuilder, Ledger, Sources, corpus_folder, fingerprint_of
from settle.data.decisions.prompt import (
    DecisionEncoder,
    DecisionPrompt,
    labels_of,
    num_variants,
    orders_of,
    own_order,
    with_changing_options,
)
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow, Placed, decision_rows, state_columns
from settle.data.layouts import Example
from settle.data.rows.prepare import TOO_LONG, Preview, RowCorpus
from settle.data.settings import RowSettings
from settle.data.split import row_families
from settle.data.store import SHARES, RowStore, RowWriter
from settle.documents.reader_pool import RowReader
from settle.documents.rows import problem_of

SIDES = ("train", "selection", "held_out")
TRAIN, SELECTION, HELD_OUT = range(3)
HELD_OUT_SHARE, SELECTION_SHARE = 0.2, 0.1
UNTRAINED_SHARE = HELD_OUT_SHARE + SELECTION_SHARE
_VERSION = 3  # of what is made of the same input
MOST_TOKENS, FEWEST_VARIANTS, MOST_VARIANTS = 16 << 20, 4, 24
FEWEST_ROWS = 20
_PREVIEWS = 3


def split_decisions(
    rows: Sequence[DecisionRow], held_out: float, given: Sequence[bool] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the side and the family of each row, int64 (R,) both.

    held_out: share that judges, unless the user has `given` the rows that do, (R,); a near duplicate of one of those is
    left out: its side is -1.
    """
    families = np.array(row_families([Example("text", text=row.state) for row in rows]), np.int64)
    sides = np.full(len(rows), TRAIN)
    judged = np.zeros(len(rows), bool) if given is None else np.asarray(given, bool)
    sides[np.isin(families, families[judged])] = -1
    sides[judged] = HELD_OUT
    wanted = {SELECTION: SELECTION_SHARE}
    if given is None:
        wanted[HELD_OUT] = held_out
    # families of a class follow each other, and each takes the side that is furthest behind what it should have
    first = {families[number]: number for number in np.flatnonzero(sides == TRAIN)[::-1].tolist()}
    order = sorted(first, key=lambda family: (rows[first[family]].best, _hash(rows[first[family]].state)))
    sizes = np.bincount(families, sides == TRAIN, families.max(initial=0) + 1)
    wanted[TRAIN] = 1 - sum(wanted.values())
    had, seen = dict.fromkeys(wanted, 0.0), 0.0
    for family in order:
        if not sizes[family]:
            continue
        seen += sizes[family]
        side = max(wanted, key=lambda side: wanted[side] * seen - had[side] - sizes[family] / 2)
        had[side] += sizes[family]
        sides[(families == family) & (sides == TRAIN)] = side
    return sides, families


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()


@dataclass(frozen=True)
class DecisionCorpus(RowCorpus):
    """Decisions to train on, to select and calibrate by, and to judge.

    selection: fits the temperatures too. labels: text → id of as many labels as any question has options.
    """

    labels: Mapping[str, int]
    prompt: DecisionPrompt

    def rows(self, side: str) -> list[DecisionRow]:
        """Return the rows of a side as they were read, in the order of its store."""
        with (corpus_folder(self.fingerprint) / side / "rows.jsonl").open(encoding="utf-8") as lines:
            return [_row(json.loads(line)) for line in lines]

    def questions(self) -> dict[str, Question]:
        """Return the questions by name; where options differ from row to row, the first."""
        return {row.name: row.question for row in reversed(self.rows("train"))}


def prepare_decisions(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    settings: RowSettings,
    instructions: str = "",
    shuffle: bool | None = None,
) -> DecisionCorpus:
    """Return the decisions of `inputs` as `tokenizer`'s model learns them, made if they are not there yet.

    instructions: what is asked about each row of a table; made of the label column's name when empty. shuffle: whether
    a choice's options change places each epoch; by default those of questions whose options differ from row to row.
    Raises DataError for rows without a label, for too few of them, and for labels that are not a single token.
    """
    prompt = prompt_for(tokenizer)
    with CorpusBuilder.of(inputs, settings.held_out_from) as builder:
        sources, ledger = builder.sources, builder.ledger

        def make() -> list[str]:
            rows, given = _read(sources, settings, instructions, ledger)
            labels = labels_of(tokenizer, max(len(row.question.options) for row in rows))
            encoder = DecisionEncoder(tokenizer, prompt, labels)
            shuffled = with_changing_options(rows) if shuffle is None else {row.name for row in rows if shuffle}
            ledger.notes["shuffled"] = sorted(shuffled)
            _write(builder.folder, rows, given, encoder, tokenizer, settings, ledger)
            about = {"labels": labels, "prompt": asdict(prompt), "template": tokenizer.chat_template or None}
            write_json(
                builder.folder / "decisions.json",
                about | {"previews": [preview.to_json() for preview in _previews(rows, encoder)]},
            )
            return [file.name for file in sources.files]

        ids = [tokenizer.bos_id, tokenizer.eos_id, bool(tokenizer.add_bos), tokenizer.pre]
        choices = settings.model_dump(mode="json") | {"asked": sorted(settings.model_fields_set)}
        content = ["decisions", _VERSION, *sources.identity, choices, (instructions, shuffle), asdict(prompt), ids]
        return builder.stored_or_made(fingerprint_of(content, tokenizer), open_decisions, make)


def prompt_for(tokenizer: Tokenizer) -> DecisionPrompt:
    """Return the prompt of decisions for the model of that tokenizer."""
    if not tokenizer.chat_template:
        return DecisionPrompt.of(tokenizer, None)
    bos, eos = (tokenizer.tokens[i] if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id))
    return DecisionPrompt.of(tokenizer, ChatTemplate(tokenizer.chat_template, bos, eos))


def open_decisions(folder: Path) -> DecisionCorpus:
    """Return the corpus in that folder."""
    about = read_json(folder / "decisions.json")
    return DecisionCorpus(
        **{side: RowStore(folder / side) for side in SIDES},
        kind="decision",
        template=about["template"],
        ledger=read_json(folder / "ledger.json"),
        previews=[Preview.from_json(preview) for preview in about["previews"]],
        fingerprint=folder.name,
        labels=about["labels"],
        prompt=DecisionPrompt(**about["prompt"] | {"signs": tuple(about["prompt"]["signs"])}),
    )


def _read(
    sources: Sources, settings: RowSettings, instructions: str, ledger: Ledger
) -> tuple[list[DecisionRow], list[bool] | None]:
    """Return all rows, each once, and which of them the user gave to judge by, where there are such."""
    records: list[Placed] = []
    numbers: list[int] = []
    with RowReader(sources.files, ledger.note_omission) as reader:
        for number, file in enumerate(sources.files):
            for record in reader.records(file):
                ledger.read += 1
                value, where = record.get("value"), f"{file.name}:{record['row']}"
                if not isinstance(value, Mapping):
                    what = f"{where} cannot be used: {problem_of(record)}"
                    raise DataError(what, "give .csv, .jsonl or .parquet files of rows")
                records.append((where, value))
                numbers.append(number)
    rows = decision_rows(records, settings.columns.label, instructions)
    ledger.notes["columns"] = list(state_columns(records, settings.columns.label))
    file_of = {where: number for (where, _), number in zip(records, numbers, strict=True)}
    ledger.notes["unlabelled"] = len(records) - len({row.origin for row in rows})
    unique: dict[tuple[object, ...], DecisionRow] = {}
    for row in rows:
        key = (row.state, row.question, row.target, file_of[row.origin] >= len(sources.train))
        if key in unique and not settings.repeats:
            ledger.drop("exact duplicate", row.origin, "")
        else:
            unique[key if not settings.repeats else (*key, row.origin)] = row
    rows = list(unique.values())
    _note(rows, ledger)
    given = [file_of[row.origin] >= len(sources.train) for row in rows] if sources.held_out else None
    return rows, given


def _note(rows: Sequence[DecisionRow], ledger: Ledger) -> None:
    """Count classes, and rows of one state and question that have different answers.

    Raises DataError for so few rows that nothing can be learned or shown.
    """
    if len(rows) < FEWEST_ROWS:
        raise DataError(f"{len(rows)} labelled rows are too few", f"give at least {FEWEST_ROWS}, better 200 or more")
    classes: dict[str, Counter[str]] = {}
    answers: dict[tuple[str, Question], set[int]] = {}
    for row in rows:
        classes.setdefault(row.name, Counter())[row.question.options[row.best].key] += 1
        answers.setdefault((row.state, row.question), set()).add(row.best)
    for name, counted in classes.items():
        if len(counted) < 2:
            raise DataError(f"every answer to {name!r} is {next(iter(counted))!r}", "give rows of at least two classes")
    ledger.notes["rows"] = {"row_kind": "decision"}
    ledger.notes["classes"] = {name: dict(counted.most_common()) for name, counted in classes.items()}
    ledger.notes["contradictions"] = sum(len(best) > 1 for best in answers.values())


def _write(
    folder: Path,
    rows: Sequence[DecisionRow],
    given: Sequence[bool] | None,
    encoder: DecisionEncoder,
    tokenizer: Tokenizer,
    settings: RowSettings,
    ledger: Ledger,
) -> None:
    """Build the three stores. Raises DataError where a side would have no rows."""
    own = [encoder.encode(row, own_order(row.question)) for row in rows]
    longest = settings.max_tokens
    is_fitting = np.array([longest is None or len(encoded.ids) <= longest for encoded in own])
    for row, fits in zip(rows, is_fitting.tolist(), strict=True):
        if not fits:
            ledger.drop(TOO_LONG, row.origin, row.state)
    if is_fitting.mean() < 1 - settings.most_too_long:
        raise DataError(
            f"{int((~is_fitting).sum())} of {len(rows)} rows are longer than {longest} tokens",
            "shorten their texts, allow longer rows with --rows.max-tokens, or take a base with a longer context",
        )
    share = settings.held_out if "held_out" in settings.model_fields_set else HELD_OUT_SHARE
    sides, families = split_decisions(rows, share, given)
    sides = np.where(is_fitting, sides, -1)
    tokens = sum(len(own[number].ids) for number in np.flatnonzero(sides == TRAIN))
    variants = num_variants(tokens, MOST_TOKENS, FEWEST_VARIANTS, MOST_VARIANTS) if ledger.notes["shuffled"] else 1
    names = list(dict.fromkeys(row.origin.rpartition(":")[0] for row in rows))
    for number, side in enumerate(SIDES):
        chosen = np.flatnonzero(sides == number).tolist()
        if not chosen:
            raise DataError(f"no rows are left for the {side.replace('_', '-')} side", "give more rows, or more varied")
        ledger.kept += len(chosen)
        times, shares = (variants if number == TRAIN else 1), []
        with ExitStack() as stack:
            writer = RowWriter(folder / side, tokenizer.eos_id, tokenizer.dtype, variants=times)
            stack.enter_context(writer)
            lines = stack.enter_context((folder / side / "rows.jsonl").open("w", encoding="utf-8"))
            for index in chosen:
                row = rows[index]
                stored = {**vars(row), "question": row.question.to_json()}
                lines.write(json.dumps(stored, ensure_ascii=False) + "\n")
                random = np.random.default_rng([index, len(rows)])
                orders = [own_order(row.question)] * times
                if number == TRAIN and row.name in ledger.notes["shuffled"]:
                    orders = orders_of(row.question, times, random)
                name, _, line = row.origin.rpartition(":")
                for order in orders:
                    encoded = encoder.encode(row, order)
                    mask = np.zeros(len(encoded.ids), np.uint8)
                    mask[encoded.label_start] = 1
                    origin = (names.index(name), int(line), int(families[index]))
                    writer.add(encoded.ids, mask, origin, len(encoded.text))
                    shares.append(encoded.shares)
            store = writer.close()
        ledger.notes[side] = {"rows": len(chosen), "tokens": store.num_tokens, "bytes": store.num_bytes}
        ledger.kept_bytes += store.num_bytes
        table = np.full((len(shares), max(map(len, shares))), -1, np.float32)  # -1 where a row has fewer options
        for place, own_shares in enumerate(shares):
            table[place, : len(own_shares)] = own_shares
        table.tofile(folder / side / SHARES)


def _previews(rows: Sequence[DecisionRow], encoder: DecisionEncoder) -> list[Preview]:
    """Return a few rows as they are learned: the label is what is supervised."""
    shown = []
    for row in rows[:: max(1, len(rows) // _PREVIEWS)][:_PREVIEWS]:
        order = own_order(row.question)
        text = encoder.prompt.text(row.state, row.question, order, encoder.labels)
        pieces = [(text, False), (encoder.labels[row.best], True)]
        shown.append(Preview(row.origin, "", pieces, len(encoder.encode(row, order).ids), 1))
    return shown


def _row(stored: dict[str, Any]) -> DecisionRow:
    question, target = Question.from_json(stored["question"]), tuple(stored["target"])
    return DecisionRow(**stored | {"question": question, "target": target})

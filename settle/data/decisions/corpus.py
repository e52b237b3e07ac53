"""From files of labelled rows to the stores that a decision model is trained, calibrated and judged on.

Of training rows several variants are stored, each with its options in another order; a store's `shares.bin` holds the
share of every label. Legend: R rows, K options.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.errors import DataError
from settle.base.files import read_json, write_json
from settle.base.tokenizer import Tokenizer
from settle.data.decisions.encode import DecisionEncoder, num_variants, orders_of, own_order, with_changing_options
from settle.data.decisions.prompt import DecisionPrompt, labels_of
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow, Placed, decision_rows, state_columns
from settle.data.decisions.split import HELD_OUT_SHARE, SIDES, TRAIN, split_decisions
from settle.data.files import Sources, corpus_folder, describe_sources, find_sources, stored_corpus
from settle.data.ledger import Ledger
from settle.data.rows.encode_rows import TOO_LONG, Preview
from settle.data.rows.prepare import RowCorpus
from settle.data.rows.store import SHARES, RowStore, RowWriter
from settle.data.settings import RowSettings
from settle.data.workspace import publish, workspace
from settle.documents.row_reader import RowReader

_VERSION = 3  # of what is made of the same input
MOST_TOKENS, FEWEST_VARIANTS, MOST_VARIANTS = 16 << 20, 4, 24
FEWEST_ROWS = 20
_PREVIEWS = 3


@dataclass(frozen=True)
class DecisionCorpus(RowCorpus):
    """selection: what fits the temperatures too. labels: text → id of as many labels as any question has options."""

    labels: Mapping[str, int]
    prompt: DecisionPrompt

    def rows(self, side: str) -> list[DecisionRow]:
        """The rows of a side as they were read, in the order of its store."""
        with (corpus_folder(self.fingerprint) / side / "rows.jsonl").open(encoding="utf-8") as lines:
            return [_row(json.loads(line)) for line in lines]

    def questions(self) -> dict[str, Question]:
        """The questions that are asked, by name; of one whose options differ from row to row the first."""
        return {row.name: row.question for row in reversed(self.rows("train"))}


def prepare_decisions(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    settings: RowSettings,
    instructions: str = "",
    shuffle: bool | None = None,
) -> DecisionCorpus:
    """The decisions of `inputs` as `tokenizer`'s model learns them, made if they are not there yet. instructions: what
    is asked about each row of a table; made of the label column's name when empty. shuffle: whether a choice's options
    change places each epoch; by default those of questions whose options differ from row to row.

    Raises DataError for what is no labelled row, for too few of them, and for labels that are no single token.
    """
    prompt = prompt_for(tokenizer)
    with workspace() as work:
        ledger = Ledger()
        sources = find_sources(inputs, settings.held_out_from, work, ledger)
        fingerprint = _fingerprint(sources, tokenizer, settings, (instructions, shuffle), prompt)
        if known := stored_corpus(fingerprint, open_decisions):
            return known
        describe_sources(ledger, sources)
        rows, given = _read(sources, settings, instructions, ledger)
        labels = labels_of(tokenizer, max(len(row.question.options) for row in rows))
        encoder = DecisionEncoder(tokenizer, prompt, labels)
        shuffled = {row.name for row in rows} if shuffle else set() if shuffle is False else with_changing_options(rows)
        ledger.notes["shuffled"] = sorted(shuffled)
        _write(work / "corpus", rows, given, encoder, tokenizer, settings, ledger)
        write_json(work / "corpus" / "files.json", [file.name for file in sources.files])
        about = {"labels": labels, "prompt": asdict(prompt), "template": tokenizer.chat_template or None}
        write_json(work / "corpus" / "decisions.json", about | {"previews": _previews(rows, encoder)})
        write_json(work / "corpus" / "ledger.json", ledger.as_dict())
        publish(work / "corpus", corpus_folder(fingerprint))
        return open_decisions(corpus_folder(fingerprint))


def prompt_for(tokenizer: Tokenizer) -> DecisionPrompt:
    """The prompt of decisions for the model of that tokenizer."""
    if not tokenizer.chat_template:
        return DecisionPrompt.of(tokenizer, None)
    bos, eos = (tokenizer.tokens[i] if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id))
    return DecisionPrompt.of(tokenizer, ChatTemplate(tokenizer.chat_template, bos, eos))


def open_decisions(folder: Path) -> DecisionCorpus:
    """The corpus in that folder."""
    about = read_json(folder / "decisions.json")
    stores = {side: RowStore(folder / side) for side in SIDES}
    prompt = about["prompt"]
    return DecisionCorpus(
        **stores,
        kind="decision",
        template=about["template"],
        ledger=read_json(folder / "ledger.json"),
        previews=[Preview.from_json(preview) for preview in about["previews"]],
        fingerprint=folder.name,
        labels=about["labels"],
        prompt=DecisionPrompt(prompt["opening"], prompt["closing"], tuple(prompt["signs"])),
    )


def _read(
    sources: Sources, settings: RowSettings, instructions: str, ledger: Ledger
) -> tuple[list[DecisionRow], list[bool] | None]:
    """All rows, each once, and which of them a person gave to judge by, where one did."""
    records: list[Placed] = []
    numbers: list[int] = []
    with RowReader(sources.files, {}, ledger.note_omission) as reader:
        for number, file in enumerate(sources.files):
            for record in reader.records(file):
                ledger.read += 1
                value, where = record.get("value"), f"{file.name}:{record['row']}"
                if not isinstance(value, Mapping):
                    what = record.get("problem", "a row without named values")
                    raise DataError(f"{where} cannot be used: {what}", "give .csv, .jsonl or .parquet files of rows")
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
    """Counts classes, and rows of one state and question that have different answers. Raises DataError for so few rows
    that nothing can be learned or shown."""
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
    """Builds the three stores. Raises DataError where a side would have no rows."""
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
                lines.write(json.dumps(_spelled(row), ensure_ascii=False) + "\n")
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
        _padded(shares).tofile(folder / side / SHARES)


def _padded(shares: Sequence[np.ndarray]) -> np.ndarray:
    """float32 (R, K): -1 where a row has fewer options."""
    table = np.full((len(shares), max(map(len, shares))), -1, np.float32)
    for number, own in enumerate(shares):
        table[number, : len(own)] = own
    return table


def _previews(rows: Sequence[DecisionRow], encoder: DecisionEncoder) -> list[dict[str, object]]:
    """A few rows as they are learned: the label is what is supervised."""
    shown = []
    for row in rows[:: max(1, len(rows) // _PREVIEWS)][:_PREVIEWS]:
        order = own_order(row.question)
        text = encoder.prompt.text(row.state, row.question, order, encoder.labels)
        pieces = [(text, False), (encoder.labels[row.best], True)]
        shown.append(Preview(row.origin, "", pieces, len(encoder.encode(row, order).ids), 1).to_json())
    return shown


def _spelled(row: DecisionRow) -> dict[str, object]:
    question = row.question.to_json()
    return {"state": row.state, "name": row.name, "question": question, "target": row.target, "origin": row.origin}


def _row(value: Mapping[str, object]) -> DecisionRow:
    target = value["target"]
    assert isinstance(target, list)
    question = Question.from_json(value["question"])
    return DecisionRow(str(value["state"]), str(value["name"]), question, tuple(target), str(value["origin"]))


def _fingerprint(
    sources: Sources, tokenizer: Tokenizer, settings: RowSettings, asked: tuple[object, ...], prompt: DecisionPrompt
) -> str:
    ids = [tokenizer.bos_id, tokenizer.eos_id, bool(tokenizer.add_bos), tokenizer.pre]
    choices = settings.model_dump(mode="json") | {"asked": sorted(settings.model_fields_set)}
    content = ["decisions", _VERSION, *sources.identity, choices, asked, asdict(prompt), ids]
    digest = hashlib.sha256(json.dumps(content, default=str).encode())
    digest.update("\n".join(tokenizer.tokens).encode("utf-8", "replace"))
    digest.update("\n".join(tokenizer.merges).encode("utf-8", "replace"))
    return digest.hexdigest()[:32]

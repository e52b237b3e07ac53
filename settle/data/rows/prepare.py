"""From files of examples to row stores: read → split → render → supervise and prove → tokens. Reused when unchanged."""

import dataclasses
import datetime
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from settle.base.chat_template import ChatTemplate, with_default_system
from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, RowSummary
from settle.base.files import read_bounded, read_json, write_json
from settle.base.tokenizer import Tokenizer
from settle.data.corpus import (
    SUMMARIZED,
    CorpusBuilder,
    Ledger,
    LedgerRecord,
    Sources,
    corpus_folder,
    fingerprint_of,
    stored_corpus,
)
from settle.data.layouts import Broken, Example, Kind
from settle.data.rows.collect import CollectedRows, RefusedRows, collect_rows, refuse
from settle.data.rows.render import KNOWN, Rendered, Renderer, TemplateAdapter, fitting
from settle.data.rows.supervision import Encoded, Supervision, pieces_of, shortened
from settle.data.settings import RowSettings
from settle.data.split import SIDES, TRAIN
from settle.data.store import RowStore, RowWriter

TOO_LONG = "longer than the limit, before its first answer ends"
AHEAD = 8  # examples that are rendered before they are encoded

T = TypeVar("T")
Rows = list[tuple[Encoded, ...]]  # of one example: each of one segment or, of a preference, of two


@dataclass(frozen=True)
class Preview:
    """A row as it is learned from: pieces of text, each supervised or not.

    part: chosen or rejected, of a preference. num_tokens: of the whole row. num_supervised: of those that are targets.
    """

    origin: str
    part: str
    pieces: list[tuple[str, bool]]
    num_tokens: int
    num_supervised: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preview":
        return cls(**value | {"pieces": [(text, supervised) for text, supervised in value["pieces"]]})

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


class RowEncoder:
    """Encoder of examples.

    context: tokens that the model reads at most. wanted: tokens that each example would have needed to keep all of its
    answers.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        settings: RowSettings,
        kind: Kind,
        context: int | None = None,
    ) -> None:
        self.supervision = Supervision(tokenizer)
        self.supervise = settings.supervise or "assistant"
        if kind == "text":
            self.supervise = "all"
        arguments = {} if settings.thinking is None else {"enable_thinking": settings.thinking}
        self.renderer = Renderer(template, self.supervision.stops, self.supervision.controls, self.supervise, arguments)
        self._longest, self._context = settings.max_tokens, context
        self._piece = min(filter(None, [settings.max_tokens, settings.piece_tokens]), default=None)
        self.wanted: list[int] = []
        self.dropped_long = self.shortened = self.answers_lost = self.split_rows = 0

    def rows(self, examples: Iterable[tuple[T, Example]]) -> Generator[tuple[T, Example, Rows | Broken]]:
        """Yield the rows of each example, or why it has none.

        A template's process renders the next examples while this one is encoded.
        """
        if self.renderer.source is None:
            for label, example in examples:
                yield label, example, self._rows_or_reason(example, partial(self._render, example))
            return
        waiting: deque[tuple[T, Example, Future[Sequence[Rendered]]]] = deque()
        pool = ThreadPoolExecutor(1, "render ahead")
        left = iter(examples)
        try:
            while True:
                for label, example in islice(left, AHEAD + 1 - len(waiting)):
                    waiting.append((label, example, pool.submit(self._render, example)))
                if not waiting:
                    return
                label, example, rendering = waiting.popleft()
                yield label, example, self._rows_or_reason(example, rendering.result)
        finally:
            pool.shutdown(cancel_futures=True)

    def _rows_or_reason(self, example: Example, rendered: Callable[[], Sequence[Rendered]]) -> Rows | Broken:
        try:
            return self._encode(example, rendered())
        except Broken as e:
            return e

    def _render(self, example: Example) -> Sequence[Rendered]:
        return self.renderer.pair(example) if example.kind == "preference" else self.renderer.rows(example)

    def _encode(self, example: Example, rendered: Sequence[Rendered]) -> Rows:
        encoded = [self.supervision.encode(row) for row in rendered]
        if example.kind == "preference":
            return [self._pair(encoded[0], encoded[1])]
        if example.kind == "text":
            parts = pieces_of(encoded[0], self._piece) if self._piece else encoded
            return [(part,) for part in parts if len(part.ids) > 1]
        self.wanted.append(max(len(row.ids) for row in encoded))
        self.split_rows += len(encoded) - 1
        return [(row,) for row in self._fitted(encoded)]

    def preview(self, origin: str, rows: tuple[Encoded, ...]) -> list[Preview]:
        """Return how a row reads, segment by segment."""
        parts = ("chosen", "rejected") if len(rows) == 2 else ("",)
        return [
            Preview(origin, part, self.supervision.shown(row.ids, row.mask), len(row.ids), int(row.mask.sum()))
            for part, row in zip(parts, rows, strict=True)
        ]

    def refuse_lost_answers(self, most: float) -> None:
        """Raise DataError when more than that share of the examples lost an answer for its length."""
        affected = self.dropped_long + self.shortened
        if affected > most * len(self.wanted):
            lengths = np.array(self.wanted)
            share = min(1.0, affected / len(lengths) + 0.005)
            raise DataError(
                f"{affected} of {len(lengths)} rows are longer than {self._longest} tokens: {self.dropped_long} would "
                f"be left out, {self.shortened} would lose their last answers",
                f"{self._more_room(lengths)}; or allow it with --rows.most-too-long {share:.2f}",
            )

    def _more_room(self, lengths: np.ndarray) -> str:
        """Return what to do for rows of these lengths (n,): a larger limit, if the model reads as much."""
        longest, most = int(lengths.max()), int(np.quantile(lengths, 0.95))
        room = self._context or longest
        needs = ((longest, "holds every row"), (most, "holds 95 in 100"))
        if ways := [f"{tokens} {what}" for tokens, what in needs if tokens <= room]:
            return f"--rows.max-tokens {' and '.join(ways)}"
        return f"the model reads {room} tokens at most: split the rows, or take a model with a longer context"

    def _fitted(self, encoded: list[Encoded]) -> list[Encoded]:
        if self._longest is None:
            return encoded
        fitting, lost = [], 0
        for row in encoded:
            short, missing = (row, 0) if len(row.ids) <= self._longest else shortened(row, self._longest)
            lost += missing
            fitting += [short] if short is not None else []
        self.answers_lost += lost
        if not fitting:
            self.dropped_long += 1
            raise Broken(TOO_LONG)
        self.shortened += bool(lost)
        return fitting

    def _pair(self, chosen: Encoded, rejected: Encoded) -> tuple[Encoded, Encoded]:
        length = max(len(chosen.ids), len(rejected.ids))
        self.wanted.append(length)
        if self._longest is not None and length > self._longest:
            self.dropped_long += 1
            self.answers_lost += 2
            raise Broken(TOO_LONG)
        return chosen, rejected


_VERSION = 5  # of everything below: a change in what it makes of the same input counts this up
_PLAIN = "none"
_PREVIEWS = 5
_HOPELESS = 100  # examples that are refused, and none is good: it is the template
_REPORT_EVERY = 256  # examples between two progress events


@dataclass(frozen=True)
class RowCorpus:
    """Everything tuning needs to know of its rows.

    ledger: plain JSON values, see `Ledger.as_dict`. selection: what chooses the weights. held_out: what judges them,
    once. template: the chat template the rows were rendered with, which an export has to carry, with the system prompt
    that all of them share as its default; None when they are plain. previews: a few training rows as they are learned
    from.
    """

    train: RowStore
    selection: RowStore
    held_out: RowStore
    kind: Kind
    template: str | None
    ledger: LedgerRecord
    previews: list[Preview]
    fingerprint: str

    def examples(self, side: str = "held_out") -> Iterator[Example]:
        """Yield the examples of a side in the order of its rows, each prompt in the form of the template."""
        adapter = TemplateAdapter(ChatTemplate(self.template) if self.template else None, {})
        with (corpus_folder(self.fingerprint) / side / "examples.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield adapter.asking(Example(**json.loads(line)))


def prepare_rows(
    inputs: Sequence[str], tokenizer: Tokenizer, settings: RowSettings, events: Events, context: int | None = None
) -> RowCorpus:
    """Return the rows of `inputs` (files, folders, `-`) as `tokenizer`'s model learns from them, made if needed.

    tokenizer: with the model's chat template. context: tokens that the model reads at most, so that no row is longer,
    whatever the settings allow. Raises DataError when rows are mixed, broken or too long, ProofError when a template
    does not end its turns, ResourceError on a full disk.
    """
    if context:
        settings = settings.model_copy(update={"max_tokens": min(settings.max_tokens or context, context)})
    template, note = _template(tokenizer, settings)
    with CorpusBuilder.of(inputs, settings.held_out_from) as builder:

        def make() -> list[str]:
            collected = collect_rows(builder.sources, settings, builder.ledger, events, builder.work)
            encoder = RowEncoder(tokenizer, template, settings, collected.kind, context)
            encoder.renderer.adapter.notes.update(filter(None, [note]))
            write_rows(builder.folder, collected, encoder, tokenizer, settings, builder.ledger, events)
            return collected.names

        fingerprint = _fingerprint(builder.sources, settings, tokenizer, template)
        corpus = builder.stored_or_made(fingerprint, _open, make)
    ledger = corpus.ledger
    summary = {name: ledger[name] for name in (*SUMMARIZED, "layouts")}
    events.emit(RowSummary(**summary, **ledger["rows"], omissions=ledger.get("omissions", {})))
    return corpus


def prepared_rows(fingerprint: str) -> RowCorpus | None:
    """Return the rows of that fingerprint if they were made before, and are still there and undamaged."""
    return stored_corpus(fingerprint, _open)


def _open(folder: Path) -> RowCorpus:
    about = read_json(folder / "rows.json")
    segments = 2 if about["kind"] == "preference" else 1
    return RowCorpus(
        RowStore(folder / "train", segments),
        RowStore(folder / "selection", segments),
        RowStore(folder / "held_out", segments),
        about["kind"],
        about["template"],
        read_json(folder / "ledger.json"),
        [Preview.from_json(preview) for preview in about["previews"]],
        folder.name,
    )


def _template(tokenizer: Tokenizer, settings: RowSettings) -> tuple[ChatTemplate | None, str]:
    """Return the template asked for, the model's own or one that fits it, and a note where it is not its own.

    None when rows are to be taken as they are.
    """
    choice, source, note = settings.template, tokenizer.chat_template, ""
    if choice == _PLAIN:
        return None, ""
    if choice in KNOWN:
        source = KNOWN[choice]
    elif choice is not None:
        try:
            source = read_bounded(Path(choice).expanduser())
        except (OSError, UnicodeDecodeError) as e:
            known = ", ".join([*KNOWN, _PLAIN])
            why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
            raise UsageError(
                f"the chat template {str(choice)!r} cannot be read: {why}", f"give a file, or {known}"
            ) from None
    elif not source:
        name = fitting(set(tokenizer.tokens))
        source, note = KNOWN[name], f"the model has no chat template: {name} is used, and goes with it"
    bos, eos = (tokenizer.tokens[i] if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id))
    return ChatTemplate(source, bos, eos), note


def _fingerprint(sources: Sources, settings: RowSettings, tokenizer: Tokenizer, template: ChatTemplate | None) -> str:
    choices = settings.model_dump(mode="json") | {"held_out_from": bool(sources.held_out), "template": None}
    choices["held_out_is_asked"] = "held_out" in settings.model_fields_set
    if settings.piece_tokens is None:
        del choices["piece_tokens"]
    source = template.source if template else ""
    # a template that asks for the day writes another text tomorrow
    day = datetime.date.today().isoformat() if "strftime_now" in source else ""
    ids = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.turn_end_id, bool(tokenizer.add_bos), tokenizer.pre]
    return fingerprint_of(["rows", _VERSION, *sources.identity, choices, source, day, ids], tokenizer)


def write_rows(
    corpus: Path,
    collected: CollectedRows,
    encoder: RowEncoder,
    tokenizer: Tokenizer,
    settings: RowSettings,
    ledger: Ledger,
    events: Events,
) -> None:
    """Build `corpus`.

    Raises DataError for rows that the template refuses, for too long ones, and if none is left.
    """
    segments = 2 if collected.kind == "preference" else 1
    train = np.flatnonzero(collected.sides == TRAIN)
    shown = set(train[np.unique(np.linspace(0, len(train) - 1, _PREVIEWS).astype(int))].tolist())
    previews: list[Preview] = []
    refused = RefusedRows()
    prompts: set[str] = set()
    with ExitStack() as stack:
        writers: dict[int, RowWriter] = {}
        written = {}
        for side, name in SIDES.items():
            writers[side] = RowWriter(corpus / name, tokenizer.eos_id, tokenizer.dtype, segments)
            stack.enter_context(writers[side])
            written[side] = stack.enter_context((corpus / name / "examples.jsonl").open("w", encoding="utf-8"))
        examples = stack.enter_context(closing(encoder.rows(_examples(collected, events))))
        for number, example, rows in examples:
            side, where = int(collected.sides[number]), collected.origin(number)
            if isinstance(rows, Broken):
                if str(rows) == TOO_LONG:
                    ledger.drop(TOO_LONG, where, "")
                else:
                    refused.add(str(rows), where)
                if refused.count >= _HOPELESS and not ledger.kept:
                    refuse(refused, settings.model_copy(update={"drop_broken": False}), ledger)
                continue
            for segment in chain.from_iterable(rows):
                num_bytes = len(segment.text.encode("utf-8", "replace"))
                writers[side].add(segment.ids, segment.mask, collected.place(number), num_bytes)
            written[side].write(collected.line(number) + "\n")
            first = example.messages[0] if example.messages else {"role": ""}
            prompts.add(first["content"] if first["role"] == "system" else "")
            ledger.kept += 1
            if number in shown:
                previews += encoder.preview(where, rows[-1])
        refuse(refused, settings, ledger)
        encoder.refuse_lost_answers(settings.most_too_long)
        for side, writer in writers.items():
            if not writer.num_documents:
                raise DataError(
                    f"no rows are left to {'train' if side == TRAIN else 'evaluate'} on ({ledger.summary()})",
                    "give more examples, or shorter ones; --rows.max-tokens allows up to the model's context",
                )
        stores = {side: writer.close() for side, writer in writers.items()}
    shared = prompts.pop() if len(prompts) == 1 else ""
    _describe(corpus, collected, encoder, stores, ledger, previews, shared)


def _examples(collected: CollectedRows, events: Events) -> Iterator[tuple[int, Example]]:
    """Yield the examples of all sides, by their number."""
    total = len(collected.sides)
    for number, side in enumerate(collected.sides.tolist()):
        if not number % _REPORT_EVERY or number == total - 1:
            events.emit(Progress(what="tokenize", done=number + 1, total=total, unit="rows"))
        if side in SIDES:
            yield number, collected.example(number)


def _describe(
    corpus: Path,
    collected: CollectedRows,
    encoder: RowEncoder,
    stores: dict[int, RowStore],
    ledger: Ledger,
    previews: Sequence[Preview],
    system: str,
) -> None:
    """Write the ledger and what is needed to open the corpus. system: the prompt that all rows share, or ""."""
    for side, store in stores.items():
        ledger.notes[SIDES[side]] = {
            "rows": store.num_rows,
            "documents": store.num_documents,
            "tokens": store.num_tokens,
            "supervised": store.num_supervised,
            "bytes": store.num_bytes,
        }
        ledger.kept_bytes += store.num_bytes
    lengths = np.concatenate([store.lengths for store in stores.values()])
    renderer = encoder.renderer
    ledger.notes["rows"] = {
        "row_kind": collected.kind,
        "supervise": encoder.supervise,
        "stops": encoder.supervision.stops,
        "notes": sorted(renderer.adapter.notes),
        "lengths": {name: int(np.quantile(lengths, q)) for name, q in (("median", 0.5), ("p95", 0.95), ("max", 1.0))},
        "too_long": {
            "dropped": encoder.dropped_long,
            "shortened": encoder.shortened,
            "answers_lost": encoder.answers_lost,
        },
        "rendered_apart": encoder.split_rows,
    }
    template = renderer.source
    if system.strip() and template:
        ledger.notes["rows"]["system_prompt"] = system
        template = with_default_system(template, system, renderer.adapter.has_system)
    about = {"kind": collected.kind, "template": template, "previews": [preview.to_json() for preview in previews]}
    write_json(corpus / "rows.json", about)

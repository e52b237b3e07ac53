"""From files of examples to row stores: read → split → render → supervise and prove → tokens. Reused when unchanged."""

import datetime
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.chat_template.default_system import with_default_system
from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, RowSummary
from settle.base.files import read_bounded, read_json, write_json
from settle.base.tokenizer import Tokenizer
from settle.data.corpus import CorpusBuilder, corpus_folder, fingerprint_of, stored_corpus
from settle.data.files import Sources
from settle.data.layouts import Broken, Example, Kind
from settle.data.ledger import SUMMARIZED, Ledger, LedgerRecord
from settle.data.rows.collect import CollectedRows, RefusedRows, collect_rows, refuse
from settle.data.rows.encode_rows import TOO_LONG, Preview, RowEncoder
from settle.data.rows.supervision import Encoded
from settle.data.rows.templates import KNOWN, TemplateAdapter, fitting
from settle.data.settings import RowSettings
from settle.data.split import SIDES, TRAIN
from settle.data.store import RowStore, RowWriter

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
        _report(corpus, events)
        return corpus


def prepared_rows(fingerprint: str) -> RowCorpus | None:
    """Return the rows of that fingerprint if they were made before, and are still there and undamaged."""
    return stored_corpus(fingerprint, _open)


def _report(corpus: RowCorpus, events: Events) -> None:
    """Emit how the rows were understood."""
    ledger = corpus.ledger
    summary = {name: ledger[name] for name in (*SUMMARIZED, "layouts")}
    events.emit(RowSummary(**summary, **ledger["rows"], omissions=ledger.get("omissions", {})))


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
    shown = _shown(collected)
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
            _add(writers[side], rows, collected.place(number))
            written[side].write(collected.line(number) + "\n")
            prompts.add(_system_prompt(example))
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


def _system_prompt(example: Example) -> str:
    """Return the system prompt of an example; "" when it has none."""
    first = example.messages[0] if example.messages else None
    return str(first["content"]) if first and first["role"] == "system" else ""


def _shown(collected: CollectedRows) -> set[int]:
    """Return some training examples, evenly spread."""
    train = np.flatnonzero(collected.sides == TRAIN)
    return set(train[np.unique(np.linspace(0, len(train) - 1, _PREVIEWS).astype(int))].tolist())


def _add(writer: RowWriter, rows: Sequence[tuple[Encoded, ...]], origin: Sequence[int]) -> None:
    for row in rows:
        for segment in row:
            writer.add(segment.ids, segment.mask, origin, len(segment.text.encode("utf-8", "replace")))


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

"""From files of examples to row stores: read → split → render → supervise and prove → tokens. Reused when unchanged."""

import datetime
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.chat_template import ChatTemplate
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import RowSummary
from settle.base.files import read_bounded, read_json
from settle.base.tokenizer import Tokenizer
from settle.data.files import Sources, corpus_folder, describe_sources, find_sources, stored_corpus
from settle.data.layouts import Example, Kind
from settle.data.ledger import SUMMARIZED, Ledger, LedgerRecord
from settle.data.rows.collect import collect_rows
from settle.data.rows.encode_rows import Preview, RowEncoder
from settle.data.rows.known_templates import KNOWN, fitting
from settle.data.rows.store import RowStore
from settle.data.rows.template_adaptation import TemplateAdapter
from settle.data.rows.write_rows import write_rows
from settle.data.settings import RowSettings
from settle.data.workspace import publish, workspace

_VERSION = 5  # of everything below: a change in what it makes of the same input counts this up
_PLAIN = "none"


@dataclass(frozen=True)
class RowCorpus:
    """Everything tuning needs to know of its rows. ledger: plain JSON values, see `Ledger.as_dict`.

    selection: what chooses the weights; held_out: what judges them, once.
    template: the chat template the rows were rendered with, which an export has to carry, with the system prompt that
    all of them share as its default; None when they are plain.
    previews: a few training rows as they are learned from.
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
        """The examples of a side, in the order of its rows: what is asked as the template takes it, then the answer."""
        adapter = TemplateAdapter(ChatTemplate(self.template) if self.template else None, {})
        with (corpus_folder(self.fingerprint) / side / "examples.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield adapter.asking(Example(**json.loads(line)))


def prepare_rows(
    inputs: Sequence[str], tokenizer: Tokenizer, settings: RowSettings, events: Events, context: int | None = None
) -> RowCorpus:
    """The rows of `inputs` (files, folders, `-`) as `tokenizer`'s model learns from them, made if not there yet.

    tokenizer: with the model's chat template. context: tokens that the model reads at most, so that no row is longer,
    whatever the settings allow. Raises DataError when rows are mixed, broken or too long, ProofError when
    a template does not end its turns, ResourceError on a full disk.
    """
    if context:
        settings = settings.model_copy(update={"max_tokens": min(settings.max_tokens or context, context)})
    template, note = _template(tokenizer, settings)
    with workspace() as work:
        ledger = Ledger()
        sources = find_sources(inputs, settings.held_out_from, work, ledger)
        fingerprint = _fingerprint(sources, settings, tokenizer, template)
        known = prepared_rows(fingerprint)
        if known is not None:
            _tell(known, events)
            return known
        folder = corpus_folder(fingerprint)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one is made again
        describe_sources(ledger, sources)
        collected = collect_rows(sources, settings, ledger, events, work)
        encoder = RowEncoder(tokenizer, template, settings, collected.kind, context)
        encoder.renderer.adapter.notes.update(filter(None, [note]))
        write_rows(work / "corpus", collected, encoder, tokenizer, settings, ledger, events)
        publish(work / "corpus", folder)
        corpus = _open(folder)
        _tell(corpus, events)
        return corpus


def prepared_rows(fingerprint: str) -> RowCorpus | None:
    """The rows of that fingerprint if they were made before, and are still there and undamaged."""
    return stored_corpus(fingerprint, _open)


def _tell(corpus: RowCorpus, events: Events) -> None:
    """How the rows were understood, for a face to show."""
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
    """The template asked for, the model's own or one that fits it, and a word where it is not its own.

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
    content = ["rows", _VERSION, *sources.identity, choices, source, day, ids]
    digest = hashlib.sha256(json.dumps(content, default=str).encode())
    digest.update("\n".join(tokenizer.tokens).encode("utf-8", "replace"))
    digest.update("\n".join(tokenizer.merges).encode("utf-8", "replace"))
    return digest.hexdigest()[:32]

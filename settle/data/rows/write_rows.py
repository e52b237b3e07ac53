"""CollectedRows examples → both row stores, the examples of each side, the ledger and the previews."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from settle.base.chat_template.default_system import with_default_system
from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.files import write_json
from settle.base.tokenizer import Tokenizer
from settle.data.layouts import Broken, Example
from settle.data.ledger import Ledger
from settle.data.rows.collect import CollectedRows, refuse
from settle.data.rows.encode_rows import TOO_LONG, RowEncoder
from settle.data.rows.read_rows import RefusedRows
from settle.data.rows.store import RowStore, RowWriter
from settle.data.rows.supervision import Encoded
from settle.data.settings import RowSettings
from settle.data.split import SIDES, TRAIN

_PREVIEWS = 5
_HOPELESS = 100  # examples that are refused, and none is good: it is the template
_REPORT_EVERY = 256  # examples between two progress events


def write_rows(
    corpus: Path,
    collected: CollectedRows,
    encoder: RowEncoder,
    tokenizer: Tokenizer,
    settings: RowSettings,
    ledger: Ledger,
    events: Events,
) -> None:
    """Builds `corpus`. Raises DataError for rows that the template refuses, for too long ones, and if none is left."""
    segments = 2 if collected.kind == "preference" else 1
    shown = _shown(collected)
    previews: list[dict[str, object]] = []
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
                previews += [preview.to_json() for preview in encoder.preview(where, rows[-1])]
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
    """The examples of all sides, by their number."""
    total = len(collected.sides)
    for number, side in enumerate(collected.sides.tolist()):
        if not number % _REPORT_EVERY or number == total - 1:
            events.emit(Progress(what="tokenize", done=number + 1, total=total, unit="rows"))
        if side in SIDES:
            yield number, collected.example(number)


def _system_prompt(example: Example) -> str:
    """The system prompt of an example; "" when it has none."""
    first = example.messages[0] if example.messages else None
    return str(first["content"]) if first and first["role"] == "system" else ""


def _shown(collected: CollectedRows) -> set[int]:
    """Some training examples, evenly spread."""
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
    previews: list[dict[str, object]],
    system: str,
) -> None:
    """The ledger and what is needed to open the corpus again. system: the prompt that all rows share, or ""."""
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
    write_json(corpus / "files.json", collected.names)
    about = {"kind": collected.kind, "template": template, "previews": previews}
    write_json(corpus / "rows.json", about)
    write_json(corpus / "ledger.json", ledger.as_dict())

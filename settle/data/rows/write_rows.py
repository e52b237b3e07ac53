"""Gathered examples → both row stores, the examples of each side, the ledger and the previews."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.run import write_json
from settle.base.tokenizer import Tokenizer
from settle.data.layouts import Broken
from settle.data.ledger import Ledger
from settle.data.rows.collect import Gathered, refuse
from settle.data.rows.encode_rows import TOO_LONG, Making
from settle.data.rows.read_rows import Refused
from settle.data.rows.store import RowStore, RowWriter
from settle.data.rows.supervision import Encoded
from settle.data.settings import RowSettings
from settle.data.split import HELD_OUT, TRAIN

_SIDES = {TRAIN: "train", HELD_OUT: "held_out"}
_PREVIEWS = 5
_HOPELESS = 100  # examples that are refused, and none is good: it is the template
_TELL_EVERY = 256  # examples between two progress events


def write_rows(
    corpus: Path,
    gathered: Gathered,
    making: Making,
    tokenizer: Tokenizer,
    settings: RowSettings,
    ledger: Ledger,
    events: Events,
) -> None:
    """Builds `corpus`. Raises DataError for rows that the template refuses, for too long ones, and if none is left."""
    segments = 2 if gathered.kind == "preference" else 1
    shown = _shown(gathered)
    previews: list[dict[str, Any]] = []
    refused = Refused()
    with ExitStack() as stack:
        writers: dict[int, RowWriter] = {}
        written = {}
        for side, name in _SIDES.items():
            writers[side] = RowWriter(corpus / name, tokenizer.eos_id, tokenizer.dtype, segments)
            stack.enter_context(writers[side])
            written[side] = stack.enter_context((corpus / name / "examples.jsonl").open("w", encoding="utf-8"))
        total = len(gathered.sides)
        for number, side in enumerate(gathered.sides.tolist()):
            if not number % _TELL_EVERY or number == total - 1:
                events.emit(Progress(what="tokenize", done=number + 1, total=total, unit="rows"))
            if side not in writers:
                continue
            example, where = gathered.example(number), gathered.origin(number)
            try:
                rows = making.rows(example)
            except Broken as e:
                if str(e) == TOO_LONG:
                    ledger.drop(TOO_LONG, where, "")
                else:
                    refused.add(str(e), where)
                if refused.count >= _HOPELESS and not ledger.kept:
                    refuse(refused, settings.model_copy(update={"drop_broken": False}), ledger)
                continue
            _add(writers[side], rows, gathered.examples.origins[number].tolist())
            written[side].write(gathered.line(number) + "\n")
            ledger.kept += 1
            if number in shown:
                previews += [preview.to_json() for preview in making.preview(where, rows[-1])]
        refuse(refused, settings, ledger)
        making.refuse_lost_answers(settings.most_too_long)
        for side, writer in writers.items():
            if not writer.num_documents:
                raise DataError(
                    f"no rows are left to {'train' if side == TRAIN else 'evaluate'} on ({ledger.summary()})",
                    "give more examples, or allow longer ones with --rows.max-tokens",
                )
        stores = {side: writer.close() for side, writer in writers.items()}
    _describe(corpus, gathered, making, stores, ledger, previews)


def _shown(gathered: Gathered) -> set[int]:
    """Some training examples, evenly spread."""
    train = np.flatnonzero(gathered.sides == TRAIN)
    return set(train[np.unique(np.linspace(0, len(train) - 1, _PREVIEWS).astype(int))].tolist())


def _add(writer: RowWriter, rows: Sequence[tuple[Encoded, ...]], origin: Sequence[int]) -> None:
    for row in rows:
        for segment in row:
            writer.add(segment.ids, segment.mask, origin, len(segment.text.encode("utf-8", "replace")))


def _describe(
    corpus: Path,
    gathered: Gathered,
    making: Making,
    stores: dict[int, RowStore],
    ledger: Ledger,
    previews: list[dict[str, Any]],
) -> None:
    """The ledger and what is needed to open the corpus again."""
    for side, store in stores.items():
        ledger.notes[_SIDES[side]] = {
            "rows": store.num_rows,
            "documents": store.num_documents,
            "tokens": store.num_tokens,
            "supervised": store.num_supervised,
            "bytes": store.num_bytes,
        }
        ledger.kept_bytes += store.num_bytes
    lengths = np.concatenate([store.lengths for store in stores.values()])
    renderer = making.renderer
    ledger.notes["rows"] = {
        "row_kind": gathered.kind,
        "supervise": making.supervise,
        "stops": making.supervision.stops,
        "notes": sorted(renderer.dialect.notes),
        "lengths": {name: int(np.quantile(lengths, q)) for name, q in (("median", 0.5), ("p95", 0.95), ("max", 1.0))},
        "too_long": {
            "dropped": making.dropped_long,
            "shortened": making.shortened,
            "answers_lost": making.answers_lost,
        },
        "rendered_apart": making.split_rows,
    }
    write_json(corpus / "files.json", gathered.names)
    about = {"kind": gathered.kind, "template": renderer.source, "previews": previews}
    write_json(corpus / "rows.json", about)
    write_json(corpus / "ledger.json", ledger.as_dict())

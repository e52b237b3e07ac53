"""The rows of a run as its model read them, and how likely a file finds them in llama.cpp."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from settle.base.errors import EngineError, UsageError
from settle.base.run import Run
from settle.data.prepare import prepared
from settle.data.rows.prepare import prepared_rows
from settle.data.store import RowStore, TokenStore
from settle.doctor.training.facts import TrainingFacts
from settle.doctor.trial import HeldSide, Item, typed
from settle.formats.gguf import read_gguf
from settle.infer.scorer import AS_IT_IS, Scorer
from settle.library.facts import longest_context
from settle.library.run_models import models_of

LONGEST = 512  # tokens of a row that are read
WINDOW = 128  # tokens of a document that is no row of examples


@dataclass(frozen=True)
class Served:
    """A file of weights, and the adapter over it."""

    weights: Path
    adapter: Path | None = None

    @classmethod
    def of_run(cls, run: Run) -> "Served | None":
        """Return what a run made; None where it made nothing."""
        for made in models_of(run):
            if made.kind == "model":
                return cls(Path(made.path))
            if made.kind == "adapter" and made.base and Path(made.base).is_file():
                return cls(Path(made.base), Path(made.path))
        return None


class Piece(NamedTuple):
    """A piece of a row, or any text as ids."""

    document: int = 0
    begin: int = 0  # its first token
    ids: Sequence[int] = ()
    first: int = 0  # of the ids, from which on they count
    should: float = 0.0  # nats per token that it should cost at most


@dataclass(frozen=True)
class RunRows:
    """What a run learned from."""

    store: TokenStore | None
    places: Sequence[tuple[int, int]]  # document and first token of pieces, in an order that is the same every time

    @classmethod
    def without_rows(cls) -> "RunRows":
        """Return no rows, to read other text."""
        return cls(None, ())

    def items(self, first: int, number: int) -> list[Item]:
        """Return pieces as the items of a trial; see `Piece`."""
        return [{"document": d, "begin": b} for d, b in self.places[first : first + number]]

    def piece(self, item: Item, longest: int = LONGEST) -> tuple[list[int], np.ndarray]:
        """Return the ids of a `Piece` (L,), at most `longest` of them, and which of them are targets, bool (L,)."""
        piece = typed(item, Piece)
        if piece.ids or self.store is None:
            text = [int(i) for i in piece.ids][:longest]
            return text, np.arange(len(text)) >= piece.first
        document, begin = piece.document, piece.begin
        size = longest if isinstance(self.store, RowStore) else min(longest, WINDOW)
        ids = self.store.document(document)[begin : begin + size]
        if isinstance(self.store, RowStore):
            mask = self.store.mask(document)[begin : begin + size].astype(bool)
        else:
            mask = np.ones(len(ids), bool)
        mask[:1] = False  # nothing stands before it
        return [int(i) for i in ids], mask


def rows_of(facts: TrainingFacts) -> RunRows:
    """Return the rows of a run. Raises UsageError when they were deleted."""
    corpus = prepared_rows(facts.corpus) if facts.base else prepared(facts.corpus)
    if corpus is None:
        raise UsageError(
            f"the tokens that {facts.run.name} learned from were deleted", "run it again: they are made anew"
        )
    store = corpus.train
    if isinstance(store, RowStore):
        kept = [d for d in range(0, store.num_documents, store.segments_per_row) if store.mask(d)[1:LONGEST].any()]
        places = [(d, 0) for d in kept]
    else:
        lengths = np.diff(store.document_starts)
        places = [(d, b) for d in range(min(store.num_documents, 64)) for b in range(0, int(lengths[d]) - 8, WINDOW)]
    order = np.random.default_rng(0).permutation(len(places))
    return RunRows(store, [places[i] for i in order[:64]])


class LossReader:
    """A file in llama.cpp that says how likely it finds rows. Use it as a context manager."""

    def __init__(self, served: Served, rows: RunRows) -> None:
        self._rows = rows
        metadata = read_gguf(served.weights).metadata
        self._longest = min(LONGEST, longest_context(served.weights.name, metadata) - 1)
        self._scorer = Scorer(served.weights, self._longest, overrides=AS_IT_IS._replace(adapter=served.adapter))
        self.worst = 2 * math.log(self._scorer.num_vocab)  # what a row counts whose likelihood is no number

    def __enter__(self) -> "LossReader":
        self._scorer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._scorer.close()

    def nats(self, item: Item) -> float:
        """Return the mean over the targets of a row, at most `worst`."""
        ids, mask = self._rows.piece(item, self._longest)
        try:
            logprobs = np.asarray(self._scorer.rows(ids, top=1, sampled=1).came_logprobs, np.float64)
        except EngineError:
            if not self._scorer.alive():
                raise
            return self.worst  # what it computed is no number
        nats = -logprobs[mask[1:]]
        return min(self.worst, float(nats.mean())) if np.isfinite(nats).all() else self.worst


def losses_of(served: Served, rows: RunRows, items: Sequence[Item]) -> list[float]:
    """Return nats per token of each item."""
    with LossReader(served, rows) as reader:
        return [reader.nats(item) for item in items]


class RowSide(HeldSide[LossReader]):
    """Rows of a run, read by what `make` makes ready."""

    def __init__(self, name: str, rows: RunRows, make: Callable[[], Served]) -> None:
        self.name, self._rows, self._made = name, rows, make

    def make(self) -> LossReader:
        return LossReader(self._made(), self._rows)

    def measure(self, item: Item) -> float:
        return self.held.nats(item)

    def guard(self, item: Item) -> float:
        """Return how far a row is from being as much likelier than to the base as it should be, in nats per token."""
        return max(0.0, self.measure(item) - typed(item, Piece).should)

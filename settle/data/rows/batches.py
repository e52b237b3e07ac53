"""Batches of whole rows as a pure function of (seed, position): the position is the whole state of the data.

An epoch shows every row once, in an order drawn from (seed, epoch). Legend: N tokens in a batch, S segments, R rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np

from settle.base.errors import DataError
from settle.data.batches import Batch, pack
from settle.data.rows.store import RowStore


class RowBatches:
    """The endless stream of training batches of one store, `rows_per_batch` whole rows each, packed.

    A target is -1 where it is not supervised. Of a row's variants each epoch shows the next. Of preferences a row is
    two segments, first chosen and then rejected, so segment 2i is the better answer of pair i and 2i + 1 the worse.
    """

    def __init__(self, store: RowStore, rows_per_batch: int, seed: int) -> None:
        if not store.num_rows:
            raise DataError("there are no rows to train on", "give examples")
        self.store = store
        self.rows_per_batch = rows_per_batch
        self.seed = seed
        self._order = lru_cache(2)(self._order_of)

    @property
    def tokens_per_batch(self) -> int:
        """Tokens that go through the model for one batch, on average."""
        return max(1, round(self.store.num_inputs * self.rows_per_batch / self.store.num_rows))

    def at(self, position: int) -> Batch:
        """Batch number `position`, from 0; epochs roll on by themselves."""
        return pack_rows(self.store, self._documents(position))

    def largest(self, positions: int) -> int:
        """Which of the first batches has the most tokens."""
        inputs = self.store.lengths - 1
        return max(range(positions), key=lambda position: int(inputs[self._documents(position)].sum()))

    def epoch(self, position: int) -> float:
        """How many times the store has been seen before this batch."""
        return position * self.rows_per_batch / self.store.num_rows

    def rows_of(self, position: int) -> list[tuple[int, int, int]]:
        """The segments of a batch as (document, start, stop): which tokens of that document are predicted in it."""
        documents = self._documents(position)
        lengths = self.store.document_starts[documents + 1] - self.store.document_starts[documents]
        return [(document, 1, length) for document, length in zip(documents.tolist(), lengths.tolist(), strict=True)]

    def _documents(self, position: int) -> np.ndarray:
        """The documents of a batch in its order: int64 (S,)."""
        index = np.arange(position * self.rows_per_batch, (position + 1) * self.rows_per_batch)
        epochs, places = np.divmod(index, self.store.num_rows)
        rows = np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        segments, variants = self.store.segments_per_row, self.store.variants
        shown: np.ndarray = rows * variants + epochs % variants
        return (shown[:, None] * segments + np.arange(segments)).reshape(-1)

    def _order_of(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.store.num_rows)


def held_out_rows(store: RowStore, tokens_per_batch: int, limit_tokens: int | None = None) -> Iterator[Batch]:
    """The store's rows once, in a fixed order, a batch as many whole ones as fit into `tokens_per_batch`.

    With `limit_tokens` an evenly spread choice of rows of about that many tokens, always the same ones. Kin follow each
    other, so that a batch is nearly independent of the next one.
    """
    rows = np.argsort(store.families[:: store.segments_per_row], kind="stable")
    if limit_tokens is not None and limit_tokens < store.num_inputs:
        count = max(1, round(len(rows) * limit_tokens / store.num_inputs))
        rows = rows[np.arange(count) * len(rows) // count]
    segments = store.segments_per_row
    documents = (rows[:, None] * segments + np.arange(segments)).reshape(-1, segments)
    lengths = (store.lengths - 1)[documents].sum(1)
    first, size = 0, 0
    for number, length in enumerate(lengths.tolist()):
        if size and size + length > tokens_per_batch:
            yield pack_rows(store, documents[first:number].reshape(-1))
            first, size = number, 0
        size += length
    yield pack_rows(store, documents[first:].reshape(-1))


def pack_rows(store: RowStore, documents: np.ndarray) -> Batch:
    """Whole documents, int64 (S,), as one batch: each but its last token is an input, each but its first a target."""
    starts = store.document_starts
    batch = pack(store, starts[documents] + 1, starts[documents + 1], store.supervised)
    shares = None if store.shares is None else store.shares[documents]
    return replace(batch, families=np.asarray(store.families[documents]), shares=shares)

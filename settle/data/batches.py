"""Batches as a pure function of (seed, position): the position is the whole state of the data.

An epoch shows every token exactly once as a target. Its stream is made in three steps, each drawn from (seed, epoch):
documents lie in small blocks of neighbours, the blocks are permuted; a fixed number of blocks that are neighbours now
form a group; in a group long documents are cut into pieces, the first of random length, and the pieces are permuted.
So a batch mixes text from everywhere, and memory is that of one group whatever the size of the corpus. Of whole rows an
epoch shows every row once, in an order drawn from (seed, epoch).

Legend: N tokens in a batch, S segments, T sequence_length, M tokens in the store, P pieces, D documents, R rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from settle.base.errors import DataError
from settle.data.store import RowStore, TokenStore

_BLOCK_TOKENS = 1 << 16
_GROUP_TOKENS = 1 << 22


@dataclass(frozen=True)
class Batch:
    """One packed batch; attention stays within a segment.

    inputs, targets: int64 (N,), targets[i] follows inputs[i] in the same document. cu_seqlens: int32 (S + 1,), where
    segments begin. positions: int64 (N,), the index within the segment. record: int64 (N,), index into a teacher's
    record of what follows each input, once that was looked up. families: (S,), group id of near-duplicate documents,
    where known. shares: float32 (S, K), of decisions the share of each label.
    """

    inputs: np.ndarray
    targets: np.ndarray
    cu_seqlens: np.ndarray
    positions: np.ndarray
    record: np.ndarray | None = None
    families: np.ndarray | None = None
    shares: np.ndarray | None = None


class Batches:
    """The endless stream of training batches of one store."""

    def __init__(self, store: TokenStore, sequence_length: int, tokens_per_batch: int, seed: int) -> None:
        if not store.num_tokens:
            raise DataError("the token store is empty", "give text to train on")
        self.store = store
        self.sequence_length = sequence_length
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        starts = store.document_starts
        places = np.arange(0, store.num_tokens, _BLOCK_TOKENS, dtype=np.int64) + 1
        edges = np.unique(np.searchsorted(starts, places, side="left"))
        self._block_edges = np.unique(np.append(edges, store.num_documents))  # document numbers
        self._block_tokens = np.diff(starts[self._block_edges])
        self._order = lru_cache(2)(self._order_of)
        self._pieces = lru_cache(3)(self._pieces_of)

    def at(self, position: int) -> Batch:
        """Return batch number `position`, from 0, across epochs."""
        return pack(self.store, *self._spans(position))

    def epoch(self, position: int) -> float:
        """Return how many times the store has been seen before this batch."""
        return position * self.tokens_per_batch / self.store.num_tokens

    def rows_of(self, position: int) -> list[tuple[int, int, int]]:
        """Return the rows of a batch as (document, start, stop): which tokens of that document are its targets."""
        first, last = self._spans(position)
        starts = self.store.document_starts
        documents = np.searchsorted(starts, first, side="right") - 1
        begins = starts[documents]
        return list(zip(documents.tolist(), (first - begins).tolist(), (last - begins).tolist(), strict=True))

    def _spans(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where the batch's targets lie in the store: first and last+1 of each segment, both int64 (S,)."""
        total = self.store.num_tokens
        offset, missing = position * self.tokens_per_batch, self.tokens_per_batch
        first: list[np.ndarray] = []
        last: list[np.ndarray] = []
        while missing:
            epoch, within = divmod(offset, total)
            groups = self._order(epoch)
            group = int(np.searchsorted(groups.tokens_before, within, side="right")) - 1
            starts, lengths, before = self._pieces(epoch, group)
            within -= int(groups.tokens_before[group])
            take = min(missing, int(before[-1]) - within)
            begin, end = _between(starts, lengths, before, within, within + take)
            first.append(begin)
            last.append(end)
            missing -= take
            offset += take
        return np.concatenate(first), np.concatenate(last)

    def _order_of(self, epoch: int) -> "_Order":
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._block_tokens))
        before = np.append(0, np.cumsum(self._block_tokens[order]))
        # a group ends with the block that fills it
        edges = np.unique(np.searchsorted(before, np.arange(0, before[-1], _GROUP_TOKENS), side="left"))
        edges = np.unique(np.append(edges, len(order)))
        return _Order(order, edges, before[edges])

    def _pieces_of(self, epoch: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the group's pieces in their order: first token, length (P,), tokens before each (P + 1,)."""
        groups, starts, longest = self._order(epoch), self.store.document_starts, self.sequence_length
        rng = np.random.default_rng([self.seed, epoch, group + 1])
        blocks = groups.order[groups.edges[group] : groups.edges[group + 1]]
        documents = np.concatenate([np.arange(self._block_edges[b], self._block_edges[b + 1]) for b in blocks])
        begin = np.asarray(starts[documents])
        length = np.asarray(starts[documents + 1]) - begin
        phase = rng.integers(1, longest + 1, len(documents))
        phase = np.where(length <= longest, length, phase)
        first, size = _cut(begin, length, phase, longest)
        shown = rng.permutation(len(first))
        return first[shown], size[shown], np.append(0, np.cumsum(size[shown]))


@dataclass(frozen=True)
class _Order:
    """An epoch's blocks as permuted, where groups of them begin (and end), and the tokens before each group."""

    order: np.ndarray
    edges: np.ndarray
    tokens_before: np.ndarray


def held_out_batches(
    store: TokenStore, sequence_length: int, tokens_per_batch: int, limit_tokens: int | None = None
) -> Iterator[Batch]:
    """Yield the store once, in a fixed order, documents cut every `sequence_length`; the last batch may be shorter.

    With `limit_tokens` an evenly spread choice of pieces of about that many tokens, always the same ones.
    """
    starts = np.asarray(store.document_starts)
    length = np.diff(starts)
    first, size = _cut(starts[:-1], length, np.minimum(length, sequence_length), sequence_length)
    if limit_tokens is not None and limit_tokens < store.num_tokens:
        count = max(1, round(len(first) * limit_tokens / store.num_tokens))
        chosen = (np.arange(count) * len(first)) // count
        first, size = first[chosen], size[chosen]
    before = np.append(0, np.cumsum(size))
    for begin in range(0, int(before[-1]), tokens_per_batch):
        end = min(begin + tokens_per_batch, int(before[-1]))
        yield pack(store, *_between(first, size, before, begin, end))


def _between(
    first: np.ndarray, size: np.ndarray, before: np.ndarray, begin: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last+1 of the segments from token `begin` to `end` of pieces that lie one after the other."""
    a = int(np.searchsorted(before, begin, side="right")) - 1
    b = int(np.searchsorted(before, end, side="left"))
    starts, stops = first[a:b].copy(), first[a:b] + size[a:b]
    starts[0] += begin - before[a]
    stops[-1] -= before[b] - end
    return starts, stops


def _cut(begin: np.ndarray, length: np.ndarray, phase: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into pieces: the first of `phase` tokens, the others of `longest`, the last of what is left."""
    count = 1 + -(-(length - phase) // longest)
    which = np.repeat(np.arange(len(begin)), count)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    offset = np.where(nth == 0, 0, phase[which] + (nth - 1) * longest)
    stop = np.minimum(phase[which] + nth * longest, length[which])
    return begin[which] + offset, stop - offset


def pack(store: TokenStore, first: np.ndarray, last: np.ndarray, supervised: np.ndarray | None = None) -> Batch:
    """Pack the targets from `first` to `last` of each segment, both int64 (S,), into one batch.

    supervised: uint8 (M + 1,), 0 where a token is not a target.
    """
    lengths = last - first
    cu_seqlens = np.append(0, np.cumsum(lengths))
    positions = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    place = positions + np.repeat(first, lengths)
    tokens = np.asarray(store.tokens)
    targets = tokens[place].astype(np.int64)
    if supervised is not None:
        targets[supervised[place] == 0] = -1
    return Batch(
        inputs=tokens[place - 1].astype(np.int64),
        targets=targets,
        cu_seqlens=cu_seqlens.astype(np.int32),
        positions=positions,
    )


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
        """Return batch number `position`, from 0, across epochs."""
        return pack_rows(self.store, self._documents(position))

    def largest(self, positions: int) -> int:
        """Return which of the first batches has the most tokens."""
        inputs = self.store.lengths - 1
        return max(range(positions), key=lambda position: int(inputs[self._documents(position)].sum()))

    def epoch(self, position: int) -> float:
        """Return how many times the store has been seen before this batch."""
        return position * self.rows_per_batch / self.store.num_rows

    def rows_of(self, position: int) -> list[tuple[int, int, int]]:
        """Return the segments of a batch as (document, start, stop): which of its tokens are predicted."""
        documents = self._documents(position)
        lengths = self.store.document_starts[documents + 1] - self.store.document_starts[documents]
        return [(document, 1, length) for document, length in zip(documents.tolist(), lengths.tolist(), strict=True)]

    def _documents(self, position: int) -> np.ndarray:
        """Return the documents of a batch in its order: int64 (S,)."""
        index = np.arange(position * self.rows_per_batch, (position + 1) * self.rows_per_batch)
        epochs, places = np.divmod(index, self.store.num_rows)
        rows = np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        segments, variants = self.store.segments_per_row, self.store.variants
        shown: np.ndarray = rows * variants + epochs % variants
        return (shown[:, None] * segments + np.arange(segments)).reshape(-1)

    def _order_of(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.store.num_rows)


def held_out_rows(store: RowStore, tokens_per_batch: int, limit_tokens: int | None = None) -> Iterator[Batch]:
    """Yield the store's rows once, in a fixed order, as many whole ones a batch as fit into `tokens_per_batch`.

    With `limit_tokens` an evenly spread choice of rows of about that many tokens, always the same ones. Near duplicates
    follow each other, so that a batch is nearly independent of the next one.
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
    """Pack whole documents, int64 (S,): each but the last token is an input, each but the first a target."""
    starts = store.document_starts
    batch = pack(store, starts[documents] + 1, starts[documents + 1], store.supervised)
    shares = None if store.shares is None else store.shares[documents]
    return replace(batch, families=np.asarray(store.families[documents]), shares=shares)

"""Which rows of a batch a rank takes, and the sum of their marks, by which the order ledger knows them.

The rows are dealt out, the longest first, forth and back: ranks get about as many tokens, and a row's rank depends on
nothing but the batch and the number of ranks. Legend: N tokens of a batch, S segments, R rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from settle.data.batches import Batch

Row = tuple[int, int, int]  # document, start, stop
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class RowShare:
    """A rank's rows of a batch. batch: those rows, None when there is none. rows: their numbers. tokens: the places of
    their tokens in the whole batch, int64 (n,). whole: tokens of the whole batch, N."""

    batch: Batch | None
    rows: np.ndarray
    tokens: np.ndarray
    whole: int


def share(batch: Batch, segments_per_row: int, rank: int, size: int) -> RowShare:
    """The rows of `batch` that `rank` of `size` takes, in the order of the batch."""
    bounds = batch.cu_seqlens.astype(np.int64)
    num_rows = (len(bounds) - 1) // segments_per_row
    lengths = np.diff(bounds[::segments_per_row])
    by_length = np.argsort(-lengths, kind="stable")
    turn, place = np.divmod(np.arange(num_rows), size)
    dealt_to = np.where(turn % 2 == 0, place, size - 1 - place)
    rows = np.sort(by_length[dealt_to == rank])
    segments = (rows[:, None] * segments_per_row + np.arange(segments_per_row)).reshape(-1)
    spans = [np.arange(bounds[s], bounds[s + 1]) for s in segments]
    tokens = np.concatenate(spans) if spans else np.zeros(0, np.int64)
    part = None
    if len(rows):
        part = Batch(
            inputs=batch.inputs[tokens],
            targets=batch.targets[tokens],
            cu_seqlens=np.append(0, np.cumsum(np.diff(bounds)[segments])).astype(np.int32),
            positions=batch.positions[tokens],
            record=None if batch.record is None else batch.record[tokens],
            families=None if batch.families is None else batch.families[segments],
            shares=None if batch.shares is None else batch.shares[segments],
        )
    return RowShare(part, rows, tokens, len(batch.inputs))


def rows_of_rank(rows: int, rank: int, size: int) -> tuple[int, int]:
    """Which of a tensor's rows a rank owns: the first, and the one behind the last."""
    share = math.ceil(rows / size)
    return min(rows, rank * share), min(rows, (rank + 1) * share)


def marks_sum(rows: Sequence[Row]) -> int:
    """The sum modulo 2^64 of a number that stands for each row: the same for the same rows in any order, and in all
    likelihood for no others. Mixing: splitmix64 (Steele et al. 2014)."""
    numbers = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    mark = np.zeros(len(numbers), np.uint64)
    with np.errstate(over="ignore"):
        for column in numbers.T:
            mark = mark * _SECOND + column + _STEP
            mark = (mark ^ (mark >> np.uint64(30))) * _FIRST
            mark = (mark ^ (mark >> np.uint64(27))) * _SECOND
            mark = mark ^ (mark >> np.uint64(31))
        return int(mark.sum(dtype=np.uint64))

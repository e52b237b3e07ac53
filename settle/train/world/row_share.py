"""Which rows of a batch a rank takes, and the sum of their marks, by which the order ledger knows them.

The rows are dealt out, the longest first, forth and back: ranks get about as many tokens, and a row's rank depends on
nothing but the batch and the number of ranks. Legend: N tokens of a batch, S segments, R rows.
"""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.base.errors import RunError
from settle.base.files import parse_json
from settle.data.batches import Batch

Row = tuple[int, int, int]  # document, start, stop
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class RowShare:
    """A rank's rows of a batch.

    batch: those rows, None when there is none. rows: their numbers. tokens: the places of their tokens in the whole
    batch, int64 (n,). whole: tokens of the whole batch, N.
    """

    batch: Batch | None
    rows: np.ndarray
    tokens: np.ndarray
    whole: int


@dataclass(frozen=True)
class StepRows:
    """The rows of a step.

    positions: of its micro-batches. count: rows that ranks took, all together; marks: the sum of their marks
    (`marks_sum`).
    """

    positions: tuple[int, ...] = ()
    count: int = 0
    marks: int = 0


def share(batch: Batch, segments_per_row: int, rank: int, size: int) -> RowShare:
    """Return the rows of `batch` that `rank` of `size` takes, in the order of the batch."""
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
    """Sum, modulo 2^64, a number that stands for each row.

    It is the same for the same rows in any order, and in all likelihood for no others. Mixing: splitmix64 (Steele et
    al. 2014).
    """
    numbers = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    mark = np.zeros(len(numbers), np.uint64)
    with np.errstate(over="ignore"):
        for column in numbers.T:
            mark = mark * _SECOND + column + _STEP
            mark = (mark ^ (mark >> np.uint64(30))) * _FIRST
            mark = (mark ^ (mark >> np.uint64(27))) * _SECOND
            mark = mark ^ (mark >> np.uint64(31))
        return int(mark.sum(dtype=np.uint64))


FILE = "order.jsonl"


class OrderLedger:
    """The ledger of one run: which rows each step took, a line a step, the same lines on any number of ranks.

        {"step": 12, "positions": [11], "rows": 37, "marks": "8c1f…"}

    positions: of the step's micro-batches, from which anybody can say which rows those are. rows: how many rows the
    ranks really took, all together; marks: the sum of those rows' marks (`marks_sum`), which only the same rows have.
    What a full disk does not take is written once there is room. is_kept: False at the ranks that write nothing.
    """

    def __init__(self, path: Path, is_kept: bool = True) -> None:
        self.path, self._is_kept = path, is_kept
        self._size = 0  # bytes of whole lines in the file
        self._waiting = b""

    def add(self, step: int, rows: StepRows) -> None:
        line = {"step": step, "positions": rows.positions, "rows": rows.count, "marks": f"{rows.marks:016x}"}
        if self._is_kept:
            self._waiting += json.dumps(line).encode() + b"\n"
            self._write()

    def cut(self, step: int) -> None:
        """Drop the lines of later steps: the run has gone back to after `step`."""
        self._waiting, kept = b"", 0
        if self._is_kept and self.path.exists():
            with self.path.open("rb") as f:
                for line in f:
                    if not line.endswith(b"\n") or _step(line) > step:
                        break
                    kept += len(line)
            os.truncate(self.path, kept)
        self._size = kept

    def sync(self) -> None:
        """Sync the lines to disk before a checkpoint counts on them."""
        if self._is_kept:
            self._write()
            with contextlib.suppress(OSError), self.path.open("rb") as f:
                os.fsync(f.fileno())

    def _write(self) -> None:
        try:
            with self.path.open("ab", buffering=0) as f:
                if f.tell() != self._size:
                    f.truncate(self._size)  # half a line that did not fit
                f.write(self._waiting)
                if f.tell() == self._size + len(self._waiting):
                    self._size, self._waiting = f.tell(), b""
        except OSError:
            return  # a full disk: the checkpoint is what waits for room


def _step(line: bytes) -> int:
    """Return the step of a line; a number beyond every step where it cannot be read."""
    try:
        record = parse_json(line)
        return int(record["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62


@dataclass(frozen=True)
class Order:
    """What a ledger proves. steps: lines; rows: taken in all of them; least, most: how often a sample was taken."""

    steps: int
    rows: int
    least: int
    most: int


def check_order(
    path: Path, rows_of: Callable[[int], Sequence[Row]], samples_of: Callable[[Row], Iterable[int]], num_samples: int
) -> Order:
    """Check a ledger against the data. Raises RunError naming the first step that took other rows than its positions'.

    rows_of: the rows of a position; samples_of: the samples in a row, of `num_samples` in all.
    """
    seen: Counter[int] = Counter()
    positions: set[int] = set()
    steps = total = 0
    for steps, line in enumerate(path.read_bytes().splitlines(), 1):
        record = json.loads(line)
        rows = [row for position in record["positions"] for row in rows_of(position)]
        if record["step"] != steps or positions & set(record["positions"]):
            raise RunError(f"line {steps} of {path} is of step {record['step']}, positions {record['positions']}")
        if record["rows"] != len(rows) or int(record["marks"], 16) != marks_sum(rows):
            raise RunError(f"step {steps} took {record['rows']} rows, and not the {len(rows)} that are its own")
        positions |= set(record["positions"])
        total += len(rows)
        for row in rows:
            seen.update(samples_of(row))
    counts = list(seen.values()) + [0] * (num_samples - len(seen))
    return Order(steps, total, min(counts, default=0), max(counts, default=0))

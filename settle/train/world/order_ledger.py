"""The order ledger: which rows each step took, a line a step, the same lines on any number of ranks.

    {"step": 12, "positions": [11], "rows": 37, "marks": "8c1f…"}

positions: of the step's micro-batches, from which anybody can say which rows those are. rows: how many rows the ranks
really took, all together; marks: the sum of those rows' marks (`marks_sum`), which only the same rows have.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import RunError
from settle.base.files import parse_json
from settle.train.world.row_share import Row, marks_sum
from settle.train.world.shared_gradient import StepRows

FILE = "order.jsonl"


class OrderLedger:
    """The ledger of one run. What a full disk does not take is written once there is room. is_kept: False at the ranks
    that write nothing."""

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
        """The run has gone back to after `step`: later lines go."""
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
        """What was added is on the disk before a checkpoint says so."""
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
    """The step of a line; beyond every step where it cannot be read."""
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
    """Hold a ledger against the data. rows_of: the rows of a position; samples_of: the samples in a row, of
    `num_samples` in all. Raises RunError naming the first step that did not take what its positions say."""
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

"""Three sides: rows that train, that select the weights and fit the temperatures, and that judge.

Nothing nearly the same is on two sides. Classes are spread evenly over the sides, since rows may be few.
Legend: R rows.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from settle.data.decisions.rows import DecisionRow
from settle.data.layouts import Example
from settle.data.rows.families import row_families

SIDES = ("train", "selection", "held_out")
TRAIN, SELECTION, HELD_OUT = range(3)
HELD_OUT_SHARE, SELECTION_SHARE = 0.2, 0.1
UNTRAINED_SHARE = HELD_OUT_SHARE + SELECTION_SHARE


def split_decisions(
    rows: Sequence[DecisionRow], held_out: float, given: Sequence[bool] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The side and the family of each row, int64 (R,) both. held_out: share that judges, unless a person has `given`
    the rows that do, (R,); a row that is kin to one of those is left out: its side is -1."""
    families = np.array(row_families([Example("text", text=row.state) for row in rows]), np.int64)
    sides = np.full(len(rows), TRAIN)
    judged = np.zeros(len(rows), bool) if given is None else np.asarray(given, bool)
    sides[np.isin(families, families[judged])] = -1
    sides[judged] = HELD_OUT
    wanted = {SELECTION: SELECTION_SHARE}
    if given is None:
        wanted[HELD_OUT] = held_out
    # families of a class follow each other, and each takes the side that is furthest behind what it should have
    first = {families[number]: number for number in np.flatnonzero(sides == TRAIN)[::-1].tolist()}
    order = sorted(first, key=lambda family: (rows[first[family]].best, _hash(rows[first[family]].state)))
    sizes = np.bincount(families, sides == TRAIN, families.max(initial=0) + 1)
    wanted[TRAIN] = 1 - sum(wanted.values())
    had, seen = dict.fromkeys(wanted, 0.0), 0.0
    for family in order:
        if not sizes[family]:
            continue
        seen += sizes[family]
        side = max(wanted, key=lambda side: wanted[side] * seen - had[side] - sizes[family] / 2)
        had[side] += sizes[family]
        sides[(families == family) & (sides == TRAIN)] = side
    return sides, families


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()

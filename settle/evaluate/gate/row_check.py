"""Every row of a file's matrices against the row that it was made from: means over a tensor, or over windows of text,
do not show that a few rows are lost. R rows, C columns.
"""

import numpy as np

from settle.formats.gguf import rounded
from settle.formats.gguf.types import ggml_type

TIMES = 3.0  # how often the error of even rounding is allowed, where the quantizer weighs values by importance
LARGEST = 0.97  # of a row's own length: of what is further off, nothing of the row is left
CHUNK = 1 << 22  # values that are compared at once
REORDERED = 1e-6  # of a row's own length: what sums in another order, of a merged weight, may change


def damaged_rows(there: np.ndarray, wanted: np.ndarray, kind: str, is_own: bool) -> np.ndarray:
    """Indices of the rows of `there` (R, C) that are not `wanted`'s (R, C) to within what its type rounds.

    kind: the file's type. is_own: whether settle's own quantizer made it, without importance. Then a row must be what
    that gives, to within its rounding; otherwise to within the steps of the type in the row's own blocks.
    """
    if wanted.ndim != 2:
        return np.flatnonzero(~np.isclose(there, wanted, rtol=1e-3, atol=1e-6).reshape(len(wanted), -1).all(1))
    size = max(1, CHUNK // wanted.shape[1])
    pieces = [slice(first, first + size) for first in range(0, len(wanted), size)]
    bad = [_damaged(there[p], wanted[p], kind, is_own) for p in pieces]
    return np.flatnonzero(np.concatenate(bad))


def _damaged(there: np.ndarray, wanted: np.ndarray, kind: str, is_own: bool) -> np.ndarray:
    """Which rows of a part are: (R,) bool."""
    length = _lengths(wanted)
    if is_own or not ggml_type(kind).quantized:
        exact = rounded(wanted, kind)
        off, allowed = _lengths(there - exact), _lengths(exact - wanted) + REORDERED * length
    else:
        off, allowed = _lengths(there - wanted), np.minimum(_step_errors(wanted, kind), LARGEST * length)
    bad: np.ndarray = ~(off <= allowed)  # so that NaN is damage
    return bad


def _step_errors(wanted: np.ndarray, kind: str) -> np.ndarray:
    """TIMES the length of the error of each row (R,) that is rounded to even steps over twice the largest value of each
    of its blocks."""
    bits = next(int(letter) for letter in kind if letter.isdigit())  # ggml's names say those of a value
    steps, size = 2.0**bits - 1, ggml_type(kind).block
    largest = np.abs(wanted.reshape(len(wanted), -1, size)).max(2)
    errors: np.ndarray = TIMES * _lengths(2 * largest / steps) * np.sqrt(size / 12)
    return errors


def _lengths(rows: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.linalg.norm(rows, axis=1)
    return out

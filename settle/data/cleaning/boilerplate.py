"""Removal of lines that occur in a large share of all documents: licence headers, cookie notices, footers.

Counted near the beginning and the end of documents only, and careful with code: a line counts alone only when it is
long and stands in every second document; otherwise three lines in a row must be repeated together. So imports,
`if __name__ == "__main__":` and the like stay, and a refrain within one document does not count at all.
"""

from collections import Counter
from typing import ClassVar

from pydantic import Field

from settle.data.cleaning import Cleaning, Note, Sweep

_LINES = 80  # looked at from each end
_ALONE, _TOGETHER = 60, 100  # characters of a line, and of three lines, at least
_ALL_SURVEYED, _LATER_SURVEYED = 2000, 16  # the first ones, then one in so many
_MOST_COUNTED = 200_000


class Boilerplate(Cleaning):
    """Takes out lines repeated over a large share of the documents."""

    rank: ClassVar[int] = 30
    share: float = Field(
        0.2, gt=0, le=1, description="share of documents that contain the same three consecutive lines"
    )
    share_alone: float = Field(0.5, gt=0, le=1, description="share of documents that contain the same long line")
    least: int = Field(20, ge=2, description="minimum number of documents that contain them")

    def start(self) -> Sweep:
        return _Boilerplate(self)


class _Boilerplate(Sweep):
    def __init__(self, limits: Boilerplate) -> None:
        self._limits = limits
        self._num_documents = self._surveyed = 0
        self._counts: Counter[int] = Counter()
        self._repeated: set[int] = set()  # known once every row was seen

    def mend(self, text: str, note: Note) -> str | None:
        self._num_documents += 1
        if self._num_documents <= _ALL_SURVEYED or self._num_documents % _LATER_SURVEYED == 0:
            self._surveyed += 1
            head, _, tail = _ends(text)
            self._counts.update({key for key, _ in [*_windows(head), *_windows(tail)]})
            if len(self._counts) > _MOST_COUNTED:
                self._counts = Counter({k: n for k, n in self._counts.items() if n > 1 + self._surveyed // 200})
        return text

    def revises(self) -> bool:
        limits, documents = self._limits, self._surveyed
        together = max(limits.share * documents, limits.least)
        alone = max(limits.share_alone * documents, limits.least)
        # the lowest bit of a key tells a line from three lines
        self._repeated = {k for k, n in self._counts.items() if n >= (alone if k & 1 else together)}
        return bool(self._repeated)

    def revise(self, text: str, note: Note) -> str | None:
        head, middle, tail = _ends(text)
        head_left, tail_left = self._without(head), self._without(tail)
        gone = len(head) - len(head_left) + len(tail) - len(tail_left)
        if not gone:
            return text
        note("mended", "boilerplate lines taken out", gone)
        left = "".join([*head_left, middle, *tail_left])
        if not left.strip():
            note("dropped", "nothing but boilerplate", 1)
            return None
        return left

    def _without(self, lines: list[str]) -> list[str]:
        gone = {i for key, covered in _windows(lines) if key in self._repeated for i in covered}
        return [line for i, line in enumerate(lines) if i not in gone]


def _ends(text: str) -> tuple[list[str], str, list[str]]:
    """Return the first lines, what lies between, and the last lines; together they are the text."""
    if len(text) < 40_000:
        lines = text.splitlines(keepends=True)
        if len(lines) <= 2 * _LINES:
            return lines, "", []
        return lines[:_LINES], "".join(lines[_LINES:-_LINES]), lines[-_LINES:]
    head = text[:16_000].splitlines(keepends=True)[:-1][:_LINES]
    tail = text[-16_000:].splitlines(keepends=True)[1:][-_LINES:]
    return head, text[sum(map(len, head)) : len(text) - sum(map(len, tail))], tail


def _windows(lines: list[str]) -> list[tuple[int, tuple[int, ...]]]:
    """Return keys of long lines (odd) and of every three non-blank lines (even), each with the lines it covers."""
    stripped = [(i, s) for i, line in enumerate(lines) if (s := line.strip())]
    keys: list[tuple[int, tuple[int, ...]]] = [
        (hash(s) | 1, (i,)) for i, s in stripped if len(s) >= _ALONE and " " in s
    ]
    for (i, a), (j, b), (k, c) in zip(stripped, stripped[1:], stripped[2:], strict=False):
        if len(a) + len(b) + len(c) >= _TOGETHER and _kind(a) == _kind(b) == _kind(c):
            keys.append((hash((a, b, c)) & ~1, (i, j, k)))
    return keys


def _kind(line: str) -> str:
    """Return the kind of a line's first character, so that a comment and the code after it are not one block."""
    return "" if line[0].isalnum() else "*" if line[0] in "/*" else line[0]

"""Removal of text without content: encoded data, random characters, endless repetition, hardly any text.

Long text is judged by statistics of characters alone, and only where they are far from anything people write: source
code, poetry, tables and every script pass.
"""

import zlib
from typing import ClassVar

from pydantic import Field

from settle.data.cleaning import Cleaning, Note

_SAMPLE, _SAMPLES = 8192, 4
_ENOUGH_TO_JUDGE = 1024


class Content(Cleaning):
    """Drops documents with hardly any text, and what compresses as no writing does or has no words."""

    rank: ClassVar[int] = 50
    most_repetitive: float = Field(0.02, description="compressed size divided by size below which a row repeats itself")
    most_random: float = Field(0.72, description="compressed size divided by size above which a row is random")
    longest_words: int = Field(
        120, description="mean length of words, in characters, above which plain ASCII is encoded data"
    )
    least: int = Field(
        16, ge=1, description="minimum number of characters of a document, surrounding space not counted"
    )

    def mend(self, text: str, note: Note) -> str | None:
        reason = self._gibberish(text) if len(text) >= _ENOUGH_TO_JUDGE else None
        # a long text needs no copy to be stripped
        if not reason and (len(text) <= 1000 or text.isspace()) and len(text.strip()) < self.least:
            reason = "too short" if text.strip() else "empty"
        if not reason:
            return text
        note("dropped", reason, 1)
        return None

    def _gibberish(self, text: str) -> str | None:
        samples = _samples(text)
        raw = [s.encode("utf-8", "replace") for s in samples]
        ratios = [len(zlib.compress(r, 1)) / len(r) for r in raw]
        if max(ratios) < self.most_repetitive:
            return "repeats itself"
        # scripts of many characters hold more in each of their bytes
        if text.isascii() and min(ratios) > self.most_random:
            return "random characters"
        if all(len(s) / (len(s.split()) + 1) > self.longest_words and s.isascii() for s in samples):
            return "encoded data without words"
        return None


def _samples(text: str) -> list[str]:
    if len(text) <= _SAMPLE * _SAMPLES:
        return [text]
    step = (len(text) - _SAMPLE) // (_SAMPLES - 1)
    return [text[i * step : i * step + _SAMPLE] for i in range(_SAMPLES)]

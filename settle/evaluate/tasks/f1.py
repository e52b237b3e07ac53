"""Token F1: how many words the answer shares with the one that is wanted."""

import collections
import re
from collections.abc import Sequence
from typing import ClassVar, Self

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task

# a word, or one character of a script that puts no spaces between words
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_ARTICLES = {"a", "an", "the"}


class F1(Task):
    """Harmonic mean of precision and recall over words, articles and punctuation aside (Rajpurkar et al. 2016)."""

    title: ClassVar[str] = "token F1"
    rank: ClassVar[int] = 5

    def score(self, answer: str, case: Case) -> float:
        ours, wanted = _words(answer), _words(case.reference)
        if not ours or not wanted:
            return float(ours == wanted)
        shared = (ours & wanted).total()
        return 2 * shared / (ours.total() + wanted.total())

    @classmethod
    def suited(cls, cases: Sequence[Case]) -> Self:
        """Any text."""
        return cls()


def _words(text: str) -> collections.Counter[str]:
    return collections.Counter(word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES)

"""Token F1: how many words the answer shares with the one that is wanted."""

import collections
import re
from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import MOST_OF, Task, is_number, share

SHORT = 6  # words
# a word, or one character of a script that puts no spaces between words
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_ARTICLES = {"a", "an", "the"}


class F1(Task):
    """Harmonic mean of precision and recall over words, articles and punctuation aside (Rajpurkar et al. 2016)."""

    title: ClassVar[str] = "token F1"
    rank: ClassVar[int] = 5
    are_short: bool = Field(False, description="the wanted answers are short, and exact match is worth knowing too")

    def score(self, answer: str, case: Case) -> float:
        ours, wanted = _words(answer), _words(case.reference)
        if not ours or not wanted:
            return float(ours == wanted)
        shared = (ours & wanted).total()
        return 2 * shared / (ours.total() + wanted.total())

    def beside(self) -> Sequence[Task]:
        return (Task.part("exact")(),) if self.are_short else ()

    @classmethod
    def suited(cls, cases: Sequence[Case]) -> Self:
        """Any text."""
        return cls(are_short=are_short(cases))


def are_short(cases: Sequence[Case]) -> bool:
    """Return whether nearly all wanted answers are a few words."""
    return share([len(c.reference.split()) <= SHORT and len(c.reference) <= 20 * SHORT for c in cases]) >= MOST_OF


def num_parts(answer: str) -> int:
    """Count the words and numbers that an answer is made of."""
    return 1 if is_number(answer) else len(_WORD.findall(answer))


def _words(text: str) -> collections.Counter[str]:
    return collections.Counter(word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES)

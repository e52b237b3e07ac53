"""Multinomial naive Bayes on the words of a text: the simple classifier that a decision model has to beat.

Legend: n rows, K options.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from settle.data.decisions.rows import DecisionRow
from settle.data.decisions.temperature import probabilities

SMOOTHING = 1.0  # added to each count (Laplace)
_WORDS = re.compile(r"\w+")


def naive_bayes(train: Sequence[DecisionRow], judging: Sequence[DecisionRow], width: int) -> np.ndarray:
    """The probabilities (n, K) of the rows that judge, K = `width`, learned from the training rows of each question.

    An option is one by its key, so options may change their places from row to row.
    """
    models = {name: _Words([row for row in train if row.name == name]) for name in {row.name for row in judging}}
    shares = np.zeros((len(judging), width))
    for number, row in enumerate(judging):
        shares[number, : len(row.question.options)] = models[row.name].shares(row)
    return shares


class _Words:
    """How often each word and each option occurs among the rows of one question."""

    def __init__(self, rows: Sequence[DecisionRow]) -> None:
        self._options: Counter[str] = Counter()
        self._words: dict[str, Counter[str]] = {}
        for row in rows:
            key = row.question.options[row.best].key
            self._options[key] += 1
            self._words.setdefault(key, Counter()).update(_WORDS.findall(row.state.lower()))
        self._vocabulary = {word for counted in self._words.values() for word in counted}

    def shares(self, row: DecisionRow) -> np.ndarray:
        known = [word for word in _WORDS.findall(row.state.lower()) if word in self._vocabulary]
        scores = []
        for key in row.question.keys:
            counted = self._words.get(key, Counter())
            total = sum(counted.values()) + SMOOTHING * len(self._vocabulary)
            score = math.log(self._options[key] + SMOOTHING)
            scores.append(score + sum(math.log((counted[word] + SMOOTHING) / total) for word in known))
        return probabilities(np.array(scores))

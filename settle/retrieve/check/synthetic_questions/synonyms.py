"""Other words for the same thing, as people use them who have not read the documents.

There is no lexicon: a word is replaced by one of the collection's own that is near it in the embedder's space, a
synonym or something of the same kind. Some words are mistyped, which stands for all words that no document has.
"""

import re
from collections import Counter
from collections.abc import Iterable
from random import Random

import numpy as np

from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.index.words import STOP, words

SHARE = 0.25  # of the words of a text that have near ones, which are replaced
MISTYPED = 0.05  # of those
MOST = 2000  # words that are known, the most frequent ones
NEAREST = 2  # of them that may take a word's place
LEAST = 0.5  # cosine of a word with what takes its place
_WORD = re.compile(r"[^\W\d_]{4,}")


class Rewording:
    """Replaces words that some texts have in lower case; names stay."""

    def __init__(self, vectorizer: Vectorizer, texts: Iterable[str]) -> None:
        counted = Counter(word for text in texts for word in _WORD.findall(text) if word.islower() and word not in STOP)
        self._words = [word for word, _ in counted.most_common(MOST)]
        self._at = {word: i for i, word in enumerate(self._words)}
        self._stems = [words(word) for word in self._words]
        self._vectors = vectorizer.documents(self._words) if self._words else np.zeros((0, 1), np.float32)

    def reworded(self, text: str, random: Random) -> str:
        """The text with some of its words replaced, about `SHARE` of them and never more than half."""
        matches = [m for m in _WORD.finditer(text) if m[0].lower() in self._at]
        changed = [m for m in matches if random.random() < SHARE][: len(matches) // 2]
        for match in reversed(changed):
            word = match[0].lower()
            other = _mistyped(word, random) if random.random() < MISTYPED else self._other(word, random)
            text = text[: match.start()] + (other.capitalize() if match[0].istitle() else other) + text[match.end() :]
        return text

    def _other(self, word: str, random: Random) -> str:
        at = self._at[word]
        cosines = self._vectors @ self._vectors[at]
        near = (i for i in np.argsort(-cosines) if self._stems[i] != self._stems[at])
        likely = [self._words[i] for i, _ in zip(near, range(NEAREST), strict=False) if cosines[i] >= LEAST]
        return random.choice(likely) if likely else word


def _mistyped(word: str, random: Random) -> str:
    """The word with two neighbouring letters swapped, other than the first."""
    at = random.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

"""A question in other words: synonyms, slips, and what people put around their questions.

There is no lexicon: a word is replaced by one of the collection's own that is near it in the embedder's space, a
synonym or something of the same kind. Some words are mistyped, which stands for all words that no document has.
Greetings, doubts and contractions say nothing of what is asked, so the answer stays the same.
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
_BARE = 0.35  # share of questions that stay as they are
_SLIP = 0.08  # share of questions with a slip in one of their longer words
_LONG = 6  # letters of a word that may have one
_AROUND = (
    "does anyone know {}", "can you tell me {}", "i'd like to know {}", "i don't understand {}", "any idea {}",
    "hi, {}", "hey, quick one: {}", "so {}", "just wondering, {}", "could somebody explain {}", "{}, please", "{}??",
    "i'm not sure about this: {}", "sorry if that's obvious, but {}", "do you happen to know {}", "ok so {}",
    "tell me {}", "{} - how's that",
)  # fmt: skip
_SHORT = (
    (re.compile(r"\bwhat is\b"), ("what's", "whats")),
    (re.compile(r"\bhow is\b"), ("how's",)),
    (re.compile(r"\bwhere is\b"), ("where's", "wheres")),
    (re.compile(r"\bdoes not\b"), ("doesn't", "doesnt")),
    (re.compile(r"\bcannot\b"), ("can't", "cant")),
)
_LOWER_WORD = re.compile(r"[a-z]+")


class Rewording:
    """Replaces words that some texts have in lower case; names stay."""

    def __init__(self, vectorizer: Vectorizer, texts: Iterable[str]) -> None:
        counted = Counter(word for text in texts for word in _WORD.findall(text) if word.islower() and word not in STOP)
        self._words = [word for word, _ in counted.most_common(MOST)]
        self._at = {word: i for i, word in enumerate(self._words)}
        self._stems = [words(word) for word in self._words]
        self._vectors = vectorizer.documents(self._words) if self._words else np.zeros((0, 1), np.float32)

    def reworded(self, text: str, random: Random) -> str:
        """Return the text with about `SHARE` of its words replaced, and never more than half."""
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
    """Return the word with two neighbouring letters swapped, other than the first."""
    at = random.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def as_people_ask(question: str, random: Random) -> str:
    """Return the question in one of the wordings that people use."""
    for pattern, others in _SHORT:
        if random.random() < 0.5:
            question = pattern.sub(random.choice(others), question)
    if random.random() < _SLIP:
        question = _slipped(question, random)
    if random.random() >= _BARE:
        question = random.choice(_AROUND).format(question)
    return question


def _slipped(question: str, random: Random) -> str:
    """Return the question with a letter of one longer word left out or doubled."""
    words = [match for match in _LOWER_WORD.finditer(question) if len(match[0]) >= _LONG]
    if not words:
        return question
    match = random.choice(words)
    at = random.randrange(match.start() + 2, match.end())
    return question[:at] + random.choice(("", 2 * question[at])) + question[at + 1 :]

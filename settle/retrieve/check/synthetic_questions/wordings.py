"""A generated question in the words that people put around theirs: greetings, doubts, contractions, slips of the hand.

None of them says what is asked, so the answer stays the same; how they weigh is what a check has to find out.
"""

import re
from random import Random

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
_WORD = re.compile(r"[a-z]+")


def as_people_ask(question: str, random: Random) -> str:
    """The question in one of these wordings."""
    for pattern, others in _SHORT:
        if random.random() < 0.5:
            question = pattern.sub(random.choice(others), question)
    if random.random() < _SLIP:
        question = _slipped(question, random)
    if random.random() >= _BARE:
        question = random.choice(_AROUND).format(question)
    return question


def _slipped(question: str, random: Random) -> str:
    """With a letter of one longer word left out or doubled."""
    words = [match for match in _WORD.finditer(question) if len(match[0]) >= _LONG]
    if not words:
        return question
    match = random.choice(words)
    at = random.randrange(match.start() + 2, match.end())
    return question[:at] + random.choice(("", 2 * question[at])) + question[at + 1 :]

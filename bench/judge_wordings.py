"""Wordings: how people ask about a topic, and how a question is worded again.

Frames are split by `REHEARSED`: the last ones of each kind are never used for training, so that a test can ask in ways
that the judge has not met.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random

REHEARSED = 0.8  # share of each kind's frames that training uses

NOUN = (
    "What is {}?", "what exactly is {}", "Can someone explain {}?", "I don't understand {}", "how does {} work?",
    "Does anyone know what {} is?", "tell me everything about {}", "what does {} mean", "{}", "{}?",
    "What's the point of {}?", "I keep seeing {} mentioned, what is that about?", "Give me an overview of {}",
    "why does {} matter?", "When would I use {}?", "where can I read about {}", "I need some help with {}",
    "Any idea what {} is?", "explain {} to me like I'm new here", "What should I know about {}?",
    "is there any documentation on {}", "Could you describe {} for me please?", "trying to figure out {}",
    "what do people mean by {}", "I've got a question about {}.", "What is {} for?", "so what's {} then",
    "Please summarize what is said about {}", "I was told to look into {}", "what's the deal with {}?",
    "Do you know anything about {}?", "Can you help me understand {}?", "What actually is {}?",
    "How would you explain {} to a beginner?", "my colleague mentioned {}; what did they mean?", "info on {} please",
)  # fmt: skip
VERB = (
    "How do I {}?", "how to {}", "How can I {}?", "I want to {}", "what is the best way to {}?", "is it possible to {}",
    "Can I {}?", "I can't figure out how to {}", "Which steps do I take to {}?", "need to {}, any pointers?",
    "What do I have to do to {}?", "Is there a way to {}?", "how would one {}", "where do I find out how to {}?",
    "I'm trying to {} but don't know where to start", "could you show me how to {}", "what's needed to {}",
    "does it let me {}?", "Hello, how does one {}?", "I would like to {}. How?", "any way to {}?",
    "What command would I use to {}?", "How am I supposed to {}?", "can you explain how to {}",
)  # fmt: skip
_BEFORE = ("hi, ", "hello! ", "quick question: ", "sorry if this is obvious, ", "hey ", "ok so ", "please, ", "um, ",
           "I'm new to this. ", "just wondering, ", "one more thing: ", "Good morning, ")  # fmt: skip
_AFTER = (" thanks", " please", " Thanks in advance!", " I looked everywhere.", " any ideas?", " thx", " exactly?",
          " cheers", " I'm stuck.", " for real")  # fmt: skip
_CONTRACTED = (
    (r"\bwhat is\b", "what's"), (r"\bhow is\b", "how's"), (r"\bdo not\b", "don't"), (r"\bcannot\b", "can't"),
    (r"\bdoes not\b", "doesn't"), (r"\bI am\b", "I'm"), (r"\bit is\b", "it's"), (r"\bis not\b", "isn't"),
)  # fmt: skip
_EXPANDED = tuple((re.sub(r"\\b", "", long), rf"\b{re.escape(short)}\b") for long, short in _CONTRACTED)
_FUNCTION = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "were",
        "do",
        "does",
        "did",
        "can",
        "could",
        "should",
        "would",
        "i",
        "you",
        "we",
        "they",
        "it",
        "what",
        "which",
        "who",
        "how",
        "why",
        "when",
        "where",
        "of",
        "to",
        "in",
        "on",
        "for",
        "with",
        "and",
        "or",
        "my",
        "me",
        "your",
        "there",
        "be",
        "have",
        "has",
        "not",
        "if",
    ]
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")


def frames(kind: Sequence[str], is_training: bool) -> Sequence[str]:
    """Return the frames of a kind that training uses, or those that it does not."""
    cut = round(len(kind) * REHEARSED)
    return kind[:cut] if is_training else kind[cut:]


def worded_again(question: str, synonyms: Mapping[str, Sequence[str]], random: Random, strength: float = 1.0) -> str:
    """Return a question as another person would ask it: synonyms, contractions, fillers, typos, only its key words."""

    def chance(p: float) -> bool:
        return random.random() < p * strength

    text = question
    if chance(0.5):
        text = _WORD.sub(lambda m: _synonym(m[0], synonyms, random) if random.random() < 0.35 else m[0], text)
    if chance(0.3):
        for long, short in _CONTRACTED:
            text = re.sub(long, short, text, flags=re.I)
    elif chance(0.2):
        for long, short in _EXPANDED:
            text = re.sub(short, long, text, flags=re.I)
    if chance(0.12):
        words = [word for word in text.split() if word.strip("?.,!").lower() not in _FUNCTION]
        text = " ".join(words) if len(words) > 1 else text
    if chance(0.15):
        text = random.choice(_BEFORE) + text
    if chance(0.15):
        text = text.rstrip() + random.choice(_AFTER)
    if chance(0.2):
        text = _typo(text, random)
    if chance(0.45):
        text = text.lower()
    if chance(0.4):
        text = text.rstrip("?. ")
    return text.strip()


def _synonym(word: str, synonyms: Mapping[str, Sequence[str]], random: Random) -> str:
    others = synonyms.get(word.lower())
    return random.choice(others) if others else word


def _typo(text: str, random: Random) -> str:
    """One letter of a longer word swapped with the next, left out or doubled."""
    longer = [m for m in _WORD.finditer(text) if len(m[0]) > 4]
    if not longer:
        return text
    word = random.choice(longer)
    at = random.randrange(word.start() + 1, word.end() - 1)
    kind = random.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if kind == 1 else text[:at] + text[at] + text[at:]

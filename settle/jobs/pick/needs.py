"""What the task asks of a model: read off the user's words and prompts, and what excludes a model for it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from settle.evaluate.compare.cases import Case

LANGUAGES = {
    "arabic": "ar", "bengali": "bn", "chinese": "zh", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en",
    "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hebrew": "he", "hindi": "hi", "hungarian": "hu",
    "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "norwegian": "no", "persian": "fa",
    "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "spanish": "es", "swedish": "sv",
    "thai": "th", "turkish": "tr", "ukrainian": "uk", "vietnamese": "vi",
}  # fmt: skip
# licences that name the use which they forbid, as identifiers and as people write them
_NON_COMMERCIAL = re.compile(r"(?i)(^|[-_ ])nc([-_ ]|$)|non-?commercial|research|\bmrl\b")

_VECTORS = re.compile(r"(?i)\b(embed\w*|vectors?|semantic search|retrieval|similarity search)\b")

_DECISIONS = re.compile(r"(?i)\bdeci(de|des|ding|sions?)\b")


@dataclass(frozen=True)
class Needs:
    """What a model has to be able to do."""

    context: int  # tokens of a prompt and its answer together
    must_take_it: bool = False  # a model that takes fewer will not do
    languages: frozenset[str] = frozenset()  # that the task names, as ISO 639-1
    tools: bool = False  # the prompts bring tools
    turns: bool = False  # some prompts are conversations
    letters: int = 0  # of a usual prompt
    vectors: bool = False  # it has to turn texts into vectors, and writes none
    decides: bool = False  # it has to answer typed questions
    commercial: bool = False  # the licence has to allow commercial use
    speed: float | None = None  # tokens per second at least, or None


def languages_in(text: str) -> frozenset[str]:
    """Return the languages that a task names, as English writes them: "polish" is something else."""
    return frozenset(
        LANGUAGES[word.lower()] for word in re.findall(r"\b[A-Z][a-z]+", text) if word.lower() in LANGUAGES
    )


def asks_for_vectors(task: str) -> bool:
    """Return whether the words of a task ask for an embedder."""
    return bool(_VECTORS.search(task))


def asks_for_decisions(task: str) -> bool:
    """Return whether the words of a task ask for a decision model."""
    return bool(_DECISIONS.search(task))


def needs_turns(cases: Sequence[Case]) -> bool:
    """Return whether a model without a chat template cannot be asked."""
    return any(case.prompt is None for case in cases)


def forbids_commercial_use(license: str) -> bool:
    """Return whether a licence says so in its name; a licence that is not known forbids nothing here."""
    return bool(_NON_COMMERCIAL.search(license))

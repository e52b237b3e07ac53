"""The ways to answer better, the cheapest first: the order in which a dearer one has to prove itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from settle.experiment.arm import Reply
from settle.jobs.choose.answerer import AnsweringModel, Setup

ZERO_SHOT, PROMPT, DOCUMENTS, DECIDE, TUNE, TUNE_DOCUMENTS = (
    "zero-shot",
    "prompt",
    "documents",
    "decide",
    "tune",
    "documents + tune",
)
# by what has to be made and kept up: nothing, a text, an index, a head of one token, weights, both
CHEAPEST_FIRST = (ZERO_SHOT, PROMPT, DOCUMENTS, DECIDE, TUNE, TUNE_DOCUMENTS)
WITH_DOCUMENTS = (DOCUMENTS, TUNE_DOCUMENTS)


@dataclass(frozen=True)
class Built:
    """A way that can be asked."""

    name: str
    model: AnsweringModel
    setup: Setup
    command: str  # makes it ready to be used
    build_seconds: float = 0.0  # that it took to make
    search_seconds: float = 0.0  # of finding passages, a question
    change_seconds: float | None = None  # until a changed fact counts, None where it was not measured
    change_note: str = ""  # how, for the user
    about: str = ""  # what it is


@dataclass(frozen=True)
class Measured:
    """A way with its scores and replies on the test questions, in their order."""

    way: Built
    scores: Sequence[float]
    replies: Sequence[Reply]
    peak: int = 0  # the most memory of llama.cpp's process, in bytes

    @property
    def name(self) -> str:
        return self.way.name

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def seconds(self) -> float:
        """Mean time of an answer."""
        return sum(r.seconds for r in self.replies) / len(self.replies) + self.way.search_seconds

    @property
    def tokens(self) -> float:
        """Mean tokens of an answer, read and written."""
        return sum(r.read + r.written for r in self.replies) / len(self.replies)

    @property
    def joules(self) -> float:
        """Mean energy of an answer."""
        return sum(r.joules for r in self.replies) / len(self.replies)

    @property
    def cut(self) -> int:
        """Number of answers that were stopped for their length."""
        return sum(not r.ended for r in self.replies)

    @property
    def unasked(self) -> int:
        """Number of questions that did not fit into the context."""
        return sum(not r.asked for r in self.replies)


@dataclass(frozen=True)
class Failed:
    """A way that could not be built or asked, and why."""

    name: str
    why: str


def possible_ways(has_documents: bool, is_closed: bool) -> tuple[str, ...]:
    """Return the ways that there are with and without documents, for a closed set of answers and for others."""
    return tuple(
        way for way in CHEAPEST_FIRST if (has_documents or way not in WITH_DOCUMENTS) and (is_closed or way != DECIDE)
    )

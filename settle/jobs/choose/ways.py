"""The ways to answer better, the cheapest first: the order in which a dearer one has to prove itself."""

from dataclasses import dataclass, field

from settle.evaluate.compare.cases import Case
from settle.jobs.choose.documents import Found
from settle.jobs.choose.setup import Reply

ZERO_SHOT, PROMPT, DOCUMENTS, TUNE, TUNE_DOCUMENTS = (
    "zero-shot",
    "prompt",
    "documents",
    "tune",
    "documents + tune",
)
# by what has to be made and kept up: nothing, a text, an index, weights, both
CHEAPEST_FIRST = (ZERO_SHOT, PROMPT, DOCUMENTS, TUNE, TUNE_DOCUMENTS)
TUNED = (TUNE, TUNE_DOCUMENTS)
WITH_DOCUMENTS = (DOCUMENTS, TUNE_DOCUMENTS)


@dataclass(frozen=True)
class Measured:
    """A way that was built and asked the test questions. scores, replies: by question, in their order. build_seconds:
    to make it; search_seconds: of finding passages, a question; peak: the most memory of llama.cpp's process, in bytes.
    change_seconds: until a changed fact counts, None where it was not measured. command: that makes it ready."""

    name: str
    scores: list[float]
    replies: list[Reply]
    build_seconds: float
    peak: int
    command: str
    search_seconds: float = 0.0
    change_seconds: float | None = None
    change_note: str = ""
    about: str = ""

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def seconds(self) -> float:
        """Seconds of an answer, in the mean."""
        return sum(r.seconds for r in self.replies) / len(self.replies) + self.search_seconds

    @property
    def tokens(self) -> float:
        """Tokens that an answer takes, read and written, in the mean."""
        return sum(r.read + r.written for r in self.replies) / len(self.replies)

    @property
    def joules(self) -> float:
        """Energy of an answer, in the mean."""
        return sum(r.joules for r in self.replies) / len(self.replies)

    @property
    def cut(self) -> int:
        """Answers that were stopped for their length."""
        return sum(not r.ended for r in self.replies)


@dataclass(frozen=True)
class Failed:
    """A way that could not be built or asked, and why."""

    name: str
    why: str


@dataclass
class Material:
    """What the ways are built from. found: what the documents have for each question, by its number, of the training
    examples and of the test."""

    train: list[Case]
    test: list[Case]
    found_train: dict[int, Found] = field(default_factory=dict)
    found_test: dict[int, Found] = field(default_factory=dict)

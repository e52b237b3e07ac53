"""What a model forgot: how much less likely it holds text that its base knew. V vocabulary.

On text that the base itself wrote, the rise of the loss and the KL divergence measure the same thing, in two ways:
the mean of log p(token | base) - log p(token | tuned) over the base's own tokens is the divergence (Kullback and
Leibler 1951), so neither can be small by the choice of text.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.errors import DataError
from settle.base.statistics import PairedTest, paired_test
from settle.evaluate.compare.candidate import Answer, Model, OnProgress
from settle.evaluate.compare.cases import asking

TEXTS, TOKENS, GROUP = 24, 64, 8  # as many texts, of as many tokens; so many at once where time is short
# KL in nats per token up to which so much is said to be forgotten; 0.1 is 10 % of perplexity
DEGREES = ((0.01, "next to nothing"), (0.1, "little"), (0.5, "some"))
OPENINGS = (
    "Tell me a short story about a lighthouse.",
    "What is the capital of Portugal, and what is it known for?",
    "Explain how a bicycle stays upright.",
    "Write a Python function that reverses a list.",
    "Give me a recipe for a simple soup.",
    "Who was Marie Curie?",
    "What is the difference between weather and climate?",
    "Write a polite letter asking for a refund.",
    "How do I sort a table by two columns in SQL?",
    "Describe the water cycle for a child.",
    "Summarise what happened in the French Revolution.",
    "Give three tips for learning a language.",
    "What does photosynthesis do?",
    "Write a poem about autumn.",
    "How many days are there in a leap year, and why?",
    "Translate 'Where is the station?' into French and German.",
    "What should I pack for a week in the mountains?",
    "Explain what a variable is in programming.",
    "Why is the sky blue?",
    "Suggest a name for a small bakery.",
    "What are the rules of chess in brief?",
    "Write an HTML page with a heading and a list.",
    "How does a vaccine work?",
    "Compare a cat and a dog as pets.",
)


@dataclass(frozen=True)
class Familiar:
    """Texts (ids) and where each begins to count; wrote: who wrote them, for people."""

    texts: list[list[int]]
    begin: list[int]
    wrote: str


@dataclass(frozen=True)
class Forgetting:
    """loss: of the base and of the tuned model, nats per token, means over texts; kl: KL(base ‖ tuned), likewise."""

    loss: PairedTest
    kl: PairedTest
    tokens: int
    wrote: str

    @property
    def degree(self) -> str:
        """How much was forgotten, in a few words: of both ends of the interval where they say different things."""
        if not self.kl.wins:  # not a token differs
            return DEGREES[0][1]
        low, high = (
            next((word for most, word in DEGREES if end <= most), "much")
            for end in (self.kl.difference.low, self.kl.difference.high)
        )
        return low if low == high else f"{low} to {high}"

    def to_json(self) -> dict[str, object]:
        return {
            "degree": self.degree,
            "loss_base": self.loss.base,
            "loss_tuned": self.loss.tuned,
            "loss_rise": self.loss.difference.to_json(),
            "kl": self.kl.difference.to_json(),
            "texts": self.loss.rows,
            "tokens": self.tokens,
            "text": self.wrote,
        }


def generated(base: Model, on_progress: OnProgress, until: float | None = None) -> Familiar:
    """Let the base write text from its own distribution: answers where it chats, free text where it completes one.

    until: `time.monotonic()` by which it should be written; there are fewer texts then, one group at least.
    """
    questions = [asking(opening) for opening in OPENINGS] if base.chats else [asking("")] * TEXTS
    answers: list[Answer] = []
    began, group = time.monotonic(), len(questions) if until is None else GROUP
    while len(answers) < len(questions):
        now = time.monotonic()
        if until is not None and answers and now + (now - began) * group / len(answers) > until:
            on_progress(TEXTS)
            break
        chosen = questions[len(answers) : len(answers) + group]
        answers += base.answers(chosen, TOKENS, _further(on_progress, len(answers)), temperature=1.0)
    questions = questions[: len(answers)]
    opening = base.tokenize("")
    written = [base.tokenize(answer.text) if answer.text else [] for answer in answers]
    written = [ids[len(opening) :] if ids[: len(opening)] == opening else ids for ids in written]
    prompts = [base.prompt(question) for question in questions]
    texts = [(prompt + ids, len(prompt)) for prompt, ids in zip(prompts, written, strict=True) if ids]
    if not texts:
        raise DataError(f"{base.name} writes nothing by itself", "give text that it knew: --familiar FILE")
    return Familiar([ids for ids, _ in texts], [begin for _, begin in texts], f"written by {base.name} itself")


def _further(on_progress: OnProgress, done: int) -> OnProgress:
    return lambda number: on_progress(done + number)


def from_texts(base: Model, texts: Iterable[str], name: str) -> Familiar:
    """Cut text that the model knew, as the user says, into pieces, evenly spread. Raises DataError without text."""
    longest = 2 * TOKENS
    ids = [base.tokenize(text) for text in texts]
    pieces = [i[at : at + longest] for i in ids for at in range(0, len(i), longest)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise DataError(f"there is no text in {name}", "give text that the base knew, or leave it out")
    chosen = [pieces[i * len(pieces) // TEXTS] for i in range(TEXTS)] if len(pieces) > TEXTS else pieces
    return Familiar(chosen, [1] * len(chosen), f"from {name}")


def forgetting(base: Model, tuned: Model, familiar: Familiar, on_progress: OnProgress) -> Forgetting:
    """Read familiar text with both models. Their vocabularies are the same."""
    losses: tuple[list[float], list[float]] = ([], [])
    divergences: list[float] = []
    each = min(base.together, tuned.together)
    for at in range(0, len(familiar.texts), each):
        group = familiar.texts[at : at + each], familiar.begin[at : at + each]
        for ours, theirs in zip(base.read(*group), tuned.read(*group), strict=True):
            losses[0].append(-float(ours.logprobs.mean()))
            losses[1].append(-float(theirs.logprobs.mean()))
            positions = range(len(ours.logprobs))
            divergences.append(float(np.mean([_divergence(ours.spread(i), theirs.spread(i)) for i in positions])))
        on_progress(min(at + each, len(familiar.texts)))
    tokens = sum(len(text) - begin for text, begin in zip(familiar.texts, familiar.begin, strict=True))
    return Forgetting(paired_test(*losses), paired_test([0.0] * len(divergences), divergences), tokens, familiar.wrote)


def _divergence(base: np.ndarray, tuned: np.ndarray) -> float:
    """KL(base ‖ tuned) of log-probabilities (V,), in nats."""
    base, tuned = base.astype(float), tuned.astype(float)
    return max(0.0, float(np.sum(np.exp(base) * (base - tuned))))


def losses(model: Model, texts: Sequence[str], on_progress: OnProgress) -> list[float]:
    """Return the bits per byte of each text, for models that complete text."""
    out: list[float] = []
    for at in range(0, len(texts), model.together):
        group = texts[at : at + model.together]
        opening = model.tokenize("")[:1]
        ids = [i if i[:1] == opening else [*opening, *i] for i in map(model.tokenize, group)]
        readings = model.read(ids, [1] * len(ids))
        for text, reading in zip(group, readings, strict=True):
            out.append(-float(reading.logprobs.sum()) / np.log(2) / max(1, len(text.encode())))
        on_progress(len(out))
    return out

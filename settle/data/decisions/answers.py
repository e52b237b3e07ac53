"""Answers to typed questions: a probability for every option, and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass

from settle.data.decisions.questions import Question


@dataclass(frozen=True)
class Answer:
    """probabilities: of the question's options, in its own order; they add up to 1."""

    question: Question
    probabilities: tuple[float, ...]

    @property
    def best(self) -> int:
        """The index of the likeliest option; the first of several."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def key(self) -> str:
        """The key of the likeliest option."""
        return self.question.options[self.best].key

    @property
    def highest(self) -> float:
        """The probability of the likeliest option: by it answers are refused."""
        return self.probabilities[self.best]

    @property
    def expected(self) -> float:
        """The mean level of a score; for a noul the probability of true."""
        return sum(level * p for level, p in enumerate(self.probabilities))

    @property
    def confidence(self) -> float:
        """How far from knowing nothing, 0 to 1, by the two formulas that TypeSafe publishes and llama.cpp uses: for a
        score, how near the levels lie to the likeliest one; otherwise, how far the likeliest is above an even share."""
        num, likeliest = len(self.probabilities), self.best
        if num < 2:
            return 1.0
        if self.question.type != "score":
            return max(0.0, (self.highest - 1 / num) / (1 - 1 / num))
        away = sum(p * abs(level - likeliest) for level, p in enumerate(self.probabilities))
        even = sum(abs(level - (num - 1) / 2) for level in range(num)) / num
        return max(0.0, 1 - away / even)

    def name_of(self, place: int) -> str:
        """An option as people read it: a level of a score by its description."""
        option = self.question.options[place]
        return option.description if self.question.type == "score" and option.description else option.key

    def to_json(self) -> dict[str, object]:
        """The answer as `/v1/systemone` spells it."""
        by_key = dict(zip(self.question.keys, self.probabilities, strict=True))
        if self.question.type == "noul":
            return {"type": "noul", "noul": by_key["true"]}
        if self.question.type == "choice":
            return {"type": "choice", "choice": self.key, "probabilities": by_key, "confidence": self.confidence}
        legend = {option.key: option.description for option in self.question.options}
        figures: dict[str, object] = {"score": self.expected, "legend": legend, "probabilities": by_key}
        return {"type": "score", **figures, "confidence": self.confidence}


def ranked(answer: Answer) -> Sequence[int]:
    """Indices of the options, the likeliest first."""
    return sorted(range(len(answer.probabilities)), key=lambda i: -answer.probabilities[i])

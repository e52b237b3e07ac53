"""Typed questions, their options and their answers, in the form of `/v1/systemone`.

A question is {"type", "instructions", "criteria"}. `criteria` is, for a choice, an object from each option's key to its
description (null where it has none); for a score a list of descriptions, the lowest level first; for a noul nothing, or
an object that describes "false" and "true". An answer is a probability for every option.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from settle.base.errors import DataError

QuestionType = Literal["noul", "choice", "score"]
TYPES: tuple[QuestionType, ...] = get_args(QuestionType)
MOST_OPTIONS, MOST_LEVELS = 255, 10  # what llama.cpp takes
TRUTH = ("false", "true")  # the keys of a noul, in this order
_FIX = 'write it as {"type": "choice", "instructions": "…", "criteria": {"option": "its description or null"}}'


@dataclass(frozen=True)
class Option:
    """An option of a question.

    key: what an answer names it by. description: what else the prompt says about it, or None.
    """

    key: str
    description: str | None = None


@dataclass(frozen=True)
class Question:
    """One question.

    options: those of a noul are false and true; the keys of a score's levels are "0", "1", ….
    """

    type: QuestionType
    instructions: str
    options: tuple[Option, ...]

    @classmethod
    def from_json(cls, value: object, name: str = "question") -> "Question":
        """Return the question that a `/v1/systemone` body spells. name: for messages. Raises DataError."""
        if not isinstance(value, Mapping):
            raise DataError(f"{name} is no question: it is not an object", _FIX)
        kind = next((known for known in TYPES if value.get("type") == known), None)
        if kind is None:
            raise DataError(f"{name} has the type {value.get('type')!r:.40}", f"give one of {', '.join(TYPES)}")
        instructions = value.get("instructions")
        if not isinstance(instructions, str) or not instructions.strip():
            raise DataError(f"{name} has no instructions", "say in `instructions` what is to be decided")
        read = {"noul": _noul, "choice": _choice, "score": _score}[kind]
        return cls(kind, instructions, read(value.get("criteria"), name))

    def to_json(self) -> dict[str, object]:
        """Return the question as a `/v1/systemone` body spells it."""
        question = {"type": self.type, "instructions": self.instructions}
        if self.type == "score":
            return {**question, "criteria": [option.description for option in self.options]}
        described = {option.key: option.description for option in self.options}
        return {**question, "criteria": described} if self.type != "noul" or any(described.values()) else {**question}

    @property
    def keys(self) -> tuple[str, ...]:
        """The options' keys, in the question's own order."""
        return tuple(option.key for option in self.options)

    def target(self, value: object, name: str = "target") -> tuple[float, ...]:
        """Return the right answer as a distribution over `options`.

        value: an option's key (of a score its level or description; of a noul a boolean), or an object from keys to
        shares, which are scaled to 1; a number for a noul that is not 0 or 1 is the probability of true. Raises
        DataError.
        """
        if isinstance(value, Mapping):
            return self._shares(value, name)
        if self.type == "noul" and isinstance(value, float) and 0 < value < 1:
            return (1 - value, value)
        place = self._place(value)
        if place is None:
            raise DataError(f"{name} is {value!r:.60}, which is no option", f"give one of {', '.join(self.keys)[:200]}")
        return tuple(float(i == place) for i in range(len(self.options)))

    def _shares(self, value: Mapping[object, object], name: str) -> tuple[float, ...]:
        shares = [0.0] * len(self.options)
        for key, share in value.items():
            place = self._place(key)
            if place is None or type(share) not in (int, float) or not 0 <= cast(float, share) < 1e9:
                fix = f"give shares from 0 on for {', '.join(self.keys)[:200]}"
                raise DataError(f"{name} gives {key!r:.40} the share {share!r:.40}", fix)
            shares[place] += cast(float, share)
        if not sum(shares) > 0:
            raise DataError(f"the shares of {name} are all 0", "give at least one option a share above 0")
        return tuple(share / sum(shares) for share in shares)

    def _place(self, value: object) -> int | None:
        """Return the index of the option that a value names; None when it names none."""
        word = _word(value)
        if word in self.keys:
            return self.keys.index(word)
        if self.type == "noul":
            return {"0": 0, "no": 0, "n": 0, "false": 0, "1": 1, "yes": 1, "y": 1, "true": 1}.get(word.lower())
        descriptions = [option.description for option in self.options]
        return descriptions.index(word) if self.type == "score" and word in descriptions else None


def _word(value: object) -> str:
    """Return a value as the text that options are compared by: 3.0 is "3", True is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _noul(criteria: object, name: str) -> tuple[Option, ...]:
    match criteria:
        case None:
            return tuple(map(Option, TRUTH))
        case {**given} if set(given) <= set(TRUTH):
            return tuple(Option(key, _described(given.get(key), name)) for key in TRUTH)
    raise DataError(f"{name}: the criteria of a noul are {criteria!r:.60}", "describe `true` and `false`, or none")


def _choice(criteria: object, name: str) -> tuple[Option, ...]:
    options: Mapping[object, object] = {}
    match criteria:
        case [*keys]:
            options = {str(key): None for key in keys}
        case {**described}:
            options = described
    if len(options) < 2:
        raise DataError(f"{name} offers fewer than two options", "give at least two in `criteria`")
    if len(options) > MOST_OPTIONS:
        raise DataError(f"{name} offers {len(options)} options", f"give at most {MOST_OPTIONS}, or group them")
    return tuple(Option(str(key), _described(text, name)) for key, text in options.items())


def _score(criteria: object, name: str) -> tuple[Option, ...]:
    match criteria:
        case [*levels] if 2 <= len(levels) <= MOST_LEVELS:
            return tuple(Option(str(i), _described(text, name) or "") for i, text in enumerate(levels))
    raise DataError(f"{name}: a score needs 2 to {MOST_LEVELS} levels", "list them in `criteria`, the lowest first")


def _described(text: object, name: str) -> str | None:
    if text is not None and not isinstance(text, str):
        raise DataError(f"{name}: the description {text!r:.40} is no text", "give a text, or null")
    return text or None


@dataclass(frozen=True)
class DecisionAnswer:
    """An answer to a question: a probability for every option.

    probabilities: of the question's options, in its own order; they add up to 1.
    """

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
        """Return the confidence, 0 to 1, by the two formulas that TypeSafe publishes and llama.cpp uses.

        For a score, how near the levels lie to the likeliest one; otherwise, how far the likeliest is above an even
        share.
        """
        num, likeliest = len(self.probabilities), self.best
        if num < 2:
            return 1.0
        if self.question.type != "score":
            return max(0.0, (self.highest - 1 / num) / (1 - 1 / num))
        away = sum(p * abs(level - likeliest) for level, p in enumerate(self.probabilities))
        even = sum(abs(level - (num - 1) / 2) for level in range(num)) / num
        return max(0.0, 1 - away / even)

    def name_of(self, place: int) -> str:
        """Return an option as people read it: a level of a score by its description."""
        option = self.question.options[place]
        return option.description if self.question.type == "score" and option.description else option.key

    def to_json(self) -> dict[str, object]:
        """Return the answer as `/v1/systemone` spells it."""
        by_key = dict(zip(self.question.keys, self.probabilities, strict=True))
        if self.question.type == "noul":
            return {"type": "noul", "noul": by_key["true"]}
        if self.question.type == "choice":
            return {"type": "choice", "choice": self.key, "probabilities": by_key, "confidence": self.confidence}
        legend = {option.key: option.description for option in self.question.options}
        figures = {"score": self.expected, "legend": legend, "probabilities": by_key}
        return {"type": "score", **figures, "confidence": self.confidence}


def ranked(answer: DecisionAnswer) -> Sequence[int]:
    """Return the indices of the options, the likeliest first."""
    return sorted(range(len(answer.probabilities)), key=lambda i: -answer.probabilities[i])


def state_text(state: object) -> str:
    """Return a state as the prompt has it: text as it is, anything else as JSON."""
    return state if isinstance(state, str) else json.dumps(state, ensure_ascii=False)

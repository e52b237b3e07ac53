"""Letters inside a token."""

import random
from typing import ClassVar

from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson

SHOTS = 3  # words that show what is asked
FEWEST_WORDS = 40


class Letters(Lesson):
    """Letters inside a token cannot be seen."""

    number: ClassVar[int] = 1
    title: ClassVar[str] = "Letters inside a token"
    why: ClassVar[str] = (
        "A model reads tokens, not letters: a word that is one token is one number to it. It spells that word only as "
        "far as training happened to show it how, while letters that are tokens of their own can simply be copied."
    )
    works: ClassVar[str] = "spell a word whose letters stand apart"
    breaks: ClassVar[str] = "spell the same word as one token"
    answer: ClassVar[str] = "the word's letters in order"

    def lacking(self, model: LessonModel) -> str:
        number = len(model.words)
        return f"only {number} of its tokens are words of five letters or more" if number < FEWEST_WORDS else ""

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        words = draws.sample(model.words, SHOTS + 1)
        return model.case(*_spelled([" ".join(word) for word in words], words)), model.case(*_spelled(words, words))


def _spelled(given: list[str], words: list[str]) -> tuple[str, str]:
    """Return a prompt that shows how the first words are spelled, and how the last one is."""
    lines = [f"spell {asked} = {'-'.join(word)}" for asked, word in zip(given, words, strict=True)]
    prompt, equals, answer = "\n".join(lines).rpartition("=")
    return prompt + equals, answer

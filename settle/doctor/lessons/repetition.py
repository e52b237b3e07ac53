"""Repetition that feeds itself."""

import random
from typing import ClassVar

from settle.doctor.known_answers import filler
from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson

TIMES = 4


class Repetition(Lesson):
    """Every repetition makes the next one likelier."""

    number: ClassVar[int] = 8
    title: ClassVar[str] = "Repetition"
    why: ClassVar[str] = (
        "A model predicts what fits the text before it, and nothing fits a text that repeats itself like repeating it "
        "again. Each round makes the next one likelier, so a model that has fallen into a loop does not leave it."
    )
    works: ClassVar[str] = "a sentence that was written once"
    breaks: ClassVar[str] = f"the same sentence written {TIMES} times"
    answer: ClassVar[str] = "the same sentence once more"
    wants_low: ClassVar[bool] = True

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        sentence = filler(draws)
        return model.case(sentence, f" {sentence}"), model.case(" ".join([sentence] * TIMES), f" {sentence}")

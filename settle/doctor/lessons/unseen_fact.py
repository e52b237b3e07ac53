"""A fact that a model has not seen."""

import random
from typing import ClassVar

from settle.doctor.known_answers import made_up_fact
from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson


class UnseenFact(Lesson):
    """A fact that was in no training text has to be in the prompt."""

    number: ClassVar[int] = 3
    title: ClassVar[str] = "A fact it has not seen"
    why: ClassVar[str] = (
        "What stood in no training text is not in the weights, and the model still has to give some token the highest "
        "probability: it guesses, in the same tone as when it knows. With the passage in the prompt it copies."
    )
    works: ClassVar[str] = "the question behind the passage that answers it"
    breaks: ClassVar[str] = "the question alone"
    answer: ClassVar[str] = "the code that was made up"

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        fact = made_up_fact(draws)
        question = f"Question: {fact.question}\nAnswer: {fact.begun}"
        return model.case(f"{fact.sentence}\n\n{question}", fact.answer), model.case(question, fact.answer)

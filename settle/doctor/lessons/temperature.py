"""A temperature that is too high."""

import random
from dataclasses import replace
from typing import ClassVar

from settle.doctor.known_answers import made_up_fact
from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson

LOW, HIGH = 0.7, 1.5


class Temperature(Lesson):
    """A high temperature gives the long tail of unlikely tokens a say."""

    number: ClassVar[int] = 6
    title: ClassVar[str] = "Temperature"
    why: ClassVar[str] = (
        "Dividing the logits by more than 1 makes every unlikely token likelier, and there are tens of thousands of "
        "them: together they win. Even an answer that stands in the prompt is then drawn wrongly now and again."
    )
    works: ClassVar[str] = f"an answer from the prompt, drawn at a temperature of {LOW}"
    breaks: ClassVar[str] = f"the same, drawn at {HIGH}"
    answer: ClassVar[str] = "the code that stands in the prompt"
    has_rank: ClassVar[bool] = False

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        fact = made_up_fact(draws)
        prompt = f"{fact.sentence}\n\nQuestion: {fact.question}\nAnswer: {fact.begun}"
        case = model.case(prompt, fact.answer)
        return replace(case, temperature=LOW), replace(case, temperature=HIGH)

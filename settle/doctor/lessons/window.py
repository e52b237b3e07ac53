"""A fact that was pushed out of the window."""

import random
from typing import ClassVar

from settle.doctor.known_answers import filler, made_up_fact
from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson

WINDOW = 256  # tokens: small, so that it takes seconds; the model's own window ends the same way
MOST_SENTENCES = 100


class Window(Lesson):
    """What lies before the window does not exist for the model."""

    number: ClassVar[int] = 4
    title: ClassVar[str] = "A fact pushed out of the window"
    why: ClassVar[str] = (
        "A model reads as many tokens as its window holds, here 256, and whatever serves it cuts the rest off at the "
        "start. A few sentences more, and the fact that was there is as unknown as if it had never been written."
    )
    works: ClassVar[str] = "a text that just fits, with the fact at its start"
    breaks: ClassVar[str] = "the same text, longer by as much as cuts the fact off"
    answer: ClassVar[str] = "the code that was made up"

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        fact = made_up_fact(draws)
        end, sentences = f"\n\nQuestion: {fact.question}\nAnswer: {fact.begun}", [filler(draws)]
        length = len(model.case(fact.sentence, fact.answer).ids)

        def case() -> Case:
            return model.case(" ".join([fact.sentence, *sentences]) + end, fact.answer)

        one = other = case()
        while len(other.ids) < WINDOW + length and len(sentences) < MOST_SENTENCES:
            sentences.append(filler(draws))
            other = case()
            one = other if len(other.ids) <= WINDOW else one
        return one, Case(model.last(other.ids, WINDOW), other.answer)

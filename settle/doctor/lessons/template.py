"""The wrong chat template."""

import random
from typing import ClassVar

from settle.data.rows.render import KNOWN, fitting
from settle.doctor.known_answers import made_up_fact
from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson


class Template(Lesson):
    """A chat model in another model's template does not know when its turn ends."""

    number: ClassVar[int] = 5
    title: ClassVar[str] = "Wrong template"
    why: ClassVar[str] = (
        "A chat model learned to answer between the very tokens of its own template, and to end its turn with one of "
        "them. In another template these tokens are missing: the same question is plain text to it, which goes on."
    )
    works: ClassVar[str] = "a question and its answer in the model's own template"
    breaks: ClassVar[str] = "the same in the template of another model"
    answer: ClassVar[str] = "the end of the turn after the answer"

    def lacking(self, model: LessonModel) -> str:
        return "" if model.reader.chat_template else "it has no chat template, so none is wrong: it completes text"

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        fact = made_up_fact(draws)
        question, end = f"{fact.sentence} {fact.question}", [model.reader.tokenizer.turn_end_id]
        answer = [int(token) for token in model.reader.tokenizer.encode(f"{fact.begun}{fact.answer}.")]
        own = model.reader.question(question)
        fits = fitting(set(model.reader.tokenizer.tokens))  # the model's family: near its own, so not wrong
        other = KNOWN[draws.choice([name for name in KNOWN if name != fits])]
        return Case([*own, *answer], end), Case([*model.reader.question(question, other), *answer], end)

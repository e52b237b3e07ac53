"""Fewer bits for each weight."""

import random
from typing import ClassVar

from settle.doctor.known_answers import PARAGRAPHS
from settle.doctor.lesson_model import MIX, Case, LessonModel
from settle.doctor.lessons import Lesson

TOKENS = 48  # of a paragraph
GIVEN = 8  # of them are context only


class FewerBits(Lesson):
    """A file of two or three bits per weight predicts worse."""

    number: ClassVar[int] = 7
    title: ClassVar[str] = "Fewer bits"
    why: ClassVar[str] = (
        "Rounding every weight to one of a few values adds an error to each layer, and the errors add up. Text that "
        "the model predicted well becomes a little more surprising everywhere, and rare knowledge goes first."
    )
    works: ClassVar[str] = "a paragraph, read by the file as it is"
    breaks: ClassVar[str] = f"the same, read by the model quantized to {MIX}"
    answer: ClassVar[str] = "the paragraph, token by token"

    def lacking(self, model: LessonModel) -> str:
        return model.lacks_fewer_bits

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        ids = model.reader.encode(draws.choice(PARAGRAPHS))[: GIVEN + TOKENS]
        return Case(ids[:GIVEN], ids[GIVEN:]), Case(ids[:GIVEN], ids[GIVEN:], is_small=True)

"""Lessons on why a model breaks, one file each: an A where it works and a B where it breaks, drawn by rule.

Both are measured on the user's own model.
"""

import random
from typing import ClassVar

from settle.base.registry import Part
from settle.doctor.lesson_model import Case, LessonModel


class Lesson(Part):
    """The contract of a lesson.

    number: its place among them. title: what breaks. why: what happens and why, in two sentences. works, breaks: what A
    and B are. answer: what is measured the probability of. wants_low: whether a lower probability is what works.
    has_rank: whether "the likeliest at every token" says that the model gets it right.
    """

    number: ClassVar[int]
    title: ClassVar[str]
    why: ClassVar[str]
    works: ClassVar[str]
    breaks: ClassVar[str]
    answer: ClassVar[str]
    wants_low: ClassVar[bool] = False
    has_rank: ClassVar[bool] = True

    def lacking(self, model: LessonModel) -> str:
        """Return what the model lacks for this lesson, as a sentence; "" where it has everything."""
        return ""

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        """Draw an A and a B by rule. Raises SettleError."""
        raise NotImplementedError

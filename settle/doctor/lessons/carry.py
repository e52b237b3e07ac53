"""Carrying in addition."""

import random
from typing import ClassVar

from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson

SHOTS = 4


class Carry(Lesson):
    """A sum with a carry is harder than one without."""

    number: ClassVar[int] = 2
    title: ClassVar[str] = "Carrying in addition"
    why: ClassVar[str] = (
        "A model writes a sum from the left, so the first digit is due before the carry from the right is worked out. "
        "Without a carry each digit depends on one column alone."
    )
    works: ClassVar[str] = "a sum of two-digit numbers without a carry"
    breaks: ClassVar[str] = "a sum with the same result that carries"
    answer: ClassVar[str] = "the result"

    def draw(self, model: LessonModel, draws: random.Random) -> tuple[Case, Case]:
        shots = [_sum(draws, _result(draws), carries=at % 2 == 1) for at in range(SHOTS)]
        result = _result(draws)
        sums = [_sum(draws, result, carries) for carries in (False, True)]
        one, other = (model.case("\n".join([*shots, f"{a} + {b} ="]), f" {result}") for a, b in map(_parts, sums))
        return one, other


def _result(draws: random.Random) -> int:
    """Draw a number that has sums of both kinds."""
    return 10 * draws.randint(3, 9) + draws.randint(0, 8)


def _sum(draws: random.Random, result: int, carries: bool) -> str:
    tens, ones = divmod(result, 10)
    low, high = (ones + 1, 9) if carries else (0, ones)
    first = 10 * draws.randint(1, tens - 1 - carries) + draws.randint(low, high)
    return f"{first} + {result - first} = {result}"


def _parts(line: str) -> tuple[str, str]:
    first, _, second, *_ = line.split()
    return first, second

"""Facts that no text ever stated, and sentences that say nothing, made by rule from random draws."""

import random
from typing import NamedTuple

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
PLACES = ("archive", "harbour", "library", "observatory", "mill", "station", "garden", "museum")
ACTS = ("opens", "closes", "leaves", "begins", "returns", "rests")
TIMES = ("at dawn", "at noon", "after the rain", "on Mondays", "in the spring", "every evening", "before supper")
DIGITS = 4


class Fact(NamedTuple):
    """sentence: states the fact. question: asks for it. begun: how an answer begins. answer: what it continues with."""

    sentence: str
    question: str
    begun: str
    answer: str


def made_up_name(draws: random.Random) -> str:
    return "".join(draws.choice(CONSONANTS) + draws.choice(VOWELS) for _ in range(3)).capitalize()


def made_up_fact(draws: random.Random) -> Fact:
    place = f"the {draws.choice(PLACES)} of {made_up_name(draws)}"
    code = draws.randrange(10 ** (DIGITS - 1), 10**DIGITS)
    sentence = f"The door code of {place} is {code}."
    return Fact(sentence, f"What is the door code of {place}?", f"The door code of {place} is", f" {code}")


def filler(draws: random.Random) -> str:
    """Make a sentence without any number."""
    return f"The {draws.choice(PLACES)} of {made_up_name(draws)} {draws.choice(ACTS)} {draws.choice(TIMES)}."

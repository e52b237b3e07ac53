"""A small set of instructions that a program can check, written for settle after the idea of IFEval (Zhou et al. 2023).

Tuning on one task often costs a model the habit of following instructions. An instruction here says something about
the form of the answer, so that no judge is needed; the checks are strict.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from settle.base.files import parse_json

Check = Callable[[str], bool]


@dataclass(frozen=True)
class Instruction:
    """prompt: the instruction; follows: whether an answer follows it."""

    prompt: str
    follows: Check


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)


def sentences(text: str) -> int:
    """Count the sentences of a text, roughly: ends of sentences before a space or the end."""
    return len(re.findall(r"[.!?]+[\"”')]*(?=\s|$)", text))


def lines(text: str) -> list[str]:
    """Return the lines with something on them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def bullets(text: str) -> int:
    """Count the lines that begin with a bullet."""
    return sum(bool(re.match(r"[*•-]\s+\S", line)) for line in lines(text))


def numbered(text: str, most: int) -> bool:
    """Return whether there are lines `1.` to `most.`, in order, each once, and no further number."""
    return [int(n) for n in re.findall(r"^\s*(\d+)[.)]\s+\S", text, re.M)] == list(range(1, most + 1))


def times(text: str, word: str) -> int:
    """Count how often a word is there, in any case."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.I))


def has(text: str, *wanted: str) -> bool:
    """Return whether every one of these words is there."""
    return all(times(text, word) for word in wanted)


def json_value(text: str) -> object:
    """Return the value of an answer that is nothing but JSON, in a code fence or without; None for anything else."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.S)
    try:
        value: object = parse_json(fenced.group(1) if fenced else text)
    except ValueError:
        return None
    return value


def json_keys(text: str, *keys: str) -> bool:
    """Return whether it is an object with these keys and no others."""
    value = json_value(text)
    return isinstance(value, dict) and set(value) == set(keys)


def json_items(text: str) -> int:
    """Count the items of the list that an answer is; -1 where it is none."""
    value = json_value(text)
    return len(value) if isinstance(value, list) else -1


INSTRUCTIONS = tuple(
    Instruction(prompt, follows)
    for prompt, follows in (
        ("Describe the sea in fewer than 20 words.", lambda t: 0 < len(words(t)) < 20),
        ("Explain what a volcano is in exactly two sentences.", lambda t: sentences(t) == 2),
        ("Write at least 60 words about trains.", lambda t: len(words(t)) >= 60),
        ("Answer with one word only: what colour is snow?", lambda t: len(words(t)) == 1),
        ("Is the sun a star? Answer only 'yes' or 'no'.", lambda t: t.lower().strip(" .!'\"\n") in ("yes", "no")),
        ("List exactly three fruits as bullet points that begin with '- '.", lambda t: bullets(t) == 3),
        ("Give five hobbies as a numbered list from 1 to 5.", lambda t: numbered(t, 5)),
        ("Write about dogs in lower case only, without any capital letter.", lambda t: bool(t) and t == t.lower()),
        ("Write one sentence about music IN CAPITAL LETTERS ONLY.", lambda t: bool(words(t)) and t == t.upper()),
        ("Describe a forest without using any comma.", lambda t: bool(t) and "," not in t),
        ("Describe winter without using the word 'cold'.", lambda t: bool(t) and not times(t, "cold")),
        ("Write about a garden. Use the words 'gate' and 'bee'.", lambda t: has(t, "gate", "bee")),
        ("Begin your answer with the word 'Certainly'. What is bread made of?", lambda t: t.startswith("Certainly")),
        ("What is rain? End your answer with the words 'That is all.'", lambda t: t.endswith("That is all.")),
        ("Put your whole answer in double quotation marks. Who are you?", lambda t: bool(re.fullmatch(r'"[^"]+"', t))),
        ("Answer in JSON only, an object with the keys 'city' and 'country', for Rome.",
         lambda t: json_keys(t, "city", "country")),
        ("Reply with a JSON list of three animals and nothing else.",
         lambda t: json_items(t) == 3),
        ("Write two paragraphs about bread with a line of three stars (***) between them.",
         lambda t: len([p for p in re.split(r"^\s*\*\*\*\s*$", t, flags=re.M) if p.strip()]) == 2),
        ("Give your answer a title in double angle brackets, like <<title>>. What is a bridge?",
         lambda t: bool(re.search(r"<<[^<>\n]+>>", t))),
        ("Use the word 'river' exactly three times in an answer about nature.", lambda t: times(t, "river") == 3),
        ("Name four countries, separated by semicolons, on one line.",
         lambda t: len(lines(t)) == 1 and len([p for p in t.split(";") if p.strip()]) == 4),
        ("Write the numbers from one to ten in digits, separated by single spaces, and nothing else.",
         lambda t: t.strip() == "1 2 3 4 5 6 7 8 9 10"),
        ("What is 7 times 8? Answer with the number only.", lambda t: t.strip(" .\n") == "56"),
        ("Repeat this sentence exactly and add nothing: The kettle is on the stove.",
         lambda t: t.strip() == "The kettle is on the stove."),
        ("Write a question about the moon. It must be one sentence that ends with a question mark.",
         lambda t: t.strip().endswith("?") and sentences(t) == 1),
        ("Explain how to make tea in three numbered steps.", lambda t: numbered(t, 3)),
        ("Write a postscript that begins with 'P.S.' at the end of a short letter to a friend.",
         lambda t: bool(re.search(r"^\s*\**P\.\s?S\.", t, re.M)) and len(lines(t)) > 1),
        ("Mark at least two words in **bold** in a sentence about health.",
         lambda t: len(re.findall(r"\*\*[^*\n]+\*\*", t)) >= 2),
        ("Describe a cat with no more than three sentences.", lambda t: 1 <= sentences(t) <= 3),
        ("Write the alphabet in capital letters without spaces, and nothing else.",
         lambda t: t.strip() == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        ("Give two headings in Markdown, each beginning with '## ', with a sentence below each, about travel.",
         lambda t: len(re.findall(r"^## \S", t, re.M)) == 2),
        ("Write a Python function named add that adds two numbers, inside one code block.",
         lambda t: len(re.findall(r"^\s*```", t, re.M)) == 2 and "def add(" in t),
        ("Do not use any digit. How many months does a year have?", lambda t: bool(t) and not re.search(r"\d", t)),
        ("Use an exclamation mark in every sentence of a short greeting.",
         lambda t: "!" in t and not re.search(r"[.?](?:\s|$)", t)),
        ("First repeat the question word for word, then answer it: What is a noun?",
         lambda t: t.startswith("What is a noun?") and len(t) > 30),
        ("Leave at least two placeholders in square brackets, such as [name], in a short invitation.",
         lambda t: len(re.findall(r"\[[^\]\n]+\]", t)) >= 2),
        ("Choose one of these and answer with it alone: tea, coffee, water.",
         lambda t: t.lower().strip(" .!\n") in ("tea", "coffee", "water")),
        ("List the words pear, apple and cherry in alphabetical order, one per line, and nothing else.",
         lambda t: [line.lower().strip(" .-*") for line in lines(t)] == ["apple", "cherry", "pear"]),
        ("Write a table in Markdown with the columns 'day' and 'meal' and two rows below the heading.",
         lambda t: sum(line.startswith("|") for line in lines(t)) == 4 and has(t, "day", "meal")),
        ("Say goodbye in exactly five words.", lambda t: len(words(t)) == 5),
    )
)  # fmt: skip

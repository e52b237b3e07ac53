"""What a model forgot: how much less likely it holds text that its base knew. V vocabulary.

On text that the base itself wrote, the rise of the loss and the KL divergence measure the same thing, in two ways:
the mean of log p(token | base) - log p(token | tuned) over the base's own tokens is the divergence (Kullback and
Leibler 1951), so neither can be small by the choice of text.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.errors import DataError
from settle.base.files import JsonObject, parse_json
from settle.base.statistics import PairedTest, paired_test
from settle.evaluate.compare.candidate import Answer, Model, OnProgress
from settle.evaluate.compare.cases import asking

TEXTS, TOKENS, GROUP = 24, 64, 8  # as many texts, of as many tokens; so many at once where time is short
# KL in nats per token up to which so much is said to be forgotten; 0.1 is 10 % of perplexity
DEGREES = ((0.01, "next to nothing"), (0.1, "little"), (0.5, "some"))
OPENINGS = (
    "Tell me a short story about a lighthouse.",
    "What is the capital of Portugal, and what is it known for?",
    "Explain how a bicycle stays upright.",
    "Write a Python function that reverses a list.",
    "Give me a recipe for a simple soup.",
    "Who was Marie Curie?",
    "What is the difference between weather and climate?",
    "Write a polite letter asking for a refund.",
    "How do I sort a table by two columns in SQL?",
    "Describe the water cycle for a child.",
    "Summarise what happened in the French Revolution.",
    "Give three tips for learning a language.",
    "What does photosynthesis do?",
    "Write a poem about autumn.",
    "How many days are there in a leap year, and why?",
    "Translate 'Where is the station?' into French and German.",
    "What should I pack for a week in the mountains?",
    "Explain what a variable is in programming.",
    "Why is the sky blue?",
    "Suggest a name for a small bakery.",
    "What are the rules of chess in brief?",
    "Write an HTML page with a heading and a list.",
    "How does a vaccine work?",
    "Compare a cat and a dog as pets.",
)


@dataclass(frozen=True)
class Familiar:
    """Texts (ids) and where each begins to count; wrote: who wrote them, for people."""

    texts: list[list[int]]
    begin: list[int]
    wrote: str


@dataclass(frozen=True)
class Forgetting:
    """loss: of the base and of the tuned model, nats per token, means over texts; kl: KL(base ‖ tuned), likewise."""

    loss: PairedTest
    kl: PairedTest
    tokens: int
    wrote: str

    @property
    def degree(self) -> str:
        """How much was forgotten, in a few words: of both ends of the interval where they say different things."""
        if not self.kl.wins:  # not a token differs
            return DEGREES[0][1]
        low, high = (
            next((word for most, word in DEGREES if end <= most), "much")
            for end in (self.kl.difference.low, self.kl.difference.high)
        )
        return low if low == high else f"{low} to {high}"

    def to_json(self) -> JsonObject:
        return {
            "degree": self.degree,
            "loss_base": self.loss.base,
            "loss_tuned": self.loss.tuned,
            "loss_rise": self.loss.difference.to_json(),
            "kl": self.kl.difference.to_json(),
            "texts": self.loss.rows,
            "tokens": self.tokens,
            "text": self.wrote,
        }


def generated(base: Model, on_progress: OnProgress, until: float | None = None) -> Familiar:
    """Let the base write text from its own distribution: answers where it chats, free text where it completes one.

    until: `time.monotonic()` by which it should be written; there are fewer texts then, one group at least.
    """
    questions = [asking(opening) for opening in OPENINGS] if base.chats else [asking("")] * TEXTS
    answers: list[Answer] = []
    began, group = time.monotonic(), len(questions) if until is None else GROUP
    while len(answers) < len(questions):
        now = time.monotonic()
        if until is not None and answers and now + (now - began) * group / len(answers) > until:
            on_progress(TEXTS)
            break
        chosen = questions[len(answers) : len(answers) + group]
        answers += base.answers(chosen, TOKENS, _further(on_progress, len(answers)), temperature=1.0)
    questions = questions[: len(answers)]
    opening = base.tokenize("")
    written = [base.tokenize(answer.text) if answer.text else [] for answer in answers]
    written = [ids[len(opening) :] if ids[: len(opening)] == opening else ids for ids in written]
    prompts = [base.prompt(question) for question in questions]
    texts = [(prompt + ids, len(prompt)) for prompt, ids in zip(prompts, written, strict=True) if ids]
    if not texts:
        raise DataError(f"{base.name} writes nothing by itself", "give text that it knew: --familiar FILE")
    return Familiar([ids for ids, _ in texts], [begin for _, begin in texts], f"written by {base.name} itself")


def _further(on_progress: OnProgress, done: int) -> OnProgress:
    return lambda number: on_progress(done + number)


def from_texts(base: Model, texts: Iterable[str], name: str) -> Familiar:
    """Cut text that the model knew, as the user says, into pieces, evenly spread. Raises DataError without text."""
    longest = 2 * TOKENS
    ids = [base.tokenize(text) for text in texts]
    pieces = [i[at : at + longest] for i in ids for at in range(0, len(i), longest)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise DataError(f"there is no text in {name}", "give text that the base knew, or leave it out")
    chosen = [pieces[i * len(pieces) // TEXTS] for i in range(TEXTS)] if len(pieces) > TEXTS else pieces
    return Familiar(chosen, [1] * len(chosen), f"from {name}")


def forgetting(base: Model, tuned: Model, familiar: Familiar, on_progress: OnProgress) -> Forgetting:
    """Read familiar text with both models. Their vocabularies are the same."""
    losses: tuple[list[float], list[float]] = ([], [])
    divergences: list[float] = []
    each = min(base.together, tuned.together)
    for at in range(0, len(familiar.texts), each):
        group = familiar.texts[at : at + each], familiar.begin[at : at + each]
        for ours, theirs in zip(base.read(*group), tuned.read(*group), strict=True):
            losses[0].append(-float(ours.logprobs.mean()))
            losses[1].append(-float(theirs.logprobs.mean()))
            positions = range(len(ours.logprobs))
            divergences.append(float(np.mean([_divergence(ours.spread(i), theirs.spread(i)) for i in positions])))
        on_progress(min(at + each, len(familiar.texts)))
    tokens = sum(len(text) - begin for text, begin in zip(familiar.texts, familiar.begin, strict=True))
    return Forgetting(paired_test(*losses), paired_test([0.0] * len(divergences), divergences), tokens, familiar.wrote)


def _divergence(base: np.ndarray, tuned: np.ndarray) -> float:
    """KL(base ‖ tuned) of log-probabilities (V,), in nats."""
    base, tuned = base.astype(float), tuned.astype(float)
    return max(0.0, float(np.sum(np.exp(base) * (base - tuned))))


def losses(model: Model, texts: Sequence[str], on_progress: OnProgress) -> list[float]:
    """Return the bits per byte of each text, for models that complete text."""
    out: list[float] = []
    for at in range(0, len(texts), model.together):
        group = texts[at : at + model.together]
        opening = model.tokenize("")[:1]
        ids = [i if i[:1] == opening else [*opening, *i] for i in map(model.tokenize, group)]
        readings = model.read(ids, [1] * len(ids))
        for text, reading in zip(group, readings, strict=True):
            out.append(-float(reading.logprobs.sum()) / np.log(2) / max(1, len(text.encode())))
        on_progress(len(out))
    return out


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

"""Rows of the user's data as questions with the wanted answer, and plain text in pieces."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from settle.base.statistics import FEWEST_FAMILIES
from settle.data.layouts import Example, Message

T = TypeVar("T")
PIECE = 400  # characters of plain text that count as a row
TEXT_BLOCKS = 20  # that a text is cut into where there are too few of them to resample


@dataclass(frozen=True)
class Case:
    """One question."""

    number: int  # of the row, from 1
    reference: str  # the wanted answer, a tool call as `{"name", "arguments"}` in JSON
    messages: tuple[Message, ...]  # with `tools`, for a model with a chat template
    tools: tuple[Mapping[str, object], ...] = ()
    prompt: str | None = None  # for a model without one, where the row is one prompt and its completion

    @property
    def question(self) -> str:
        """The last message, to be shown."""
        return str(self.messages[-1]["content"])


def case(example: Example, number: int) -> Case | None:
    """Return the last answer of a row as a question, of a preference the better one; None for plain text."""
    if example.kind == "text":
        return None
    messages = [*example.messages, *example.chosen]
    before, answer = tuple(messages[:-1]), messages[-1]
    prompt = str(before[0]["content"]) if len(before) == 1 and before[0]["role"] == "user" else None
    return Case(number, _reference(answer), before, tuple(example.tools), prompt)


def cases(examples: Iterable[Example]) -> list[Case]:
    """Return every row that asks something, numbered from 1 as they come."""
    candidates = (case(example, number) for number, example in enumerate(examples, 1))
    return [c for c in candidates if c is not None]


def asking(text: str, number: int = 0) -> Case:
    """Return a question of ours, to which no certain answer is wanted."""
    return Case(number, "", ({"role": "user", "content": text},), prompt=text)


def text_pieces(texts: Sequence[str], families: Sequence[int]) -> list[tuple[str, int]]:
    """Cut texts into pieces of PIECE characters, each with its family.

    Pieces of one text are one family; where there are too few texts for that, of one stretch of it: what is shown then
    is about more of the same texts.
    """
    pieces = [(i, at) for i, text in enumerate(texts) for at in range(0, len(text), PIECE) if text[at:].strip()]
    stretch = 0
    if len(set(families)) < FEWEST_FAMILIES:
        stretch = max(PIECE, -(-sum(map(len, texts)) // TEXT_BLOCKS))
    numbers: dict[tuple[int, int], int] = {}
    out = []
    for i, at in pieces:
        family = numbers.setdefault((families[i], (i << 32) + at // stretch if stretch else 0), len(numbers))
        out.append((texts[i][at : at + PIECE], family))
    return [(piece, family) for piece, family in out if piece.strip()]


def spread(items: Sequence[T], number: int) -> list[T]:
    """Return `number` of the items at most, evenly spread."""
    return [items[i * len(items) // number] for i in range(number)] if len(items) > number else list(items)


def spread_order(number: int) -> list[int]:
    """Return 0 to `number` - 1 in an order of which every beginning is nearly evenly spread: by the golden ratio."""
    return sorted(range(number), key=lambda i: (i * 0.6180339887498949) % 1.0)


def _reference(message: Message) -> str:
    """Return an answer as text; tool calls as the JSON of their names and arguments, one a line."""
    calls = message.get("tool_calls")
    if not calls:
        return str(message["content"])
    keys = ("name", "arguments")
    return "\n".join(json.dumps({k: call["function"].get(k) for k in keys}, ensure_ascii=False) for call in calls)

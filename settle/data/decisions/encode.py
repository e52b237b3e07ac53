"""Rows of decisions as tokens: the prompt, then the label of the right option, which is the only target.

Legend: N tokens, K options, V variants of a row.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.tokenizer import Tokenizer
from settle.data.decisions.prompt import DecisionPrompt
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow


@dataclass(frozen=True)
class EncodedDecision:
    """A row of decisions as tokens.

    ids (N,): the prompt and the label of the likeliest option. shares (K,): of each label, in the labels' order.
    """

    ids: np.ndarray
    shares: np.ndarray
    text: str

    @property
    def label_start(self) -> int:
        return len(self.ids) - 1


class DecisionEncoder:
    """Encoder of rows for one model.

    labels: text → id, as `labels_of` gives them.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: DecisionPrompt, labels: Mapping[str, int]) -> None:
        self._tokenizer, self.prompt, self.labels = tokenizer, prompt, list(labels)
        self._ids = np.array(list(labels.values()), np.int64)

    def prompt_ids(self, state: str, question: Question, order: Sequence[int]) -> np.ndarray:
        """Return the ids (N,) that the model reads before the label. order: which option each label stands for."""
        text = self.prompt.text(state, question, order, self.labels)
        ids = np.asarray(self._tokenizer.encode(text, specials=True), np.int64)
        bos = self._tokenizer.bos_id
        if bos is None or not self._tokenizer.add_bos or ids[:1].tolist() == [bos]:
            return ids
        return np.append(bos, ids)

    def encode(self, row: DecisionRow, order: Sequence[int]) -> EncodedDecision:
        """Encode one row with its options in that order."""
        ids = self.prompt_ids(row.state, row.question, order)
        shares = np.array([row.target[place] for place in order], np.float32)
        return EncodedDecision(np.append(ids, self._ids[int(shares.argmax())]), shares, row.state)


def own_order(question: Question) -> tuple[int, ...]:
    """Return the options as they are asked."""
    return tuple(range(len(question.options)))


def with_changing_options(rows: Iterable[DecisionRow]) -> set[str]:
    """Return the names of questions whose options are not the same in every row."""
    options: dict[str, set[tuple[str, ...]]] = {}
    for row in rows:
        options.setdefault(row.name, set()).add(row.question.keys)
    return {name for name, keys in options.items() if len(keys) > 1}


def orders_of(question: Question, variants: int, random: np.random.Generator) -> list[tuple[int, ...]]:
    """Return `variants` orders of the options to train on.

    Every rotation of a random order comes before the next random one, so that each option has each label equally often.
    Levels of a score and false and true keep their order, which is part of the question's type.
    """
    own = own_order(question)
    if question.type != "choice":
        return [own] * variants
    orders: list[tuple[int, ...]] = []
    while len(orders) < variants:
        shuffled = random.permutation(len(own)).tolist()
        start = int(random.integers(len(own)))
        turns = [(start + i) % len(own) for i in range(len(own))]
        orders += [tuple(shuffled[turn:] + shuffled[:turn]) for turn in turns]
    return orders[:variants]


def num_variants(tokens: int, most_tokens: int, fewest: int, most: int) -> int:
    """Return how many variants of rows of so many `tokens` are stored."""
    return max(fewest, min(most, math.floor(most_tokens / max(1, tokens))))

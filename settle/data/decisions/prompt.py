"""The prompt of a decision: state, instructions, the options with their labels; the answer is one label.

The same text is written twice: here, for training and live probabilities, and as the Jinja template of a GGUF file
(`tokenizer.chat_template.systemone`) that llama.cpp renders. A test holds both against each other. The state comes
first, so that several questions about one state share their beginning.

Labels are A … Z, then AA, AB, …, of which a tokenizer may lack some: only those that are a single token are used, in
this order, as llama.cpp does for decision models of the type `nimble` (as of 2026-10).

As tokens, a row is its prompt and then the label of the right option, which is the only target.
Legend: N tokens, K options, V variants of a row.
"""

import itertools
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.base.errors import DataError
from settle.base.tokenizer import Tokenizer
from settle.data.decisions.questions import MOST_OPTIONS, Question
from settle.data.decisions.rows import DecisionRow

DECISION_TYPE = "nimble"  # llama.cpp's name of this reading of labels
SYSTEM = "You decide. Answer with the letter of one option."
_LETTERS = string.ascii_uppercase
_STATE = "qzstateqz"


@dataclass(frozen=True)
class DecisionPrompt:
    """The prompt of decisions for one model.

    opening, closing: what the model's chat template writes around a question, the token that opens a text included
    where the model expects one: nothing is added when the prompt becomes ids. signs: special tokens of the model, which
    a state must not spell.
    """

    opening: str
    closing: str
    signs: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate | None) -> "DecisionPrompt":
        """Return the prompt for a model. template: by which it takes turns; None for a model that completes text."""
        signs = tuple(sorted(tokenizer.special_tokens, key=len, reverse=True))
        opening, closing = _around(template) if template else ("", "\nAnswer:\n")
        bos = tokenizer.tokens[tokenizer.bos_id] if tokenizer.bos_id is not None else ""
        if tokenizer.add_bos and bos:
            opening = bos + opening.removeprefix(bos)  # llama.cpp puts none before the prompt of a decision
        return cls(opening, closing, signs)

    def text(self, state: str, question: Question, order: Sequence[int], labels: Sequence[str]) -> str:
        """Return what the model reads before the label. order: which option each of the first labels stands for."""
        lines = [self.opening + self.plain(state), "", self.plain(question.instructions)]
        for label, place in zip(labels, order, strict=False):
            option = question.options[place]
            described = f": {self.plain(option.description)}" if option.description else ""
            lines.append(f"{label}. {self.plain(option.key)}{described}")
        return "\n".join(lines) + self.closing

    @property
    def template(self) -> str:
        """The same as Jinja, over `state`, `instructions` and `options` with `label`, `key` and `description`."""
        return (
            f"{_literal(self.opening)}{{{{ state if state is string else state | tojson }}}}"
            "{{ '\\n\\n' }}{{ instructions }}{% for o in options %}{{ '\\n' }}{{ o.label }}. {{ o.key }}"
            "{% if o.description %}: {{ o.description }}{% endif %}{% endfor %}"
            f"{_literal(self.closing)}"
        )

    def plain(self, text: str) -> str:
        """Return a text in which nothing spells a special token: a space parts what would."""
        return self._signs.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if self._signs else text

    @cached_property
    def _signs(self) -> re.Pattern[str] | None:
        signs = [re.escape(sign) for sign in self.signs if len(sign) > 1]
        return re.compile("|".join(signs)) if signs else None


def all_labels(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the labels that are one token of this tokenizer, at most MOST_OPTIONS, with their ids.

    Raises DataError when a letter is not among them.
    """
    found: dict[str, int] = {}
    pairs = ("".join(pair) for pair in itertools.product(_LETTERS, repeat=2))
    for label in itertools.chain(_LETTERS, pairs):
        ids = tokenizer.encode(label).tolist()
        if len(ids) == 1 and tokenizer.decode(ids) == label:
            found[label] = ids[0]
        elif len(label) == 1:
            raise DataError(
                f"the label {label!r} is no single token of this tokenizer",
                "choose a model whose tokenizer has the letters A to Z",
            )
    return dict(itertools.islice(found.items(), MOST_OPTIONS))


def labels_of(tokenizer: Tokenizer, count: int) -> dict[str, int]:
    """Return the first `count` of `all_labels`. Raises DataError when there are fewer."""
    found = all_labels(tokenizer)
    if len(found) < count:
        raise DataError(
            f"{count} options need as many labels of one token, and this tokenizer has {len(found)}",
            "group the options, or choose another model",
        )
    return dict(itertools.islice(found.items(), count))


def _around(template: ChatTemplate) -> tuple[str, str]:
    """Return what a chat template writes before and after one question. Raises TemplateFailure."""
    question = {"role": "user", "content": _STATE}
    for messages in ([{"role": "system", "content": SYSTEM}, question], [question]):
        try:
            written = template.render(messages, add_generation_prompt=True, enable_thinking=False)
        except TemplateRunaway:
            raise
        except TemplateFailure:
            continue
        if written.count(_STATE) == 1 and (len(messages) == 1 or SYSTEM in written):
            opening, _, closing = written.partition(_STATE)
            return opening, closing
    raise TemplateFailure("the chat template does not render a question", "choose a chat model, or another template")


def _literal(text: str) -> str:
    """Return a text that Jinja writes as it is."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"{{{{ '{escaped}' }}}}" if text else ""


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

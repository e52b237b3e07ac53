"""What a live model answers to decisions: the scores of the labels, and how often another order changes the answer.

Legend: n rows, K options, P orders.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from settle.base.statistics import Interval, wilson
from settle.data.batches import Batch
from settle.data.decisions.calibration import fit_temperature, probabilities
from settle.data.decisions.prompt import DecisionEncoder, EncodedDecision, own_order
from settle.data.decisions.rows import DecisionRow
from settle.model.decoder import Decoder
from settle.train.objectives.decision import Decision

BATCH_TOKENS = 2048
ORDERS = 3  # other orders that each row is asked in


@dataclass(frozen=True)
class Scored:
    """Rows scored by a decision model.

    scores, targets (n, K): logits of the labels, -inf beyond a row's options, and the right shares; types (n,). heat:
    the temperature of the training, around which others are expected.
    """

    scores: np.ndarray
    targets: np.ndarray
    types: np.ndarray
    heat: float = 1.0

    def temperatures(self) -> dict[str, float]:
        """Fit the temperature of each type of question on these rows."""
        return {
            str(kind): self.heat
            * fit_temperature(self.scores[self.types == kind] / self.heat, self.targets[self.types == kind])
            for kind in np.unique(self.types)
        }

    def probabilities(self, temperatures: dict[str, float]) -> np.ndarray:
        """(n, K) with each row at the temperature of its type; 1 for a type that has none."""
        heat = np.array([temperatures.get(str(kind), 1.0) for kind in self.types])
        return probabilities(self.scores / heat[:, None])


def score_rows(model: Decoder, objective: Decision, encoder: DecisionEncoder, rows: Sequence[DecisionRow]) -> Scored:
    """Score the rows with their options in their own order."""
    encoded = [encoder.encode(row, own_order(row.question)) for row in rows]
    width = max(len(decision.shares) for decision in encoded)
    scores = np.full((len(rows), width), -np.inf)
    targets = np.zeros((len(rows), width))
    for number, (decision, own) in enumerate(zip(encoded, _scores(model, objective, encoded), strict=True)):
        scores[number, : len(own)], targets[number, : len(own)] = own, decision.shares
    return Scored(scores, targets, np.array([row.question.type for row in rows]), objective.heat)


def order_changes(
    model: Decoder,
    objective: Decision,
    encoder: DecisionEncoder,
    rows: Sequence[DecisionRow],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Interval | None:
    """Return the share of answers that differ once the options are in another order.

    Over ORDERS orders of each choice; None where no row is a choice.
    """
    choices = [row for row in rows if row.question.type == "choice"]
    if not choices:
        return None
    changed: list[bool] = []
    families: list[int] = []
    for number, row in enumerate(choices):
        count = len(row.question.options)
        random = np.random.default_rng([number, count])
        orders = [own_order(row.question), *(tuple(random.permutation(count).tolist()) for _ in range(ORDERS))]
        encoded = [encoder.encode(row, order) for order in orders]
        answers = [
            order[int(own.argmax())] for order, own in zip(orders, _scores(model, objective, encoded), strict=True)
        ]
        changed += [answer != answers[0] for answer in answers[1:]]
        families += [number] * ORDERS
        on_progress(number + 1, len(choices))
    return wilson(changed, families)


@torch.no_grad()
def _scores(model: Decoder, objective: Decision, encoded: Sequence[EncodedDecision]) -> list[np.ndarray]:
    """Return the logits (K,) of each decision, in their order."""
    training, found = model.training, {}
    model.eval()
    for chosen in _batches([len(decision.ids) for decision in encoded]):
        batch = packed([encoded[i] for i in chosen])
        assert batch.shares is not None
        inputs, bounds, shares = (
            torch.from_numpy(array).to(model.device) for array in (batch.inputs, batch.cu_seqlens, batch.shares)
        )
        scores = objective.scores(model, inputs, bounds, shares).cpu().numpy()
        for i, own in zip(chosen, scores, strict=True):
            found[i] = own[: len(encoded[i].shares)].astype(float)
    model.train(training)
    return [found[i] for i in range(len(encoded))]


def packed(encoded: Sequence[EncodedDecision]) -> Batch:
    """Decisions as one batch."""
    lengths = [len(decision.ids) - 1 for decision in encoded]
    targets = np.concatenate([np.append(np.full(len(d.ids) - 2, -1), d.ids[-1]) for d in encoded])
    shares = np.full((len(encoded), max(len(d.shares) for d in encoded)), -1, np.float32)
    for number, decision in enumerate(encoded):
        shares[number, : len(decision.shares)] = decision.shares
    return Batch(
        np.concatenate([decision.ids[:-1] for decision in encoded]),
        targets,
        np.cumsum([0, *lengths]).astype(np.int32),
        np.concatenate([np.arange(length) for length in lengths]),
        shares=shares,
    )


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows that go through the model together, those of like length."""
    chosen: list[int] = []
    size = 0
    for number in np.argsort(lengths, kind="stable").tolist():
        if chosen and size + lengths[number] > BATCH_TOKENS:
            yield chosen
            chosen, size = [], 0
        chosen.append(number)
        size += lengths[number]
    yield chosen


SMOOTHING = 1.0  # added to each count (Laplace)
_WORDS = re.compile(r"\w+")


def naive_bayes(train: Sequence[DecisionRow], judging: Sequence[DecisionRow], width: int) -> np.ndarray:
    """Return the probabilities (n, K) of the rows that judge, K = `width`, learned from the training rows.

    Multinomial naive Bayes on the words of a text, for each question: the simple classifier that a decision model has
    to beat. An option is one by its key, so options may change their places from row to row.
    """
    models = {name: _Words([row for row in train if row.name == name]) for name in {row.name for row in judging}}
    shares = np.zeros((len(judging), width))
    for number, row in enumerate(judging):
        shares[number, : len(row.question.options)] = models[row.name].shares(row)
    return shares


class _Words:
    """How often each word and each option occurs among the rows of one question."""

    def __init__(self, rows: Sequence[DecisionRow]) -> None:
        self._options: Counter[str] = Counter()
        self._words: dict[str, Counter[str]] = {}
        for row in rows:
            key = row.question.options[row.best].key
            self._options[key] += 1
            self._words.setdefault(key, Counter()).update(_WORDS.findall(row.state.lower()))
        self._vocabulary = {word for counted in self._words.values() for word in counted}

    def shares(self, row: DecisionRow) -> np.ndarray:
        known = [word for word in _WORDS.findall(row.state.lower()) if word in self._vocabulary]
        scores = []
        for key in row.question.keys:
            counted = self._words.get(key, Counter())
            total = sum(counted.values()) + SMOOTHING * len(self._vocabulary)
            score = math.log(self._options[key] + SMOOTHING)
            scores.append(score + sum(math.log((counted[word] + SMOOTHING) / total) for word in known))
        return probabilities(np.array(scores))

"""What may follow a text: the likeliest tokens one by one, and all others in few numbers.

Every setting of sampling can be computed from them without asking the model again. The others lie in bins of their
log-probability, each with how many tokens it has and their mass. Temperature, top-k and top-p depend on a token only by
its probability, so bins this narrow answer for the vocabulary. More tokens than people look at are known one by one:
the usual top-k of 40 cuts exactly.

P positions, V vocabulary, K likeliest tokens, B bins. Logarithms are natural.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

LIKELIEST = 128
BIN_NATS = 0.25
NUM_BINS = 320  # what is less likely than exp(-80) is in the last one


class Sampler(NamedTuple):
    """How a token is drawn, in llama.cpp's order.

    Of the `top_k` likeliest (0: of all), the fewest that hold `top_p` of the mass, by their probabilities at a
    temperature; 0 takes the likeliest.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampler()


@dataclass(frozen=True)
class Positions:
    """What may follow after each of P tokens.

    top_ids, top_logprobs (P, K): the likeliest first. logprobs, ranks (P,): of the token that follows in the text, rank
    1 is the likeliest; 0 where the text ends. entropies (P,): nats. bin_counts, bin_logmasses (P, B): of all tokens but
    the K; the mass of a bin without tokens counts for nothing.
    """

    top_ids: np.ndarray
    top_logprobs: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray
    entropies: np.ndarray
    bin_counts: np.ndarray
    bin_logmasses: np.ndarray

    def __len__(self) -> int:
        return len(self.ranks)

    def arrays(self) -> list[np.ndarray]:
        return [getattr(self, field.name) for field in fields(self)]

    def at(self, index: int) -> "Distribution":
        """Return what may follow after one of the tokens."""
        counts = self.bin_counts[index]
        (used,) = np.nonzero(counts)
        means = self.bin_logmasses[index][used].astype(float) - np.log(counts[used])
        top = self.top_logprobs[index].astype(float)
        return Distribution(self.top_ids[index], top, counts[used], means, float(self.entropies[index]))


@dataclass(frozen=True)
class Distribution:
    """What may follow at one place.

    ids, logprobs (K,): the likeliest first. counts, means (B,): of the bins that have tokens, how many, and the
    logarithm of their mean probability. entropy: nats.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    counts: np.ndarray
    means: np.ndarray
    entropy: float

    def drawn(self, sampler: Sampler) -> np.ndarray:
        """Return the probabilities (K,) of drawing the likeliest tokens; what is missing to 1 is of others."""
        weights = self._weights(sampler)
        return np.asarray(weights[: len(self.ids)] / weights.sum())

    def tempered(self, logprob: float, temperature: float) -> float:
        """Return the log-probability, at a temperature above 0, of a token that has `logprob` at 1."""
        values, counts = self._levels()
        scaled = values / temperature
        largest = scaled.max()
        return float(logprob / temperature - largest - np.log((counts * np.exp(scaled - largest)).sum()))

    def _levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities, the largest first, and how many tokens have each."""
        counts = np.concatenate([np.ones(len(self.ids)), self.counts.astype(float)])
        return np.concatenate([self.logprobs, self.means]), counts

    def _weights(self, sampler: Sampler) -> np.ndarray:
        """Return what each level weighs in a draw, not yet normalised."""
        values, counts = self._levels()
        if sampler.temperature <= 0:
            return np.asarray(np.eye(1, len(values))[0])
        if sampler.top_k > 0:
            counts = np.clip(sampler.top_k - (np.cumsum(counts) - counts), 0, counts)
        if sampler.top_p < 1:
            each = np.exp(values)
            mass = counts * each
            missing = sampler.top_p * mass.sum() - (np.cumsum(mass) - mass)
            counts = np.clip(np.ceil(missing / np.maximum(each, np.finfo(float).tiny) - 1e-9), 0, counts)
            counts[0] = 1
        weights: np.ndarray = counts * np.exp((values - values[0]) / sampler.temperature)
        return weights


def describe(logits: np.ndarray, following: Sequence[int] | np.ndarray, likeliest: int = LIKELIEST) -> Positions:
    """Describe the positions of logits (P, V), float32.

    following: the token after each of them, -1 where the text ends. Raises ValueError where a logit is NaN or infinite
    upwards.
    """
    num_positions, num_vocab = logits.shape
    top = min(likeliest, num_vocab)
    made = Positions(
        np.zeros((num_positions, top), np.int32),
        np.zeros((num_positions, top), np.float32),
        np.zeros(num_positions, np.float32),
        np.zeros(num_positions, np.int32),
        np.zeros(num_positions, np.float32),
        np.zeros((num_positions, NUM_BINS), np.int32),
        np.zeros((num_positions, NUM_BINS), np.float32),
    )
    for at, (row, token) in enumerate(zip(logits, following, strict=True)):
        logprobs = log_softmax(row)
        ids = _likeliest(logprobs, top)
        probabilities = np.exp(logprobs)
        made.top_ids[at], made.top_logprobs[at] = ids, logprobs[ids]
        made.entropies[at] = -(probabilities * np.maximum(logprobs, -BIN_NATS * NUM_BINS)).sum()
        if token >= 0:
            ahead = (logprobs > logprobs[token]) | ((logprobs == logprobs[token]) & (np.arange(num_vocab) < token))
            made.logprobs[at], made.ranks[at] = logprobs[token], 1 + ahead.sum()
        bins = np.minimum(logprobs * (-1 / BIN_NATS), NUM_BINS - 1).astype(np.int64)
        probabilities[ids] = 0.0
        made.bin_counts[at] = np.bincount(bins, minlength=NUM_BINS) - np.bincount(bins[ids], minlength=NUM_BINS)
        masses = np.bincount(bins, probabilities, NUM_BINS)
        made.bin_logmasses[at] = np.log(np.maximum(masses, np.finfo(np.float32).tiny))
    return made


def joined(parts: Sequence[Positions]) -> Positions:
    """Positions one after the other."""
    return Positions(*(np.concatenate(arrays) for arrays in zip(*(part.arrays() for part in parts), strict=True)))


def draw(logits: np.ndarray, sampler: Sampler, random: np.random.Generator) -> int:
    """Draw a token by logits (V,), float32. Raises ValueError where a logit is NaN or infinite upwards."""
    logprobs = log_softmax(logits)
    if sampler.temperature <= 0:
        return int(logprobs.argmax())
    order = np.argsort(-logprobs, kind="stable")[: sampler.top_k or None]
    values = logprobs[order].astype(float)
    mass = np.exp(values)
    # the fewest that hold so much of the mass: at least the first one
    within = np.cumsum(mass) - mass < sampler.top_p * mass.sum()
    values = values[within | (np.arange(len(values)) == 0)]
    weights = np.exp((values - values[0]) / sampler.temperature)
    return int(order[random.choice(len(weights), p=weights / weights.sum())])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (V,), float64. Raises ValueError where a logit is NaN or infinite upwards."""
    largest = float(logits.max())
    if not np.isfinite(largest):
        raise ValueError("a logit is not a number")
    shifted = logits.astype(float) - largest
    norm = np.log(np.exp(shifted).sum())
    return np.asarray(np.maximum(shifted - norm, -BIN_NATS * NUM_BINS))


def _likeliest(logprobs: np.ndarray, top: int) -> np.ndarray:
    """Return the ids of the `top` largest, the largest first, equal ones by their id."""
    threshold = np.partition(logprobs, len(logprobs) - top)[len(logprobs) - top]
    candidates = np.flatnonzero(logprobs >= threshold)
    ids: np.ndarray = candidates[np.argsort(-logprobs[candidates], kind="stable")[:top]]
    return ids

"""How far a model is from its reference, in figures with intervals: over distributions, and over text.

W windows or texts, N positions. Logarithms are natural unless a name says bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.files import JsonObject
from settle.base.statistics import FEWEST_FAMILIES, Interval, bootstrap_ratio
from settle.data.likelihoods import Compared, Likelihoods, Windows


@dataclass(frozen=True)
class Divergence:
    """A model against its reference, over the same tokens.

    kl: mean KL(reference ‖ model), nats per token; kl_99, kl_max: of single tokens. same_top: share of tokens where
    both hold the same one for the likeliest. loss, reference_loss: nats per token of the actual tokens. rise: of the
    loss, as a share of the reference's (0.01 is 1 %), window by window on the same text, so its interval is narrower
    than either loss's. num_bytes: of the text, None where it is not known.
    """

    windows: int
    tokens: int
    num_bytes: int | None
    kl: Interval
    kl_99: float
    kl_max: float
    same_top: Interval
    loss: float
    reference_loss: float
    rise: Interval

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def reference_perplexity(self) -> float:
        return math.exp(self.reference_loss)

    @property
    def bits_per_byte(self) -> float | None:
        return self._bits(self.loss)

    @property
    def reference_bits_per_byte(self) -> float | None:
        return self._bits(self.reference_loss)

    def _bits(self, loss: float) -> float | None:
        return loss * self.tokens / math.log(2) / self.num_bytes if self.num_bytes else None

    def to_json(self) -> JsonObject:
        derived = ("perplexity", "reference_perplexity", "bits_per_byte", "reference_bits_per_byte")
        return {**_fields(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True)
class TextLoss:
    """Two models on the same texts, whatever their vocabularies.

    Bits per byte, and the rise as a share of the reference's.
    """

    texts: int
    num_bytes: int
    bits_per_byte: Interval
    reference_bits_per_byte: Interval
    rise: Interval

    def to_json(self) -> JsonObject:
        return _fields(self)


def divergence(
    reference: Likelihoods,
    compared: Compared,
    num_bytes: int | None = None,
    texts: np.ndarray | None = None,
    seed: int = 0,
) -> Divergence:
    """Summarise a comparison over a record's windows, all or the first of them.

    compared: of `Scorer.compare`. num_bytes: of the text of the tokens that were compared. texts: (W,), the text of
    each window. Intervals are the bootstrap's over texts, or over windows where the texts are few: tokens of one window
    are no independent sample.
    """
    positions = reference.positions
    windows = int(np.searchsorted(positions, len(compared.kl)))
    assert positions[windows] == len(compared.kl), "a comparison is over whole windows"
    bounds = positions[: windows + 1]
    families = np.arange(windows) if texts is None or len(set(texts[:windows])) < FEWEST_FAMILIES else texts[:windows]
    _, families = np.unique(families, return_inverse=True)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(families, _sums(values, bounds))

    counts = np.bincount(families, np.diff(bounds))
    random = np.random.default_rng(seed)
    reference_logprobs = np.asarray(reference.came_logprobs[: len(compared.kl)], float)
    ours, theirs = summed(-reference_logprobs), summed(-compared.logprobs)
    return Divergence(
        windows=windows,
        tokens=len(compared.kl),
        num_bytes=num_bytes,
        kl=bootstrap_ratio(summed(compared.kl), counts, random),
        kl_99=float(np.quantile(compared.kl, 0.99)),
        kl_max=float(compared.kl.max()),
        same_top=bootstrap_ratio(summed(compared.top_equal), counts, random),
        loss=float(theirs.sum() / counts.sum()),
        reference_loss=float(ours.sum() / counts.sum()),
        rise=bootstrap_ratio(theirs - ours, ours, random),
    )


def text_loss(
    reference: Sequence[np.ndarray],
    reference_windows: Windows,
    model: Sequence[np.ndarray],
    windows: Windows,
    seed: int = 0,
) -> TextLoss:
    """Compare two models on the same texts.

    reference, model: log-probabilities of the actual tokens, one array for each window of `reference_windows` or
    `windows`, which are the same texts in each one's own ids.
    """
    assert np.array_equal(windows.num_bytes, reference_windows.num_bytes), "both are measured on the same texts"
    ours, theirs = _of_texts(reference, reference_windows), _of_texts(model, windows)
    random = np.random.default_rng(seed)
    return TextLoss(
        texts=len(windows.num_bytes),
        num_bytes=windows.total_bytes,
        bits_per_byte=bootstrap_ratio(theirs, windows.num_bytes, random),
        reference_bits_per_byte=bootstrap_ratio(ours, windows.num_bytes, random),
        rise=bootstrap_ratio(theirs - ours, ours, random),
    )


def _fields(figures: Divergence | TextLoss) -> JsonObject:
    return {k: v.to_json() if isinstance(v, Interval) else v for k, v in vars(figures).items()}


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sum values (N,) between bounds (W + 1,) → (W,)."""
    before = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    sums: np.ndarray = before[bounds[1:]] - before[bounds[:-1]]
    return sums


def _of_texts(logprobs: Sequence[np.ndarray], windows: Windows) -> np.ndarray:
    """Bits (T,) of each text."""
    bits = [-float(np.sum(values, dtype=float)) / math.log(2) for values in logprobs]
    return np.bincount(windows.texts, bits, len(windows.num_bytes))

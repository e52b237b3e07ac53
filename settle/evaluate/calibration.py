"""Calibration of probabilities: calibration error, Brier score, risk and coverage.

Shared by all that answers with a probability: decisions, and the judge of whether documents answer a question. Legend:
n rows, K options (rows with fewer are filled up with targets of 0), R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.files import JsonObject
from settle.base.statistics import LEVEL, Interval, paired_test, wilson

BINS, FEWEST_IN_BIN = 10, 15  # bins of equally many rows
RESAMPLES = 1000
LEAST_BIAS = 0.05  # between the mean confidence and the share that is right, from which people are warned
RISKS = (0.01, 0.02, 0.05, 0.10, 0.20)  # at which the share of answered rows is reported


def brier(shares: np.ndarray, targets: np.ndarray) -> float:
    """Mean squared distance of the probabilities (n, K) from the targets (n, K): 0 is best, 2 is worst (Brier 1950)."""
    return float(((shares - targets) ** 2).sum(-1).mean())


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Compute the expected calibration error of confidence, right (n,).

    Over bins of equally many rows in the order of `confidence`, it is the mean distance of the share of `right` answers
    from the mean confidence, weighted by rows.
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // FEWEST_IN_BIN)))
    gaps = [abs(float(confidence[part].mean() - right[part].mean())) * len(part) for part in parts if len(part)]
    return sum(gaps) / max(1, len(order))


@dataclass(frozen=True)
class CalibrationError:
    """A calibration error and what it means.

    error: with its 95 % interval. if_calibrated: what chance alone gives so many rows of these confidences, when every
    probability means what it says; an error near it is no sign of miscalibration.
    """

    error: Interval
    if_calibrated: float


def measure_calibration(
    confidence: np.ndarray, right: np.ndarray, families: Sequence[int] | None = None, seed: int = 0
) -> CalibrationError:
    """Measure the calibration error (n,) with its interval. families: rows of one are resampled together.

    Chance pushes the error up, and resampling does so again: the upper end is that of the bootstrap, the lower end is
    mirrored at the estimate (the basic bootstrap), and is 0 where a calibrated model would show an error as large in
    one of twenty samples (Bröcker and Smith 2007).
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    random = np.random.default_rng(seed)
    error = calibration_error(confidence, right)
    chance = [
        calibration_error(confidence, (random.random(len(confidence)) < confidence).astype(float))
        for _ in range(RESAMPLES)
    ]
    _, family = np.unique(np.arange(len(right)) if families is None else np.asarray(families), return_inverse=True)
    order = np.argsort(family, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(family))[:-1])
    resampled = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in random.integers(len(members), size=len(members))])
        resampled.append(calibration_error(confidence[rows], right[rows]))
    high = float(np.quantile(resampled, (1 + LEVEL) / 2))
    low = 0.0 if error <= float(np.quantile(chance, LEVEL)) else max(0.0, 2 * error - high)
    return CalibrationError(Interval(error, low, max(high, error)), float(np.mean(chance)))


@dataclass(frozen=True)
class Answered:
    """Rows that are answered when every answer that is wrong with more than `risk` is refused.

    coverage: their share. wrong: the share of them that is wrong; None where none is answered.
    """

    risk: float
    coverage: float
    wrong: Interval | None


def risk_coverage(
    confidence: np.ndarray, right: np.ndarray, families: Sequence[int] | None = None, risks: Sequence[float] = RISKS
) -> list[Answered]:
    """Return what refusing above each risk leaves, of rows (n,) that fitted neither weight nor temperature."""
    table = []
    for risk in risks:
        answered = np.flatnonzero(confidence >= 1 - risk)
        own = None if families is None else [families[i] for i in answered.tolist()]
        wrong = wilson([not hit for hit in right[answered].astype(bool).tolist()], own) if len(answered) else None
        table.append(Answered(risk, len(answered) / max(1, len(confidence)), wrong))
    return table


def risk_curve(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """coverage, risk (n,): the share of wrong answers among the surest ones (El-Yaniv and Wiener 2010)."""
    wrong = 1 - np.asarray(right, float)[np.argsort(-np.asarray(confidence, float), kind="stable")]
    rows = np.arange(1, len(wrong) + 1)
    return rows / max(1, len(wrong)), wrong.cumsum() / rows


@dataclass(frozen=True)
class CalibrationReport:
    """How well the probabilities of n answers are calibrated, on rows that fitted nothing.

    stated: the mean probability of the answers. bias: the share that is right, or that people agree with, less that.
    """

    rows: int
    accuracy: Interval
    stated: float
    bias: Interval
    error: CalibrationError
    brier: float
    answered: tuple[Answered, ...]

    @classmethod
    def of(cls, shares: np.ndarray, targets: np.ndarray, families: Sequence[int] | None = None) -> "CalibrationReport":
        """Measure shares, targets (n, K): an answer is right when its likeliest option is the target's.

        Where targets are shares of people, a probability is held against the share that gave the same answer.
        """
        best, confidence = shares.argmax(-1), shares.max(-1)
        right, agreed = best == targets.argmax(-1), targets[np.arange(len(targets)), best]
        return cls(
            len(shares),
            wilson(right.tolist(), families),
            float(confidence.mean()),
            paired_test(confidence.tolist(), agreed.tolist(), families, resamples=RESAMPLES).difference,
            measure_calibration(confidence, agreed, families),
            brier(shares, targets),
            tuple(risk_coverage(confidence, right, families)),
        )

    def to_json(self) -> JsonObject:
        """Plain JSON values."""
        return {
            "rows": self.rows,
            "accuracy": self.accuracy.to_json(),
            "stated": self.stated,
            "bias": self.bias.to_json(),
            "ece": self.error.error.to_json(),
            "ece_if_calibrated": self.error.if_calibrated,
            "brier": self.brier,
            "answered": [
                {"risk": a.risk, "coverage": a.coverage, "wrong": a.wrong.to_json() if a.wrong else None}
                for a in self.answered
            ],
        }

    @property
    def warning(self) -> str:
        """Say whether the probabilities are too low or too high on the whole; empty where neither is shown."""
        if self.bias.contains(0.0) or abs(self.bias.value) < LEAST_BIAS:
            return ""
        word = "under" if self.bias.value > 0 else "over"
        return f"{word}-confident: says {self.stated:.0%} on average, is right on {self.stated + self.bias.value:.0%}"

    def lines(self) -> list[str]:
        """For a person: what the figures say."""
        low, high = self.error.error.low, self.error.error.high
        return [
            f"right on {self.accuracy.value:.1%} of {self.rows} rows "
            f"({self.accuracy.low:.1%} to {self.accuracy.high:.1%})",
            f"calibration error (ECE) {self.error.error.value:.3f} ({low:.3f} to {high:.3f}); a perfectly calibrated "
            f"model shows {self.error.if_calibrated:.3f} on so many rows; Brier score {self.brier:.3f}",
        ]

    def refused_lines(self) -> list[str]:
        """For a person: what is left when answers above a risk are refused, as the probabilities say it."""
        written = []
        for a in self.answered:
            wrong = f"{a.wrong.value:.1%} of these wrong (at most {a.wrong.high:.1%})" if a.wrong else "nothing left"
            written.append(f"refusing above a risk of {a.risk:.0%}: {a.coverage:.0%} answered, {wrong}")
        return written

"""Synthetic held-out losses with known futures: what a stopping rule is measured on.

A curve is a function of the number of steps. Shapes: power laws to an asymptote (half of all; exponents 0.15 to
0.8), exponentials, a plateau followed by a second fall, a fast fall followed by a slow one, overfitting, and a
slow drift that never ends. Time scales span two decades. Noise around the curve: normal with a standard
deviation of 0.03 % to 2 % of the loss, a correlation time of 0 to 100 steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("power", "power", "power", "exponential", "plateau then fall", "overfitting", "drift", "fast then slow")
LONGEST = 100_000  # steps: where the money ends


@dataclass(frozen=True)
class Curve:
    kind: str
    true: Callable[[np.ndarray], np.ndarray]  # steps → loss without noise
    noise: float  # relative standard deviation of one evaluation
    correlation_steps: float
    floor: float  # what token frequencies alone would give

    def gain(self, step: int) -> float:
        """What 10 % more tokens would truly bring, as a fraction of the loss."""
        now, later = self.true(np.array([step, step * 1.1]))
        return float((now - later) / now)

    def ideal(self, tolerance: float) -> int:
        """The step after which 10 % more tokens never bring more than `tolerance`; at most LONGEST."""
        steps = np.unique(np.geomspace(1, LONGEST, 4000).astype(int))
        now, later = self.true(steps.astype(float)), self.true(steps * 1.1)
        worth = np.flatnonzero((now - later) / now > tolerance)
        return int(steps[min(worth[-1] + 1, len(steps) - 1)]) if len(worth) else 1

    def observe(self, steps: np.ndarray, rng: np.random.Generator, tolerance: float) -> np.ndarray:
        """Noisy losses at ascending `steps`."""
        normal = rng.normal(size=len(steps))
        if self.correlation_steps:
            kept = np.exp(-np.diff(steps, prepend=steps[0]) / self.correlation_steps)
            for i in range(1, len(steps)):
                normal[i] = kept[i] * normal[i - 1] + math.sqrt(1 - kept[i] ** 2) * normal[i]
        level = self.true(np.array([float(self.ideal(tolerance))]))[0]
        return self.true(steps.astype(float)) + self.noise * level * normal


def make(count: int, seed: int) -> list[Curve]:
    rng = np.random.default_rng(seed)
    curves = []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        true = _shape(kind, rng)
        noise = 10 ** rng.uniform(-3.5, -1.7)
        correlation = float(rng.choice([0, 0, 10, 30, 100]))
        start, end = true(np.array([0.0, float(LONGEST)]))
        curves.append(Curve(kind, true, noise, correlation, float(end + 0.77 * (start - end))))
    return curves


def _shape(kind: str, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    first, last = rng.uniform(5, 9), rng.uniform(1, 3.5)  # about ln(vocabulary), and what can be reached
    drop = first - last

    def log(low: float, high: float) -> float:
        return float(10 ** rng.uniform(low, high))

    if kind == "power":
        exponent, scale = rng.uniform(0.15, 0.8), log(0.3, 2.3)
        return lambda t: last + drop * (1 + t / scale) ** -exponent
    if kind == "exponential":
        scale = log(2, 4)
        return lambda t: last + drop * np.exp(-t / scale)
    if kind == "plateau then fall":
        scale, middle, width = log(0.5, 1.5), log(2, 3.3), rng.uniform(0.1, 0.4)
        return lambda t: (
            last
            + 0.7 * drop * (1 + t / scale) ** -0.8
            + 0.3 * drop / (1 + np.exp(np.clip(np.log(np.maximum(t, 1e-9) / middle) / width, -50, 50)))
        )
    if kind == "overfitting":
        exponent, scale, turn = rng.uniform(0.3, 0.9), log(0.3, 2), log(2.7, 4.5)
        power, height = rng.uniform(1, 2.5), rng.uniform(0.1, 0.8)
        return lambda t: (
            last
            + drop * (1 + t / scale) ** -exponent
            + height * (t / turn) ** power / (1 + (t / turn) ** (power - 0.5))
        )
    if kind == "drift":
        exponent, scale, drift = rng.uniform(0.4, 0.9), log(0.3, 2), rng.uniform(0.02, 0.2)
        return lambda t: last + drop * (1 + t / scale) ** -exponent - drift * np.log10(1 + t / 100)
    scale, slow = log(0.5, 1.2), log(2.3, 4)  # fast then slow
    return lambda t: last + 0.85 * drop * (1 + t / scale) ** -0.9 + 0.15 * drop * np.exp(-t / slow)


def patience(steps: Sequence[int], losses: Sequence[float], patience: int = 3) -> int:
    """Index of the evaluation after which the usual rule stops: `patience` in a row without a new best."""
    best, waited = math.inf, 0
    for i, loss in enumerate(losses):
        if loss < best:
            best, waited = loss, 0
        else:
            waited += 1
            if waited == patience:
                return i
    return len(steps) - 1

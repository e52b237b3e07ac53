"""Families of held-out losses with known futures, in two halves.

A stopping rule is developed on the first, DEVELOPMENT, and judged once on the second, JUDGEMENT.

A family is a shape (steps → loss without noise) with a noise. The halves share neither shape nor noise. `falls_again`
marks families with a second fall after a stretch in which less was to be had than the tolerance: no rule that sees only
the past can exclude that, so they are counted apart. Time scales span two decades; noise is 0.05 to 1 % of the loss.

BOUNDARY: 10 % more tokens bring MARGINS × the tolerance for ever, so that every stop is a false one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LONGEST = 100_000  # steps: where the money ends
TOLERANCE = 0.005
MARGINS = (1.2, 1.5, 2.0)
Shape = Callable[[np.ndarray], np.ndarray]
MakeShape = Callable[[np.random.Generator], Shape]
MakeNoise = Callable[[np.random.Generator, np.ndarray], np.ndarray]  # steps → noise of standard deviation about 1


@dataclass(frozen=True)
class Family:
    name: str
    shape: MakeShape
    noise: MakeNoise
    falls_again: bool = False
    rests: bool = False  # on a plateau below what letter frequencies give, before most of the fall


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(10 ** random.uniform(low, high))


def ends(random: np.random.Generator) -> tuple[float, float]:
    """Return what can be reached, and the fall to there; first losses are about the logarithm of a vocabulary."""
    last = random.uniform(1, 3.5)
    return last, random.uniform(5, 9) - last


# --- noise ---


def white(random: np.random.Generator, steps: np.ndarray) -> np.ndarray:
    return random.normal(size=len(steps))


def by_look(correlation: float) -> MakeNoise:
    """First-order autoregression from one evaluation to the next."""

    def noise(random: np.random.Generator, steps: np.ndarray) -> np.ndarray:
        out = random.normal(size=len(steps))
        for i in range(1, len(steps)):
            out[i] = correlation * out[i - 1] + math.sqrt(1 - correlation**2) * out[i]
        return out

    return noise


def by_step(scale: float) -> MakeNoise:
    """Return an Ornstein-Uhlenbeck process with a correlation time in steps."""

    def noise(random: np.random.Generator, steps: np.ndarray) -> np.ndarray:
        out = random.normal(size=len(steps))
        kept = np.exp(-np.diff(steps, prepend=steps[0]) / scale)
        for i in range(1, len(steps)):
            out[i] = kept[i] * out[i - 1] + math.sqrt(1 - kept[i] ** 2) * out[i]
        return out

    return noise


def heavy(freedom: float) -> MakeNoise:
    return lambda random, steps: random.standard_t(freedom, size=len(steps)) / 2


def changing(power: float) -> MakeNoise:
    """White, with a standard deviation that goes with a power of the steps."""
    return lambda random, steps: random.normal(size=len(steps)) * (steps / 3000.0) ** power


def long_memory(random: np.random.Generator, steps: np.ndarray) -> np.ndarray:
    """About 1/f: a sum of autoregressions from one evaluation to 256."""
    scales = [1, 4, 16, 64, 256]
    return np.sum([by_look(math.exp(-1 / s))(random, steps) for s in scales], axis=0) / math.sqrt(len(scales))


def mixed(random: np.random.Generator, steps: np.ndarray) -> np.ndarray:
    """Half white and half slow."""
    return (white(random, steps) + by_look(0.95)(random, steps)) / math.sqrt(2)


# --- shapes of the first half ---


def power(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    exponent, scale = random.uniform(0.15, 0.8), log_uniform(random, 0.3, 2.3)
    return lambda t: last + drop * (1 + t / scale) ** -exponent


def stretched(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    exponent, scale = random.uniform(0.3, 0.7), log_uniform(random, 1.5, 3.5)
    return lambda t: last + drop * np.exp(-((t / scale) ** exponent))


def slow_start(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    exponent, scale = random.uniform(0.6, 1.5), log_uniform(random, 2.0, 3.6)
    return lambda t: last + drop / (1 + (t / scale) ** exponent)


def log_periodic(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    exponent, scale = random.uniform(0.3, 0.7), log_uniform(random, 0.5, 2)
    often, depth, phase = random.uniform(2, 5), random.uniform(0.2, 0.6), random.uniform(0, 2 * math.pi)

    def loss(t: np.ndarray) -> np.ndarray:
        wave = depth * exponent / often * np.cos(often * np.log1p(t / scale) + phase)
        return last + drop * (1 + t / scale) ** -exponent * (1 + wave)

    return loss


def seasons(random: np.random.Generator) -> Shape:
    """Draw a curve of a text that changes with a period in steps."""
    last, drop = ends(random)
    exponent, scale = random.uniform(0.2, 0.7), log_uniform(random, 0.5, 2)
    period, depth = log_uniform(random, 2.5, 3.5), random.uniform(0.0005, 0.003)
    return lambda t: last * (1 + depth * np.sin(2 * math.pi * t / period)) + drop * (1 + t / scale) ** -exponent


def plateau_then_drop(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    scale, middle, width = log_uniform(random, 0.5, 1.5), log_uniform(random, 3.3, 4.6), random.uniform(0.1, 0.3)

    def loss(t: np.ndarray) -> np.ndarray:
        late = 1 / (1 + np.exp(np.clip(np.log(np.maximum(t, 1e-9) / middle) / width, -50, 50)))
        return last + 0.7 * drop * (1 + t / scale) ** -0.9 + 0.3 * drop * late

    return loss


def restarts(random: np.random.Generator) -> Shape:
    """Draw a curve with a step down at every doubling."""
    last, drop = ends(random)
    exponent, scale, phase = random.uniform(0.2, 0.5), log_uniform(random, 0.5, 2), random.uniform(0, 1)

    def loss(t: np.ndarray) -> np.ndarray:
        doublings = np.log2(1 + t / 100) + phase
        whole = np.floor(doublings)
        eased = np.where(doublings < 1, doublings, whole + np.minimum(1, (doublings - whole) * 8) - 1)
        return last + drop * (1 + 100 * (2 ** np.maximum(eased, 0) - 1) / scale) ** -exponent

    return loss


# --- shapes of the second half ---


def pure_power(random: np.random.Generator) -> Shape:
    first, exponent, scale = random.uniform(5, 9), random.uniform(0.03, 0.3), log_uniform(random, 0.3, 2)
    return lambda t: first * (1 + t / scale) ** -exponent


def two_powers(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    share, fast, slow = random.uniform(0.4, 0.8), random.uniform(0.6, 1.2), random.uniform(0.1, 0.3)
    early, late = log_uniform(random, 0.3, 1.5), log_uniform(random, 1.0, 3.0)
    return lambda t: last + drop * (share * (1 + t / early) ** -fast + (1 - share) * (1 + t / late) ** -slow)


def inverse_log(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    scale, exponent = log_uniform(random, 0.5, 2.5), random.uniform(1, 3)
    return lambda t: last + drop / np.log(math.e + t / scale) ** exponent


def two_exponentials(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    fast = log_uniform(random, 1.5, 2.8)
    slow, share = fast * random.uniform(2, 4), random.uniform(0.3, 0.6)
    return lambda t: last + drop * (share * np.exp(-t / fast) + (1 - share) * np.exp(-t / slow))


def staircase(random: np.random.Generator) -> Shape:
    """Draw a curve with a small step down at each pass over the data."""
    last, drop = ends(random)
    exponent, scale = random.uniform(0.25, 0.7), log_uniform(random, 0.5, 2)
    period, depth = log_uniform(random, 2.7, 3.7), random.uniform(0.1, 0.4)

    def loss(t: np.ndarray) -> np.ndarray:
        passes = t / period
        stairs = (np.floor(passes) + np.minimum(1, 5 * (passes - np.floor(passes)))) * period
        return last + drop * ((1 - depth) * (1 + t / scale) ** -exponent + depth * (1 + stairs / scale) ** -exponent)

    return loss


def arctangent(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    scale, exponent = log_uniform(random, 1.2, 3.2), random.uniform(0.3, 0.8)
    return lambda t: last + drop * (1 - 2 / math.pi * np.arctan((t / scale) ** exponent))


def rise_later(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    exponent, scale, turn = random.uniform(0.3, 0.9), log_uniform(random, 0.3, 2), log_uniform(random, 3.2, 4.7)
    height = random.uniform(0.02, 0.2)
    return lambda t: last + drop * (1 + t / scale) ** -exponent + height * np.log1p(t / turn) ** 2


def broken_power(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    early, late = random.uniform(0.02, 0.3), random.uniform(0.3, 0.8)
    turn, sharp = log_uniform(random, 2.5, 4.3), random.uniform(0.05, 0.3)

    def loss(t: np.ndarray) -> np.ndarray:
        bend = (1 + (t / turn) ** (1 / sharp)) ** (-(late - early) * sharp)
        return last + drop * (1 + t / 30) ** -early * bend

    return loss


def double_descent(random: np.random.Generator) -> Shape:
    last, drop = ends(random)
    exponent, scale, middle = random.uniform(0.3, 0.7), log_uniform(random, 0.5, 2), log_uniform(random, 3.0, 4.3)
    height, width = random.uniform(0.02, 0.15), random.uniform(0.3, 0.8)

    def loss(t: np.ndarray) -> np.ndarray:
        bump = height * drop * np.exp(-0.5 * (np.log(np.maximum(t, 1e-9) / middle) / width) ** 2)
        return last + drop * (1 + t / scale) ** -exponent + bump

    return loss


# --- slow starters: a plateau at 4.5 to 6 nats, of a text whose frequencies alone give LETTERS ---

LETTERS = 6.7
# the losses of counting pairs and triples ÷ that of single tokens: of ten texts on a whole count, 2026-12-01
PAIRS, TRIPLES = (0.66, 0.76), (0.57, 0.65)


def plateaus(random: np.random.Generator) -> tuple[float, float]:
    """(bigram, trigram) losses of the text."""
    return LETTERS * random.uniform(*PAIRS), LETTERS * random.uniform(*TRIPLES)


def rests_then_power(random: np.random.Generator) -> Shape:
    rest, last = random.uniform(4.5, 6.0), random.uniform(1.0, 3.5)
    early, middle, exponent = log_uniform(random, 1.0, 2.0), log_uniform(random, 3.2, 4.5), random.uniform(1.5, 4)
    return lambda t: last + (rest - last) / (1 + (t / middle) ** exponent) + (9 - rest) * np.exp(-t / early)


def rests_then_logistic(random: np.random.Generator) -> Shape:
    rest, last = random.uniform(4.5, 6.0), random.uniform(1.0, 3.5)
    early, middle, width = log_uniform(random, 1.0, 2.0), log_uniform(random, 3.2, 4.5), random.uniform(0.15, 0.5)

    def loss(t: np.ndarray) -> np.ndarray:
        late = 1 / (1 + np.exp(np.clip(np.log(np.maximum(t, 1e-9) / middle) / width, -50, 50)))
        return last + (rest - last) * late + (9 - rest) * (1 + t / early) ** -1.5

    return loss


# --- the boundary ---


def straight(margin: float) -> MakeShape:
    """Straight in the logarithm where it is judged: 10 % more brings `margin` × the tolerance of the loss then."""

    def make(random: np.random.Generator) -> Shape:
        first, exponent = random.uniform(4, 8), -math.log1p(-margin * TOLERANCE) / math.log(1.1)
        return lambda t: first * (np.maximum(t, 1.0) / 100) ** -exponent

    return make


DEVELOPMENT = (
    Family("power, autocorrelation 0.9", power, by_look(0.9)),
    Family("power, heavy tails t(3)", power, heavy(3)),
    Family("power, noise grows", power, changing(0.3)),
    Family("stretched exponential, correlated over 300 steps", stretched, by_step(300)),
    Family("slow start, white", slow_start, white),
    Family("log-periodic, white", log_periodic, white),
    Family("log-periodic, autocorrelation 0.9", log_periodic, by_look(0.9)),
    Family("seasons of the text, white", seasons, white),
    Family("plateau then drop, white", plateau_then_drop, white, falls_again=True),
    Family("a step down at every doubling, white", restarts, white, falls_again=True),
    Family("rests below letter frequencies, then a power, white", rests_then_power, white, True, True),
)
JUDGEMENT = (
    Family("power without a floor, half white and half slow", pure_power, mixed),
    Family("two powers, long memory", two_powers, long_memory),
    Family("two powers, autocorrelation 0.98", two_powers, by_look(0.98)),
    Family("inverse logarithm, correlated over 1,000 steps", inverse_log, by_step(1000)),
    Family("two exponentials, heavy tails t(2.1)", two_exponentials, heavy(2.1)),
    Family("staircase of passes, autocorrelation 0.7", staircase, by_look(0.7)),
    Family("arctangent, noise shrinks", arctangent, changing(-0.3)),
    Family("rises later, half white and half slow", rise_later, mixed),
    Family("broken power law, autocorrelation 0.7", broken_power, by_look(0.7), falls_again=True),
    Family("double descent, half white and half slow", double_descent, mixed, falls_again=True),
    Family("rests below letter frequencies, then falls, long memory", rests_then_logistic, long_memory, True, True),
)
BOUNDARY_DEVELOPMENT = {"white": white, "autocorrelation 0.9": by_look(0.9)}
BOUNDARY_JUDGEMENT = {
    "half white and half slow": mixed,
    "autocorrelation 0.95": by_look(0.95),
    "long memory": long_memory,
}

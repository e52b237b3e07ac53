"""What the held-out loss of a run will be: a distribution over learning curves, learned from recorded runs.

A linear mixed model of ln L, the logarithm of the loss in nats per token, after the worth of D fresh tokens:

    ln L(D) = a + b r(x) + g h(D) + w(x) + m(s) (c + d / sqrt(steps / 100)) + noise,   x = ln(D / REFERENCE)
    r(x) = (e^{-slowing x} - 1) / slowing,   h(D) = ln of the loss of an n-gram model that counted D tokens of the text
    m(s) = 1 - (s / LONGEST_DECAY)^decay_power for a run whose rate falls to zero over the share s of its tokens

r falls ever more slowly, as a power law to an asymptote does; w is a Brownian motion, by which a curve leaves that form
the further the longer it runs; the bracket is what a final decay of the learning rate will still bring, all of it at
the constant rate and less of it after a short decay. Early in a run it is less than nothing, since to decay is to learn
less on the way. Each run has its own a, b, g, c, d: normal,
around a mean that depends on the model's size, on the tokens of a step, on how many bytes a token packs and on how
predictable the text is. The means and spreads were estimated over recorded runs by restricted maximum likelihood
(bench/curve_prior.py; Laird & Ware 1982, Biometrics 38:963). What is known of a run, be it two short probes or all that
was evaluated so far, conditions this distribution; the forecast is the conditional one. So the forecast before a run
and the one in the middle of it are the same method with more to go by.

Text seen again teaches less: D counts U (1 + R (1 - e^{-x/R})) for U unique tokens seen 1 + x times, R = 15
(Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).

Legend: K = 5 coefficients of a run, F facts, n observations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from settle.base.files import read_json
from settle.base.statistics import Interval
from settle.data.prepare import Corpus
from settle.plan.loss_law import worth
from settle.plan.ngrams import ngram_curve
from settle.train.training_plan import TrainingPlan

REFERENCE = 1e5  # tokens at which x is 0
LONGEST_DECAY = 0.4  # of a run's tokens: the longest decay that a plan has
FEW_STEPS = 400.0  # after fewer, decayed losses lie the further from a curve the fewer they are
START = 4096.0  # tokens from which curves leave their form
BIN = 0.15  # evaluations within this much of ln D are one observation
ORIGIN = Path(__file__).with_name("curve_prior.json")


@dataclass(frozen=True)
class CurveFacts:
    """What is known of a model and its text before any training. ngrams: (tokens counted, nats per token), rising."""

    parameters: int
    unique: int
    bytes_per_token: float
    vocab_size: int
    tokens_per_step: int
    ngrams: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, plan: TrainingPlan, corpus: Corpus) -> "CurveFacts":
        """Those of a plan; counts n-grams for a second."""
        train, vocab_size = corpus.train, corpus.tokenizer.vocab_size
        return cls(
            parameters=plan.num_parameters,
            unique=train.num_tokens,
            bytes_per_token=train.num_bytes / train.num_tokens,
            vocab_size=vocab_size,
            tokens_per_step=plan.loop.tokens_per_step,
            ngrams=ngram_curve(train.tokens, corpus.selection.tokens, vocab_size),
        )

    def vector(self) -> np.ndarray:
        """(F,) the facts that a run's mean coefficients depend on."""
        predictable = self.ngram_loss(REFERENCE) / math.log(self.vocab_size)
        return np.array(
            [
                1.0,
                math.log(self.parameters / 1e5),
                math.log(self.bytes_per_token / 2.5),
                math.log(predictable / 0.65),
                math.log(self.tokens_per_step / 1024),
            ]
        )

    def ngram_loss(self, tokens: float) -> float:
        """The n-gram model's loss after `tokens`, linear in their logarithm, level beyond those counted."""
        counted, losses = zip(*self.ngrams, strict=True)
        return float(np.interp(math.log(tokens), np.log(counted), losses))


@dataclass(frozen=True)
class Observation:
    """A held-out loss, nats per token, after `tokens`. decay: share of these over which the learning rate has fallen to
    zero; 0 at the constant rate. stderr: its standard error beyond that of the sample, which all observations share."""

    tokens: float
    loss: float
    decay: float
    stderr: float = 0.0


@dataclass(frozen=True)
class CurvePrior:
    """What recorded runs say of curves, all of ln L.

    mean (K, F): coefficients by facts; spread (K,): standard deviations around it; correlation: of a and b around it;
    drift: of w per unit of x; noise_decayed (after many steps), noise_constant: of one observation; decay_power: of m.
    widening: by what 80 % intervals have to be widened to hold 80 % of runs on texts left out: before a run, and while
    it is under way.
    """

    slowing: float
    mean: np.ndarray
    spread: np.ndarray
    correlation: float
    drift: float
    noise_decayed: float
    noise_constant: float
    decay_power: float
    widening: tuple[float, float] = (1.0, 1.0)

    def to_json(self) -> dict[str, object]:
        values = dict(vars(self))
        return values | {"mean": self.mean.tolist(), "spread": self.spread.tolist()}

    def design(self, facts: CurveFacts, seen: Sequence[Observation]) -> np.ndarray:
        """(n, K): what each coefficient is multiplied by at each observation."""
        x = _places(facts, seen)
        fall = np.expm1(-self.slowing * x) / self.slowing
        level = facts.ngram_loss(REFERENCE)
        ngram = np.array([math.log(facts.ngram_loss(min(o.tokens, facts.unique)) / level) for o in seen])
        constant = np.array([1 - min(1.0, o.decay / LONGEST_DECAY) ** self.decay_power for o in seen])
        steps = np.array([o.tokens / facts.tokens_per_step for o in seen])
        return np.stack([np.ones(len(x)), fall, ngram, constant, constant / np.sqrt(steps / 100)], axis=1)

    def covariance(self, facts: CurveFacts, seen: Sequence[Observation]) -> np.ndarray:
        """(n, n) of the observations of one run around the mean that its facts give."""
        design, x = self.design(facts, seen), _places(facts, seen) - math.log(START / REFERENCE)
        noise = [math.hypot(self._noise(facts, o), o.stderr / o.loss) for o in seen]
        apart = self.drift**2 * np.maximum(0.0, np.minimum.outer(x, x))
        whole: np.ndarray = design @ self.together @ design.T + apart + np.diag(np.square(noise))
        return whole

    def _noise(self, facts: CurveFacts, seen: Observation) -> float:
        if not seen.decay:
            return self.noise_constant
        return self.noise_decayed * math.sqrt(1 + FEW_STEPS * facts.tokens_per_step / seen.tokens)

    @property
    def together(self) -> np.ndarray:
        """(K, K): the covariance of a run's coefficients around the mean that its facts give."""
        together = np.diag(self.spread**2)
        together[0, 1] = together[1, 0] = self.correlation * self.spread[0] * self.spread[1]
        return together

    def residuals(self, facts: CurveFacts, seen: Sequence[Observation]) -> np.ndarray:
        """(n,) ln of the losses minus the mean that the facts give."""
        expected = self.design(facts, seen) @ (self.mean @ facts.vector())
        left: np.ndarray = np.log([o.loss for o in seen]) - expected
        return left

    def after(
        self,
        facts: CurveFacts,
        seen: Sequence[Observation],
        tokens: float,
        decay: float = LONGEST_DECAY,
        stderr: float = 0.0,
        under_way: bool = False,
    ) -> Interval:
        """The loss of a run that ends after `tokens`, decayed over the share `decay` of them, given what was `seen` of
        it; with its 80 % interval.

        stderr: of the sample that the losses are of, nats. under_way: whether the run itself was seen and not only its
        probes.
        """
        target = Observation(tokens, 1.0, decay)
        whole = self.covariance(facts, [*seen, target])
        gain = np.linalg.solve(whole[:-1, :-1], whole[:-1, -1])
        value = -self.residuals(facts, [target])[0] + float(gain @ self.residuals(facts, seen))
        variance = max(0.0, float(whole[-1, -1] - gain @ whole[:-1, -1]))
        std = math.sqrt(variance) * self.widening[under_way]
        return Interval.log_normal(math.exp(value), math.hypot(std, stderr / math.exp(value)))


def _places(facts: CurveFacts, seen: Sequence[Observation]) -> np.ndarray:
    return np.log([worth(o.tokens, facts.unique) / REFERENCE for o in seen])


def binned(evaluations: Sequence[tuple[float, float]], since: float, offset: float = 0.0) -> list[Observation]:
    """Evaluations at the constant rate, (tokens, loss) each, as observations; those until `since` tokens are left out.

    Neighbours are averaged, since they wander together. offset: of their sample's ln L from the one that is forecast.
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for tokens, loss in evaluations:
        if tokens > since:
            bins.setdefault(int(math.log(tokens) / BIN), []).append((tokens, loss))
    return [
        Observation(
            math.exp(sum(math.log(t) for t, _ in group) / len(group)),
            math.exp(sum(math.log(loss) for _, loss in group) / len(group) - offset),
            decay=0.0,
        )
        for group in bins.values()
    ]


@cache
def recorded() -> CurvePrior:
    """The prior that ships, from curve_prior.json beside this file."""
    values = read_json(ORIGIN)
    return CurvePrior(
        **values | {k: np.array(values[k]) for k in ("mean", "spread")} | {"widening": tuple(values["widening"])}
    )

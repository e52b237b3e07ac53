"""What the held-out loss of a run will be: a distribution over learning curves, learned from recorded runs.

A linear mixed model of ln L, the logarithm of the loss in nats per token, after D tokens that are worth W fresh ones:

    ln L(D) = a + b r(x) + g h(D) + w(D) + m(s) (c + d / sqrt(steps / 100)) + e q(D, s) + noise,   x = ln(W / REFERENCE)
    r(x) = (e^{-slowing x} - 1) / slowing,   h(D) = ln of the loss of an n-gram model that counted D tokens of the text
    m(s) = exp(-(s steps / decay_steps)^decay_power) for a run whose rate falls to zero over the share s of its tokens
    q(D, s) = ((D / U - 1) / MANY_PASSES)^rise_power (N / U)^rise_size (1 + rise_decay (1 - m(s)))

r falls ever more slowly, as a power law to an asymptote does; w is a Brownian motion in ln D, by which a curve leaves
that form the further the longer it runs; the bracket after m is what a final decay of the learning rate will still
bring, all of it at the constant rate and less of it after a short decay. Early in a run it is less than nothing, since
to decay is to learn less on the way. e q is what the loss rises by as N parameters memorize U unique tokens, more so
after a decay. Each run has its own a, b, g, c, d, e: normal, around a mean that depends on the model's size, on the
tokens of a step, on how many bytes a token packs and on how predictable the text is. The means and spreads were
estimated over recorded runs by restricted maximum likelihood (bench/curve_prior.py; Laird & Ware 1982, Biometrics
38:963), and how uncertain the means are is part of the distribution (Prasad & Rao 1990, JASA 85:163). What is known of
a run, be it a short probe or all that was evaluated so far, conditions this distribution; the forecast is the
conditional one. So the forecast before a run and the one in the middle of it are the same method with more to go by.

W = V / (1 + V / (saturation N)): a model of N parameters learns ever less from more text. V = U (1 + R (1 - e^{-p/R}))
for U unique tokens seen 1 + p times: text seen again teaches less (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).

Legend: K = 6 coefficients of a run, F facts, n observations.
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
from settle.plan.loss_law import REPEATS, counted, worth
from settle.train.training_plan import TrainingPlan

REFERENCE = 1e5  # tokens at which x is 0
LONGEST_DECAY = 0.4  # of a run's tokens: the longest decay that a plan has
MANY_PASSES = 10.0  # of the text: the unit in which passes are counted
FEW_STEPS = 400.0  # after fewer, decayed losses lie the further from a curve the fewer they are
START = 4096.0  # tokens from which curves leave their form
NGRAMS, RISE = 2, 5  # columns of a design
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
    packed: float | None = None  # nats per token that LZMA leaves of the text; None in runs of former versions

    @classmethod
    def of(cls, plan: TrainingPlan, corpus: Corpus) -> "CurveFacts":
        """Those of a plan; counts n-grams for a second, unless that is done."""
        train = corpus.train
        return cls(
            parameters=plan.num_parameters,
            unique=train.num_tokens,
            bytes_per_token=train.num_bytes / train.num_tokens,
            vocab_size=corpus.tokenizer.vocab_size,
            tokens_per_step=plan.loop.tokens_per_step,
            ngrams=[(tokens, losses[-1]) for tokens, losses in counted(corpus).ngrams],
            packed=counted(corpus).packed,
        )

    def vector(self) -> np.ndarray:
        """(F,) the facts that a run's mean coefficients depend on."""
        usual = self.ngram_loss(REFERENCE)
        return np.array(
            [
                1.0,
                math.log(self.parameters / 1e5),
                math.log(self.bytes_per_token / 2.5),
                math.log(usual / math.log(self.vocab_size) / 0.65),
                math.log(self.tokens_per_step / 1024),
                math.log((self.packed or usual) / usual),
            ]
        )

    def apart(self, other: "CurveFacts") -> float:
        """Return the factors of the parameters and of the text that lie between two runs, as logarithms."""
        return abs(math.log(self.parameters / other.parameters)) + abs(math.log(self.unique / other.unique))

    def ngram_loss(self, tokens: float) -> float:
        """Return the n-gram model's loss after `tokens`."""
        return float(self.ngram_losses(np.array([tokens]))[0])

    def ngram_losses(self, tokens: np.ndarray) -> np.ndarray:
        """Return (n,) the n-gram model's losses after `tokens` (n,), linear in their logarithm.

        Beyond those counted the loss falls on as the power law of the last two.
        """
        counted, losses = (np.array(column) for column in zip(*self.ngrams, strict=True))
        inside: np.ndarray = np.interp(np.log(tokens), np.log(counted), losses)
        if len(counted) < 2:
            return inside
        power = math.log(losses[-1] / losses[-2]) / math.log(counted[-1] / counted[-2])
        inside *= np.maximum(1.0, tokens / counted[-1]) ** min(0.0, power)
        return inside


@dataclass(frozen=True)
class Observation:
    """A held-out loss in nats per token."""

    tokens: float  # after which it was observed
    loss: float
    decay: float  # share of these over which the learning rate has fallen to zero; 0 at the constant rate
    stderr: float = 0.0  # beyond that of the sample, which all observations share


@dataclass(frozen=True)
class CurveForm:
    """The bends of all curves."""

    slowing: float = 0.2  # of the fall
    saturation: float = math.inf  # tokens per parameter at which half of what more text teaches is left
    repeats: float = REPEATS  # R
    rise_power: float = 1.0  # of the passes
    rise_size: float = 1.0  # of the parameters per token of the text
    rise_decay: float = 0.0  # how much more a decayed loss rises
    decay_steps: float = 60.0  # of a decay that brings most of what a long one would
    decay_power: float = 0.5  # of m


@dataclass(frozen=True)
class CurvePrior:
    """What recorded runs say of curves, all of ln L."""

    form: CurveForm
    mean: np.ndarray  # (K, F) coefficients by facts
    spread: np.ndarray  # (K,) standard deviations around the mean
    correlation: float  # of a and b around it
    drift: float  # of w per unit of ln D
    noise_decayed: float  # of one observation, after many steps
    noise_constant: float  # of one observation at the constant rate
    between: float = 0.0  # of ln L, in what runs on a text do not share, per factor e of parameters or of text
    mean_covariance: np.ndarray | None = None  # (K F, K F) of the mean's estimate, in rows
    # what makes 80 % intervals hold 80 % of runs on texts left out: before a run, and while it is under way
    widening: tuple[float, float] = (1.0, 1.0)
    # (most times its tokens, widening), rising, of what a run would reach with more tokens than it had
    further: tuple[tuple[float, float], ...] = ()
    most_passes: float = math.inf  # of a text, in recorded runs

    def design(self, facts: CurveFacts, seen: Sequence[Observation]) -> np.ndarray:
        """(n, K): what each coefficient is multiplied by at each observation."""
        form = self.form
        tokens = np.array([o.tokens for o in seen])
        worths = np.array([worth(o.tokens, facts.unique, form.repeats) for o in seen])
        x = np.log(worths / (1 + worths / (form.saturation * facts.parameters)) / REFERENCE)
        fall = np.expm1(-form.slowing * x) / form.slowing
        ngram = np.log(facts.ngram_losses(np.minimum(tokens, facts.unique)) / facts.ngram_loss(REFERENCE))
        steps = tokens / facts.tokens_per_step
        constant = np.exp(-((np.array([o.decay for o in seen]) * steps / form.decay_steps) ** form.decay_power))
        rise = (np.maximum(0.0, tokens / facts.unique - 1) / MANY_PASSES) ** form.rise_power
        rise *= (facts.parameters / facts.unique) ** form.rise_size * (1 + form.rise_decay * (1 - constant))
        return np.stack([np.ones(len(x)), fall, ngram, constant, constant / np.sqrt(steps / 100), rise], axis=1)

    def covariance(
        self, *runs: tuple[CurveFacts, Sequence[Observation]], designs: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        """(n, n) of the observations of one run, or of runs on the same text, around the means that their facts give.

        Such runs share their coefficients and how they leave their form, but for `between`. designs: theirs, if others.
        """
        designs = designs or [self.design(facts, seen) for facts, seen in runs]
        sides = [(facts, design) for (facts, _), design in zip(runs, designs, strict=True)]
        whole: np.ndarray = np.block([[a @ self.together(f, g) @ b.T for g, b in sides] for f, a in sides])
        every = [(facts, o) for facts, seen in runs for o in seen]
        x = np.log([o.tokens / START for _, o in every])
        whole += self.drift**2 * np.maximum(0.0, np.minimum.outer(x, x))
        apart = np.array([self.between * facts.apart(runs[0][0]) for facts, _ in every])
        whole += np.minimum.outer(apart, apart) ** 2
        noise = [math.hypot(self._noise(facts, o), o.stderr / o.loss) for facts, o in every]
        whole += np.diag(np.square(noise))
        return whole

    def _noise(self, facts: CurveFacts, seen: Observation) -> float:
        if not seen.decay:
            return self.noise_constant
        return self.noise_decayed * math.sqrt(1 + FEW_STEPS * facts.tokens_per_step / seen.tokens)

    def together(self, facts: CurveFacts, other: CurveFacts | None = None) -> np.ndarray:
        """Return (K, K) the covariance of a run's coefficients around the mean that its facts give.

        That of the mean's estimate is included. other: facts of another run on the same text, which has the columns.
        """
        together = np.diag(self.spread**2)
        together[0, 1] = together[1, 0] = self.correlation * self.spread[0] * self.spread[1]
        if self.mean_covariance is not None:
            v, w = facts.vector(), (other or facts).vector()
            parts = self.mean_covariance.reshape(len(self.spread), len(v), len(self.spread), len(v))
            together += np.einsum("kflg,f,g->kl", parts, v, w)
        return together

    def further_widening(self, facts: CurveFacts, before: float, tokens: float) -> float | None:
        """Return the widening of what a run of `before` tokens reaches after `tokens`; None beyond recorded runs."""
        if tokens > self.most_passes * facts.unique:
            return None
        return next((factor for most, factor in self.further if tokens <= most * before), None)

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
        widening: float | None = None,
    ) -> Interval:
        """Forecast the loss of a run that ends after `tokens`, given what was `seen` of it, with its 80 % interval.

        decay: share of the tokens over which the rate falls. stderr: of the sample that the losses are of, nats.
        under_way: whether the run itself was seen and not only its probes. widening: of the interval, where it is
        another.
        """
        target = Observation(tokens, 1.0, decay)
        whole = self.covariance((facts, [*seen, target]))
        gain = np.linalg.solve(whole[:-1, :-1], whole[:-1, -1])
        value = -self.residuals(facts, [target])[0] + float(gain @ self.residuals(facts, seen))
        variance = max(0.0, float(whole[-1, -1] - gain @ whole[:-1, -1]))
        std = math.sqrt(variance) * (self.widening[under_way] if widening is None else widening)
        return Interval.log_normal(math.exp(value), math.hypot(std, stderr / math.exp(value)))

    def change(
        self,
        facts: CurveFacts,
        seen: Sequence[Observation],
        end: Observation,
        other: CurveFacts,
        later: Observation,
        held: Sequence[int] = (),
    ) -> Interval:
        """Forecast, as a share of the loss of a run's `end`, what the `later` end of the run with `other` facts saves.

        seen: of the former, before it begins. held: columns of the design that are taken to stay as they are.
        """
        runs, n = ((facts, [*seen, end]), (other, [later])), len(seen)
        designs = [self.design(*run) for run in runs]
        designs[1][:, list(held)] = designs[0][-1:, list(held)]
        whole = self.covariance(*runs, designs=designs)
        gain = np.linalg.solve(whole[:n, :n], whole[:n, n:])
        mean = np.array([d[-1] @ (self.mean @ f.vector()) for d, (f, _) in zip(designs, runs, strict=True)])
        mean += self.residuals(facts, seen) @ gain
        left = whole[n:, n:] - gain.T @ whole[:n, n:]
        std = self.widening[0] * math.sqrt(max(0.0, float(left[0, 0] + left[1, 1] - 2 * left[0, 1])))
        ratio = Interval.log_normal(math.exp(mean[1] - mean[0]), std)
        return Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low, ratio.level)


def binned(evaluations: Sequence[tuple[float, float]], since: float, offset: float = 0.0) -> list[Observation]:
    """Return evaluations at the constant rate, (tokens, loss) each, as observations; those until `since` are left out.

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
    """Return the prior that ships, from curve_prior.json beside this file."""
    values = read_json(ORIGIN)
    arrays = {name: np.array(values[name]) for name in ("mean", "mean_covariance", "spread")}
    further = tuple((float(most), float(factor)) for most, factor in values["further"])
    form, widening = CurveForm(**values["form"]), tuple(values["widening"])
    return CurvePrior(**values | arrays | {"form": form, "widening": widening, "further": further})

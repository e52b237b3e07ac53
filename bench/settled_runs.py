"""The settled rule on real runs that were followed past their stop, against patience and the full budget.

    python bench/settled_runs.py bench/recorded bench/recorded/settled [--tolerance 0.01 …]

Every recorded run whose trunk follows the stop for at least `FOLLOWED` times its tokens counts (bench/record.py). The
rule is the product's own, replayed on the product's own evaluations; it was not changed after these runs were seen.

* truth: the losses before *and after* the stop, from half to twice its tokens, are explained by a cubic in ln(tokens).
  gain: what 10 % more tokens bring there, as a fraction of the loss, and its standard error (noise that lasts is
  estimated from the residuals). A stop is false when the gain is above the tolerance; by more than 1.2 × where it says
  so. later: the most that any 10 % bring further on, to the end of the trunk: a second fall.
* delivered: the loss after the final decay from there, between the recorded decays interpolated in ln(tokens). Every
  rule is given the same decay, so compute is what it saw and a quarter more.
* patience: it stops after three evaluations in a row without a new lowest one, looking at every n-th; n is the best one
  in hindsight for *this* run, by the least compute whose delivered loss is as low as settled's.
* full budget: the whole trunk, decayed.
* price: ln(compute) + ln(loss) ÷ tolerance × ln 1.1, what the person's tolerance says a fall is worth; lower is better,
  shown as a factor against the stop that would have been best in hindsight.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.base.statistics import two_sided_z, wilson
from settle.train.evaluation import Evaluation
from settle.train.settled import DECAY_FRACTION, Settled
from settle.train.settled.trend import MORE

FOLLOWED = 3.0
THIN = (1, 2, 3, 4, 6, 8, 12, 16)
SHOWN = (1, 2, 4, 8)
AROUND = math.log(2.0)  # to either side of the stop, of ln(tokens)
PRICE = math.log1p(MORE)


@dataclass(frozen=True)
class Trunk:
    """A recorded run: its evaluations at the constant rate, and ln of the decayed loss by ln of where decays began."""

    name: str
    history: list[Evaluation]
    since: int
    floor: float
    decays: list[tuple[float, float]]

    @classmethod
    def read(cls, path: Path) -> "Trunk":
        row = json.loads(path.read_text())
        per_step = row["loop"]["tokens_per_step"]
        history = [
            Evaluation(step=t // per_step, tokens=t, loss=loss, stderr=err, bits_per_byte=None, blocks=tuple(blocks))
            for t, loss, err, blocks in row["trunk"]
        ]
        decays = sorted((e["from"], e["own"]) for e in row["ends"] if e["kind"] == "stop")
        since = row["loop"]["warmup_steps"] * per_step
        return cls(path.stem, history, since, row.get("floor", math.inf), decays)

    @property
    def end(self) -> int:
        return self.history[-1].tokens

    def delivered(self, tokens: float) -> float:
        """Return the loss after a decay that begins at `tokens`, on the run's own sample."""
        at, losses = zip(*self.decays, strict=True)
        return math.exp(np.interp(math.log(tokens), np.log(at), np.log(losses)))

    def stop(self, tolerance: float) -> tuple[str, int] | None:
        """Return the verdict of the product's rule and its tokens; None when the run improves to the end."""
        rule = Settled(tolerance, self.since, self.floor)
        for n in range(1, len(self.history) + 1):
            if rule.asks(self.history[:n]):
                state = rule.judge(self.history[:n]).state
                if state != "improving":
                    return state, self.history[n - 1].tokens
        return None

    def gain(self, tokens: float) -> tuple[float, float]:
        """Return what 10 % more tokens bring at `tokens` as a fraction of the loss, by both sides, and its stderr."""
        near = [e for e in self.history if e.tokens and abs(math.log(e.tokens / tokens)) < AROUND]
        x = np.log([e.tokens / tokens for e in near])
        y = np.array([e.loss for e in near])
        design = np.stack([x**k for k in range(4)], 1)
        inverse = np.linalg.pinv(design)
        solved = inverse @ y
        left = y - design @ solved
        n = len(x)
        total = max(float(left @ left), 1e-12)
        lag = min(max((float(left[1:] @ left[:-1]) / total + 2 / n) / (1 - 4 / n), 0.0), 0.9) if n > 8 else 0.5
        covariance = lag ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        covariance *= total / np.sum((np.eye(n) - design @ inverse) * covariance)
        step = PRICE ** np.arange(4)
        step[0] = 0.0
        error = math.sqrt(step @ inverse @ covariance @ inverse.T @ step)
        return -float(step @ solved) / float(solved[0]), error / float(solved[0])

    def patience(self, every: int, most: int = 3) -> int:
        """Return the tokens at which patience stops, or those of the whole trunk."""
        looks = [e for e in self.history if e.tokens > self.since][every - 1 :: every]
        best = 0
        for i, e in enumerate(looks):
            if e.loss < looks[best].loss:
                best = i
            elif i - best >= most:
                return e.tokens
        return self.end


@dataclass(frozen=True)
class Row:
    """One run's figures. Compute is in tokens, decay included."""

    trunk: Trunk
    state: str
    tokens: int
    tolerance: float
    gain: float
    stderr: float
    later: float

    @classmethod
    def of(cls, trunk: Trunk, tolerance: float) -> "Row | None":
        """None where the rule does not stop, or the trunk ends too soon after it."""
        stop = trunk.stop(tolerance)
        if stop is None or trunk.end < FOLLOWED * stop[1]:
            return None
        gain, stderr = trunk.gain(stop[1])
        ahead = np.geomspace(1.5 * stop[1], trunk.end / 1.5, 12)
        later = max(trunk.gain(t)[0] for t in ahead)
        return cls(trunk, *stop, tolerance, gain, stderr, later)

    @property
    def loss(self) -> float:
        return self.trunk.delivered(self.tokens)

    def price(self, tokens: float) -> float:
        """Return ln of compute plus what the loss is worth."""
        return math.log(tokens) + math.log(self.trunk.delivered(tokens)) / self.tolerance * PRICE

    @property
    def regret(self) -> float:
        """The price ÷ that of the best stop in hindsight."""
        first = self.trunk.decays[0][0]
        best = min(self.price(t) for t in np.geomspace(first, self.trunk.end, 200))
        return math.exp(self.price(self.tokens) - best)

    def equal(self) -> float:
        """Compute of the cheapest patience in hindsight that delivers this loss; of the whole trunk if none does."""
        reached = [t for t in map(self.trunk.patience, THIN) if self.trunk.delivered(t) <= self.loss * 1.001]
        return min(reached, default=self.trunk.end)

    def beside(self, tokens: int) -> str:
        """Compute and delivered loss of a stop at `tokens` against this one's."""
        return f"{tokens / self.tokens:.2f}×, {self.trunk.delivered(tokens) / self.loss - 1:+.1%}"

    def line(self) -> str:
        others = [*(self.trunk.patience(n) for n in SHOWN), self.equal(), self.trunk.end]
        false = " ✗" if self.gain > self.tolerance else ""
        cells = [
            self.trunk.name,
            self.state,
            f"{self.tokens * (1 + DECAY_FRACTION) / 1e6:.2f} M",
            f"{self.loss:.4f}",
            f"{self.gain:.2%} ± {self.stderr:.2%}{false}",
            f"{self.later:.2%}",
            *map(self.beside, others),
            f"{self.regret:.2f}",
        ]
        return f"| {' | '.join(cells)} |"


def geometric(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval."""
    logs = np.log(values)
    half = two_sided_z(0.95) * logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    mean = float(logs.mean())
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def report(trunks: Sequence[Trunk], tolerance: float) -> None:
    rows = [row for trunk in trunks if (row := Row.of(trunk, tolerance))]
    print(f"\nTolerance {tolerance:.2%}: {len(rows)} runs that stop and are followed for {FOLLOWED:g} × their stop.\n")
    if not rows:
        return
    heads = ["run", "verdict", "tokens, decay included", "delivered loss", "10 % more bring", "most later"]
    heads += [*(f"patience ×{n}" for n in SHOWN), "cheapest patience as low", "full budget", "price ÷ best"]
    print(f"| {' | '.join(heads)} |\n|---|---|{'--:|' * (len(heads) - 2)}")
    for row in rows:
        print(row.line())
    settled = [row for row in rows if row.state == "settled"]
    for name, margin in (("the tolerance", 1.0), ("1.2 × the tolerance", 1.2)):
        false = wilson([row.gain > margin * tolerance for row in settled])
        span = f"{false.low:.0%} to {false.high:.0%}, n {len(settled)}"
        print(f"\nFalse *settled*, gain above {name}: {false.value:.0%} ({span}).")
    for name, ratios in (
        ("than the full budget", [row.tokens / row.trunk.end for row in rows]),
        ("than the cheapest patience that is as low", [row.tokens / row.equal() for row in rows]),
    ):
        mean, low, high = geometric(ratios)
        span = f" ({1 - high:.0%} to {1 - low:.0%})" if len(ratios) > 2 else ""
        print(f"\nCompute {1 - mean:.0%} less{span} {name}.")
    prices = {n: np.mean([row.price(row.trunk.patience(n)) - row.price(row.tokens) for row in rows]) for n in THIN}
    best = min(prices, key=lambda n: float(prices[n]))
    told = f"{math.exp(prices[best]):.2f} × settled's price"
    print(f"\nPatience ×{best}, the best for all runs together in hindsight: {told}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path, nargs="+")
    parser.add_argument("--tolerance", type=float, nargs="*", default=[0.005, 0.0075, 0.01, 0.015])
    asked = parser.parse_args()
    trunks = [Trunk.read(path) for folder in asked.recorded for path in sorted(folder.glob("*.json"))]
    for tolerance in asked.tolerance:
        report([t for t in trunks if t.decays], tolerance)


if __name__ == "__main__":
    main()

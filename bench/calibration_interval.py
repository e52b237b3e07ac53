"""Whether what is said of probabilities holds, on worlds whose truth is known.

    python bench/calibration_interval.py 80              # the interval of the calibration error
    python bench/calibration_interval.py risk 200        # settle decide --refuse-above-risk 5%, cell by cell

The interval: an answer given with confidence c is right with probability c - gap. These cells were not looked at while
the rule of the lower end was chosen; that was done on 60, 150 and 400 rows, gaps of 0, 0.03, 0.08 and 0.15, confidences
from Beta(5, 1.5).

The risk: the cells of the third audit. Of each deployment n rows fit the temperature; with 2 n that
judge they choose the threshold ("all"), or n rows do both alone ("n"). How often the true risk of the answers
given, by the chances of 10,000 fresh rows, is above 5 %; how many are answered; how many could be at best.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from settle.base.statistics import wilson
from settle.data.decisions.calibration import fit_temperature, probabilities, refusal_for
from settle.evaluate import calibration

ROWS, GAPS = (100, 250), (0.0, 0.05, 0.12, -0.06)
RISK, FRESH = 0.05, 10_000
LEAD = {2: 3.0, 4: 4.0}  # nats that the right option is ahead, by the number of options


def interval(samples: int) -> None:
    calibration.RESAMPLES = 200
    print(" rows    gap  held  with 0  mean error  if calibrated")
    for rows in ROWS:
        for gap in GAPS:
            random = np.random.default_rng([rows, int(1000 * abs(gap)), gap < 0])
            held, with_zero, errors, chance = 0, 0, [], []
            for _ in range(samples):
                # away from the ends, where a gap cannot be had
                confidence = 0.25 + 0.65 * random.beta(2, 1, rows)
                measured = calibration.measure_calibration(confidence, random.random(rows) < confidence - gap)
                held += measured.error.contains(abs(gap))
                with_zero += measured.error.low == 0
                errors.append(measured.error.value)
                chance.append(measured.if_calibrated)
            print(
                f"{rows:>5} {gap:>6} {held / samples:>5.0%} {with_zero / samples:>7.0%} {np.mean(errors):>11.3f} "
                f"{np.mean(chance):>14.3f}",
                flush=True,
            )


@dataclass(frozen=True)
class Cell:
    """fault: of the rows or the model. heat: the temperature that would be right. icc: how alike a family is."""

    fault: str
    options: int
    heat: float
    rows: int
    icc: float = 0.0
    family: int = 1

    def draw(self, random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scores (n, K), which option is right (n,), how likely each was (n, K), and the family of each row."""
        k, families = self.options, np.arange(n) // self.family

        def alike(*shape: int) -> np.ndarray:
            shared = random.normal(size=(families[-1] + 1, *shape))[families]
            return np.sqrt(self.icc) * shared + np.sqrt(1 - self.icc) * random.normal(size=(n, *shape))

        truth = alike(k)
        hot = np.where(
            random.random(n) < self.icc, random.integers(0, k, families[-1] + 1)[families], random.integers(0, k, n)
        )
        truth[np.arange(n), hot] += np.abs(LEAD[k] * (1 + 0.6 * alike()))
        drawn = np.array([NormalDist().cdf(u) for u in alike()])
        chances = probabilities(truth)
        right = (chances.cumsum(1) > drawn[:, None]).argmax(1)
        scores = truth * self.heat
        if self.fault == "a fifth of inputs twice as sure":
            scores[random.random(n) < 0.2] *= 1.8
        elif self.fault == "one class over-predicted":
            scores[:, 0] += 1.5
        elif self.fault == "6 % of labels wrong":
            right = np.where(alike() < NormalDist().inv_cdf(0.06), random.integers(0, k, n), right)
            chances = 0.94 * chances + 0.06 / k
        elif self.fault == "3 % surely wrong":
            struck = alike() < NormalDist().inv_cdf(0.03)
            scores[struck, random.integers(0, k, n)[struck]] += 8 * self.heat
        return scores, right, chances, families


def cells(sizes: list[int]) -> Iterator[Cell]:
    for n in sizes:
        yield from (Cell("none", k, heat, n) for k in LEAD for heat in (1.0, 2.5, 5.0))
        for fault in ("a fifth of inputs twice as sure", "one class over-predicted", "6 % of labels wrong"):
            yield Cell(fault, 4, 2.0, n)
        yield Cell("3 % surely wrong", 4, 2.0, n)
        yield from (Cell("none", 4, heat, n, icc, 5) for heat in (1.0, 5.0) for icc in (0.3, 0.6))
        yield Cell("6 % of labels wrong", 4, 2.0, n, 0.6, 10)


def risk(rounds: int, seed: int, sizes: list[int]) -> None:
    for cell in cells(sizes):
        fresh, right, chances, _ = Cell(cell.fault, cell.options, cell.heat, 0).draw(
            np.random.default_rng(seed + 1), FRESH
        )
        for which in ("all", "n"):
            found = []
            for number in range(rounds):
                random = np.random.default_rng([seed, cell.options, int(10 * cell.heat), cell.rows, number])
                n, fit = (3 * cell.rows, cell.rows) if which == "all" else (cell.rows, cell.rows)
                scores, own, _, families = cell.draw(random, n)
                heat = fit_temperature(scores[:fit], np.eye(cell.options)[own[:fit]])
                shares, ahead = probabilities(scores, heat), probabilities(fresh, heat)
                refusal = refusal_for(RISK, shares.max(1), shares.argmax(1) == own, families.tolist())
                answered = ahead.max(1) >= (2.0 if refusal.threshold is None else refusal.threshold)
                missed = 1 - chances[np.arange(FRESH), ahead.argmax(1)]
                wrong = float(missed[answered].mean()) if answered.any() else 0.0
                found.append((float(answered.mean()), wrong))
            coverage, wrongs = np.array(found).T
            above = wilson((wrongs > RISK).tolist())
            print(
                f"{cell.fault:<31} {cell.options} options  T {cell.heat}  icc {cell.icc} of {cell.family:>2}  n "
                f"{cell.rows:>3} {which:<3}  risk above {RISK:.0%} in {above.value:.1%} ({above.low:.1%} to "
                f"{above.high:.1%})  answered {coverage.mean():.0%}, any in {(coverage > 0).mean():.0%}  "
                f"at best {_best(probabilities(fresh, heat), right):.0%}",
                flush=True,
            )


def _best(shares: np.ndarray, right: np.ndarray) -> float:
    """Return the largest share of answers of which 5 % are wrong, if the truth is known."""
    coverage, risks = calibration.risk_curve(shares.max(1), shares.argmax(1) == right)
    return float(coverage[risks <= RISK].max(initial=0.0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="`risk`, or how many samples for the interval")
    parser.add_argument("rounds", nargs="?", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--rows", nargs="+", type=int, default=[10, 40, 100, 300])
    asked = parser.parse_args()
    if asked.what == "risk":
        risk(asked.rounds, asked.seed, asked.rows)
    else:
        interval(int(asked.what))

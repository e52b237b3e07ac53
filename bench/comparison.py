"""How often the intervals of the comparison core hold, and how often it claims what is false.

    python bench/comparison.py dev --rounds 400      the cells that the core was developed on
    python bench/comparison.py judge --rounds 400    cells that were written before any of them was run, for one look

A cell is a made world: so many rows, in families or not, candidates of known mean score, answers that are right or
wrong, graded between, or without bounds. A row is hard or easy for everybody, and a family for each candidate by
itself. Every round draws rows anew; settle's own code judges them. Shown are the shares of rounds in which

- the paired test's interval of the first two candidates holds the true difference, and the interval of a mean score;
- the intervals of a race hold theirs, wherever it stopped; and those of bets, at the row where they look worst;
- a race says anything false ("better" of one that is not), and the paired tests of all against the first, by Holm.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np

from settle.base.statistics import LEVEL, Interval, holm, paired_test, share_interval, wilson
from settle.experiment.race import Outcome, Race, evidence

NORMAL = NormalDist()
GRADE = 1.5  # spread of graded scores: a third of them near 0 or 1
RESAMPLES = 2_000  # of a paired test here, where thousands are made


@dataclass(frozen=True)
class Cell:
    """Candidates and rows whose truth is known.

    means: of the candidates. rows: in `families` of equal size, or of sizes that grow by half each if `uneven`. icc:
    correlation of a family's rows for one candidate; shared: of two candidates on one row. kind: of scores.
    """

    rows: int
    means: tuple[float, ...]
    shared: float = 0.3
    families: int | None = None
    icc: float = 0.0
    uneven: bool = False
    kind: str = "share"

    @property
    def name(self) -> str:
        where = f"{self.rows} rows"
        if self.families:
            where += f" in {self.families} {'uneven ' if self.uneven else ''}families, icc {self.icc}"
        means = " ".join(f"{m:g}" for m in self.means)
        return f"{where}; {self.kind} {means}; shared {self.shared}"

    def family(self) -> np.ndarray:
        """(n,) the family of each row."""
        if not self.families:
            return np.arange(self.rows)
        sizes = np.array([1.5**i if self.uneven else 1.0 for i in range(self.families)])
        if self.uneven:
            sizes = np.minimum(sizes, 12)
        ends = np.round(np.cumsum(sizes) / sizes.sum() * self.rows)
        return np.searchsorted(ends, np.arange(self.rows), side="right")

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, list[int]]:
        """Draw scores (K, n) and families (n,).

        The latent normal of a row is its hardness, what its family is to the candidate, and the rest.
        """
        family = self.family()
        k, n = len(self.means), self.rows
        ours = random.normal(size=(k, family.max() + 1))[:, family]
        rest = math.sqrt(max(0.0, 1 - self.shared - self.icc))
        latent = math.sqrt(self.shared) * random.normal(size=n) + math.sqrt(self.icc) * ours
        latent = latent + rest * random.normal(size=(k, n))
        means = np.array(self.means)[:, None]
        if self.kind == "unbounded":
            return means + latent * np.exp(0.4 * random.normal(size=n)), family.tolist()
        at = np.array([NORMAL.inv_cdf(m) for m in self.means])[:, None]
        if self.kind == "share":
            return (latent < at).astype(float), family.tolist()
        place = at * math.sqrt(1 + GRADE**2) + GRADE * latent  # its mean through the normal CDF is the one wanted
        return np.vectorize(NORMAL.cdf)(place), family.tolist()


DEV = [
    *(Cell(n, (0.6, 0.6)) for n in (15, 40, 120, 400)),
    *(Cell(n, (0.97, 0.97), shared=0.8) for n in (15, 60, 400)),
    Cell(30, (0.98, 0.9), shared=0.9),
    Cell(60, (0.8, 0.6, 0.6)),
    Cell(40, (0.5, 0.5, 0.5, 0.5)),
    Cell(30, (0.5, 0.5), kind="graded"),
    Cell(100, (0.9, 0.85), kind="graded", shared=0.6),
    Cell(40, (0.0, 0.0), kind="unbounded"),
    Cell(120, (0.6, 0.6), families=40, icc=0.3),
    Cell(100, (0.7, 0.7), families=10, icc=0.3),
    Cell(120, (0.6, 0.5, 0.5), families=24, icc=0.4, uneven=True),
    Cell(80, (0.5, 0.5), families=16, icc=0.4, kind="graded"),
]
JUDGE = [
    *(Cell(n, (0.7, 0.7), shared=0.5) for n in (20, 50, 200)),
    Cell(15, (0.8, 0.3)),
    Cell(400, (0.55, 0.5), shared=0.6),
    Cell(25, (0.95, 0.95), shared=0.85),
    Cell(100, (0.99, 0.96), shared=0.9),
    Cell(250, (0.98, 0.98), shared=0.7),
    Cell(400, (0.03, 0.03), shared=0.7),
    Cell(50, (0.65, 0.65, 0.65)),
    Cell(80, (0.4, 0.4, 0.4, 0.4, 0.4)),
    Cell(150, (0.85, 0.85, 0.5, 0.5)),
    Cell(20, (0.6, 0.6), kind="graded", shared=0.5),
    Cell(60, (0.3, 0.3, 0.3), kind="graded"),
    Cell(300, (0.92, 0.9), kind="graded", shared=0.7),
    Cell(15, (0.0, 0.0), kind="unbounded", shared=0.5),
    Cell(90, (1.0, 1.0, 1.0), kind="unbounded", shared=0.6),
    Cell(60, (0.6, 0.6), families=20, icc=0.5),
    Cell(150, (0.7, 0.7), families=30, icc=0.2, uneven=True),
    Cell(96, (0.5, 0.5, 0.5), families=12, icc=0.5),
    Cell(400, (0.8, 0.75), families=50, icc=0.3, shared=0.5),
    Cell(72, (0.9, 0.9), families=36, icc=0.6),
    Cell(90, (0.6, 0.6), families=15, icc=0.4, kind="graded", uneven=True),
    Cell(120, (0.0, 0.0), families=20, icc=0.4, kind="unbounded"),
]


@dataclass(frozen=True)
class Round:
    """What one round showed: whether each interval held, and whether anything false was said. None: there is none."""

    paired: bool
    mean: bool | None
    race: tuple[bool, ...]
    bets: bool | None
    race_false: bool
    family_false: bool
    shown: int
    wrong_of: int


def one_round(cell: Cell, seed: int) -> Round:
    random = np.random.default_rng(seed)
    scores, families = cell.draw(random)
    outcome = raced(scores, families, cell.kind != "unbounded", seed)
    tests = [paired_test(scores[0], other, families, seed, RESAMPLES) for other in scores[1:]]
    verdicts = [t.verdict for t in holm(tests)]
    truths = [m - cell.means[0] for m in cell.means[1:]]
    false = any((v == "better" and t <= 0) or (v == "worse" and t >= 0) for v, t in zip(verdicts, truths, strict=True))
    mean = bets = None
    if cell.kind == "share":
        grouped = None if len(set(families)) == len(families) else families
        mean = share_interval([bool(s) for s in scores[0]], grouped).contains(cell.means[0])
        if grouped is None:
            apart, truth = scores[0] - scores[1], cell.means[0] - cell.means[1]
            bets = max(evidence(apart, truth), evidence(-apart, -truth)) < 2 / (1 - LEVEL)
    return Round(
        paired=tests[0].difference.contains(truths[0]),
        mean=mean,
        race=tuple(p.difference.contains(cell.means[p.first] - cell.means[p.second]) for p in outcome.pairs),
        bets=bets,
        race_false=any(_is_false(p.first, p.second, p.better, cell.means) for p in outcome.pairs),
        family_false=false,
        shown=sum(p.is_shown for p in outcome.pairs),
        wrong_of=len(outcome.pairs),
    )


def raced(scores: np.ndarray, families: list[int], is_share: bool, seed: int) -> Outcome:
    """Run the race of `settle pick` with known scores (K, n), with at most fifteen interim analyses."""
    race = Race([str(k) for k in range(len(scores))], families, is_share, seed=seed)
    first = True
    while rows := race.next_rows(8 if first else max(4, len(families) // 15)):
        race.record({k: scores[k][rows].tolist() for k in race.left})
        first = False
    return race.outcome()


def _is_false(first: int, second: int, better: int | None, truth: Sequence[float]) -> bool:
    return better is not None and truth[better] <= truth[second if better == first else first]


def row(cell: Cell, rounds: Sequence[Round]) -> str:
    def share(values: Sequence[bool]) -> str:
        if not values:
            return "–"
        found: Interval = wilson(list(values))
        return f"{found.value:.1%} ({100 * found.low:.1f}–{100 * found.high:.1f})"

    cells = [
        cell.name,
        share([r.paired for r in rounds]),
        share([r.mean for r in rounds if r.mean is not None]),
        share([held for r in rounds for held in r.race]),
        share([r.bets for r in rounds if r.bets is not None]),
        share([r.race_false for r in rounds]),
        share([r.family_false for r in rounds]),
        f"{sum(r.shown for r in rounds) / sum(r.wrong_of for r in rounds):.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("dev", "judge"))
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", help="cells by number")
    args = parser.parse_args()
    cells = DEV if args.half == "dev" else JUDGE
    print("| cell | paired interval | mean's | race's | bets' | race false | Holm false | pairs shown |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    with ProcessPoolExecutor(args.workers) as pool:
        run: Callable[..., map[Round]] = partial(pool.map, chunksize=8) if args.workers > 1 else map
        for number, cell in enumerate(cells):
            if args.only is None or number in args.only:
                print(row(cell, list(run(partial(one_round, cell), range(args.rounds)))), flush=True)


if __name__ == "__main__":
    main()

"""How often "better than the base" is said of a model that is not, and how often of one that is.

    python bench/verdicts.py                 # the cells that the method was made with
    python bench/verdicts.py --half judge    # the cells that nobody looked at
    python bench/verdicts.py --half answers  # answers that are right or wrong: false "better", and how much is seen
    python bench/verdicts.py --half few --rounds 300   # 60 rows in all, split as `settle tune` splits them

A run is simulated by its rows: at each evaluation every row differs from the base by an effect of its own, which drifts
from one evaluation to the next (a Gaussian process) and is shared within a family to the degree of `icc`; on average
over all rows it is nothing ("null"), or a gain that comes, and in some cells goes again ("gain"). The best weights are
those of the lowest loss, the base among them; what is compared is the loss itself or a score that correlates with it.
All of settle's own code is used for the verdict: `paired_test`, and `in_order` where a report has several scores.

- one side: selected and compared on the same rows, as settle did until 0.1.
- split: selected on half as many other rows, compared on rows that chose nothing.
- oracle: selected as in the split, and compared by a t-test of the families' means at 2.5 % a side, on the judgement
  rows: the power that a classical test would have.
"""

import argparse
import json
import math
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np

from settle.base.event_log import Events
from settle.base.statistics import NO_DIFFERENT, TOO_FEW, Interval, in_order, paired_test, student_quantile, wilson
from settle.data.corpus import Ledger, find_sources
from settle.data.rows.collect import collect_rows
from settle.data.settings import RowSettings
from settle.data.split import HELD_OUT, row_families

SELECTION = 0.5  # rows that select, for each that judges
RESAMPLES = 600
HOPELESS = 0.93  # of the t distribution: below this no verdict is near


@dataclass(frozen=True)
class Cell:
    """A kind of comparison whose truth is known.

    rows: that judge; families among them, None: every row its own. icc: of the rows of a family. looks, length: how
    many evaluations, and over how many an effect lasts. shape: of the effects of rows. score: correlation of what is
    compared with the loss, 1: the loss. falls: whether the gain disappears again. scores: further ones in the report.
    """

    rows: int
    families: int | None = None
    icc: float = 0.0
    looks: int = 40
    length: float = 4.0
    shape: str = "normal"
    score: float = 1.0
    uneven: bool = False
    falls: bool = False
    scores: int = 0

    def __str__(self) -> str:
        groups = (
            ""
            if self.families is None
            else f" in {self.families}{' uneven' if self.uneven else ''} families, icc {self.icc}"
        )
        more = f", score ρ {self.score}" if self.score < 1 else ""
        more += f", {self.scores} more scores" if self.scores else ""
        return f"{self.rows} rows{groups}; {self.looks} looks of length {self.length:g}; {self.shape}{more}"


DEV = [
    *(Cell(rows, score=score) for rows in (20, 60, 200) for score in (1.0, 0.7)),
    *(Cell(rows, looks=100, length=10.0) for rows in (20, 60, 200)),
    Cell(60, 12, 0.2), Cell(60, 12, 0.5), Cell(200, 20, 0.5), Cell(60, shape="binary", score=0.4),
    Cell(60, shape="skewed down"), Cell(60, shape="skewed up"), Cell(60, scores=3),
]  # fmt: skip
# written before any of them was run
JUDGE = [
    Cell(12), Cell(30, looks=60, length=2.0), Cell(100, looks=200, length=25.0), Cell(150, score=0.9),
    Cell(100, shape="t3"), Cell(40, shape="t3", looks=100, length=10.0), Cell(80, shape="uniform", score=0.8),
    Cell(40, shape="binary"), Cell(120, shape="binary", score=0.6), Cell(24, shape="few change"),
    Cell(100, shape="few change", score=0.7), Cell(120, 40, 0.3), Cell(100, 10, 0.3), Cell(90, 15, 0.8),
    Cell(120, 24, 0.5, uneven=True), Cell(80, 16, 0.4, shape="t3"), Cell(80, 20, 0.6, shape="binary", score=0.7),
    Cell(100, shape="mildly skewed down"), Cell(100, shape="mildly skewed up"), Cell(60, falls=True),
    Cell(100, scores=1), Cell(40, scores=5), Cell(100, 20, 0.5, scores=2),
]  # fmt: skip


def shaped(z: np.ndarray, shape: str, random: np.random.Generator) -> np.ndarray:
    """Return standard normal effects (rows, looks) in another shape, each of mean 0 and about the same size."""
    if shape == "t3":
        return z / np.sqrt(random.chisquare(3, (len(z), 1)) / 3) / math.sqrt(3)
    if shape == "uniform":
        return np.vectorize(math.erf)(z / math.sqrt(2)) * math.sqrt(3)
    if shape == "binary":
        return np.where(z > 1, 1.0, np.where(z < -1, -1.0, 0.0)) / 0.56
    if shape == "few change":
        return np.where(np.abs(z) > 1.5, z, 0.0)
    width = {"mildly skewed": 0.3, "skewed": 0.6}
    for name, w in width.items():
        if shape.startswith(name):
            log_normal = (np.exp(w * z) - math.exp(w * w / 2)) / (math.exp(w * w / 2) * math.sqrt(math.expm1(w * w)))
            return -log_normal if shape.endswith("down") else log_normal
    return z


def families_of(cell: Cell, rows: int, random: np.random.Generator) -> np.ndarray:
    """Return the family of each row (rows,)."""
    if cell.families is None:
        return np.arange(rows)
    families = max(2, round(cell.families * rows / cell.rows))
    if not cell.uneven:
        return np.arange(rows) % families
    shares = 1 / np.arange(1, families + 1)
    return np.concatenate([np.arange(families), random.choice(families, rows - families, p=shares / shares.sum())])


def side(
    cell: Cell, rows: int, gain: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fall of the loss and of what is compared, (rows, looks) each, and the families (rows,)."""
    families = families_of(cell, rows, random)
    root = root_of(cell.looks, cell.length)

    def process(number: int) -> np.ndarray:
        return random.normal(size=(number, cell.looks)) @ root.T

    def effects() -> np.ndarray:
        shared = math.sqrt(cell.icc) * process(families.max() + 1)[families] if cell.icc else 0.0
        return shared + math.sqrt(1 - cell.icc) * process(rows)

    loss = effects()
    score = loss if cell.score == 1 else cell.score * loss + math.sqrt(1 - cell.score**2) * effects()
    falls = shaped(loss, cell.shape if cell.score == 1 else "normal", random)
    return falls + gain, shaped(score, cell.shape, random) + gain, families


@cache
def root_of(looks: int, length: float) -> np.ndarray:
    """Return the root of the covariance of an effect over the evaluations, (looks, looks)."""
    apart = np.arange(looks)
    kernel: np.ndarray = np.exp(-0.5 * ((apart[:, None] - apart) / length) ** 2) + 1e-6 * np.eye(looks)
    return np.linalg.cholesky(kernel)


def chosen(falls: np.ndarray) -> int | None:
    """Return the evaluation of the lowest loss of (rows, looks); None if the base was better than all."""
    means = falls.mean(0)
    return int(means.argmax()) if means.max() > 0 else None


def is_better(differences: np.ndarray, families: np.ndarray, scores: int, random: np.random.Generator) -> bool:
    """Whether the report says "better" of anything."""
    if not scores and not is_better_by_t(differences, families, HOPELESS):
        return False  # far from any verdict: spares the resampling
    zeros = np.zeros(len(differences))
    tests = [paired_test(zeros, differences, families, resamples=RESAMPLES)]
    for _ in range(scores):  # of which nothing is true
        more = random.normal(0, differences.std(), len(differences))
        tests.append(paired_test(zeros, more, families, resamples=RESAMPLES))
    deciding, *others = in_order(tests[:1], tests[1:])
    return deciding.verdict == "better" or any(one.verdict == "better" for one in others)


def is_better_by_t(differences: np.ndarray, families: np.ndarray, probability: float = 0.975) -> bool:
    means = np.bincount(families, differences) / np.bincount(families)
    return bool(
        means.mean() > student_quantile(probability, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    )


def rates(cell: Cell, size: float, rounds: int) -> dict[str, list[bool]]:
    """Return the verdict of each round. size: of the true gain, in standard errors of the judgement rows' mean."""
    random = np.random.default_rng(zlib.crc32(f"{cell} {size}".encode()))
    independent = cell.families or cell.rows
    design = 1 + (cell.rows / independent - 1) * cell.icc
    learned = 1 - np.exp(-np.arange(1, cell.looks + 1) / (cell.looks / 5))
    if cell.falls:
        learned *= np.linspace(1.4, 0.2, cell.looks)
    gain = size * math.sqrt(design / cell.rows) * learned
    verdicts: dict[str, list[bool]] = {"one side": [], "split": [], "oracle": []}
    for number in range(rounds):
        selecting, _, _ = side(cell, max(2, round(SELECTION * cell.rows)), gain, random)
        judged, score, families = side(cell, cell.rows, gain, random)
        own, other = chosen(judged), chosen(selecting)
        alone = np.arange(cell.rows)
        if number < rounds // 4:  # its error is large, and few rounds show it
            verdicts["one side"].append(own is not None and is_better(score[:, own], alone, cell.scores, random))
        verdicts["split"].append(other is not None and is_better(score[:, other], families, cell.scores, random))
        verdicts["oracle"].append(other is not None and is_better_by_t(score[:, other], families))
    return verdicts


@dataclass(frozen=True)
class Answers:
    """Answers of a base and a tuned model whose truth is known.

    rows: of which the base gets a `share` right and the tuned model `gain` more; alike: rows of one family; icc: of the
    latent rightness of a family's rows; shared: correlation of both models' on one row. parts: of each answer, of which
    the score is the share that is right; 1: right or wrong.
    """

    rows: int
    share: float
    gain: float = 0.0
    alike: int = 1
    icc: float = 0.0
    shared: float = 0.6
    parts: int = 1

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right or wrong, (rows, parts) of the base and of the tuned model, and the families (rows,)."""
        families = np.arange(self.rows) // self.alike

        def latent() -> np.ndarray:
            of_family = random.normal(size=families.max() + 1)[families]
            return math.sqrt(self.icc) * of_family + math.sqrt(1 - self.icc) * random.normal(size=self.rows)

        common, normal = latent(), NormalDist()
        sides = []
        for share in (self.share, self.share + self.gain):
            of_row = math.sqrt(self.shared) * common + math.sqrt(1 - self.shared) * latent()
            own = random.normal(size=(self.rows, self.parts))
            right = of_row[:, None] if self.parts == 1 else math.sqrt(0.7) * of_row[:, None] + math.sqrt(0.3) * own
            sides.append((right < normal.inv_cdf(share)).astype(float))
        return sides[0], sides[1], families

    def __str__(self) -> str:
        alike = f" in families of {self.alike}, icc {self.icc:g}" if self.alike > 1 else ""
        graded = f", {self.parts} parts each" if self.parts > 1 else ""
        return f"{self.rows} rows{alike}{graded}; {self.share:.0%} right, {100 * self.gain:+.0f} points"


FAMILIES = ((60, 5), (150, 10), (300, 10), (60, 2))
ANSWERS = [
    *(Answers(rows, share) for rows in (15, 30, 60, 150, 300) for share in (0.1, 0.5, 0.9)),
    *(Answers(rows, 0.5, alike=alike, icc=0.6, shared=0.3) for rows, alike in FAMILIES),
    *(Answers(rows, share, parts=5) for rows in (20, 60, 200) for share in (0.1, 0.5, 0.9)),
    Answers(150, 0.5, alike=10, icc=0.6, shared=0.3, parts=5),
    *(Answers(rows, 0.5, gain) for rows in (30, 60, 150, 300) for gain in (0.05, 0.1, 0.2)),
    *(Answers(rows, 0.5, 0.1, parts=5) for rows in (60, 150)),
]  # fmt: skip


def said_of_answers(cell: Answers, rounds: int, seed: int) -> None:
    """Print how often each verdict is given, and how often the interval holds the truth.

    For right-or-wrong answers on independent rows it is computed over all outcomes, elsewhere simulated. A report on
    answers of several parts has two scores: the share of parts decides, and exact match is reported too.
    """
    if cell.parts == cell.alike == 1:
        better, worse, few, held = exactly(cell)
        ends = [f"{100 * better:.2f} %", f"{100 * worse:.2f} %", f"{1 - better - worse - few:.0%}", f"{few:.0%}"]
        print(f"| {cell} | {' | '.join(ends)} | {held:.1%} | {better:.1%} |", flush=True)
        return
    verdicts, holds, beside = [], [], []
    for number in range(rounds):
        base, tuned, families = cell.draw(np.random.default_rng([seed, number]))
        tests = [paired_test(base.mean(1), tuned.mean(1), families, resamples=2000)]
        if cell.parts > 1:
            tests.append(paired_test(base.min(1), tuned.min(1), families, resamples=2000))
        score, *others = in_order(tests[:1], tests[1:])
        verdicts.append(score.verdict)
        holds.append(score.difference.contains(cell.gain))
        beside.append(any(one.verdict == "better" for one in (score, *others)))
    shares = [wilson([verdict == word for verdict in verdicts]) for word in ("better", "worse", NO_DIFFERENT, TOO_FEW)]
    ends = [f"{100 * s.value:.2f} % ({100 * s.low:.1f}–{100 * s.high:.1f})" for s in shares[:2]]
    ends += [f"{s.value:.0%}" for s in shares[2:]] + [f"{wilson(holds).value:.1%}", f"{wilson(beside).value:.1%}"]
    print(f"| {cell} | {' | '.join(ends)} |", flush=True)


def exactly(cell: Answers) -> tuple[float, float, float, float]:
    """Return the chances of "better", "worse" and "too few rows to tell", and that the interval holds the true gain."""
    n, normal = cell.rows, NormalDist()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    a, b = normal.inv_cdf(cell.share), normal.inv_cdf(cell.share + cell.gain)
    root, rest = math.sqrt(cell.shared), math.sqrt(1 - cell.shared)
    both = sum(
        w * normal.cdf((a - root * z) / rest) * normal.cdf((b - root * z) / rest)
        for z, w in zip(nodes, weights / weights.sum(), strict=True)
    )
    win, loss = cell.share + cell.gain - both, cell.share - both
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    chance = dict.fromkeys(("better", "worse", TOO_FEW, NO_DIFFERENT), 0.0)
    held = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            equal = n - wins - losses
            log = logs[n] - logs[wins] - logs[losses] - logs[equal]
            log += wins * math.log(win) + losses * math.log(loss) + equal * math.log(1 - win - loss)
            if log < -25:
                continue
            verdict, interval = _verdict(wins, losses, n)
            chance[verdict] += math.exp(log)
            held += math.exp(log) * interval.contains(cell.gain)
    return chance["better"], chance["worse"], chance[TOO_FEW], held


@cache
def _verdict(wins: int, losses: int, rows: int) -> tuple[str, Interval]:
    apart = np.repeat([1.0, 0.0, 0.0], [wins, losses, rows - wins - losses])
    other = np.repeat([0.0, 1.0, 0.0], [wins, losses, rows - wins - losses])
    test = paired_test(other, apart)
    return test.verdict, test.difference


def in_all(rounds: int, seed: int) -> None:
    """Of 60 rows in all, split as `settle tune` splits them, how many judge, and how often "better" is said."""
    print("| rows | gain | judged rows (families) | better |\n|---|--:|--:|--:|")
    for kind, number in (("apart", 60), ("alike", 60), ("apart", 40), ("apart", 100)):
        sizes, better = [], {gain: [] for gain in (0.0, 0.4, 0.6)}
        for one in range(rounds):
            random = np.random.default_rng([seed, one, number])
            with tempfile.TemporaryDirectory() as folder:
                families = judged_families(made_rows(kind, number, random), Path(folder))
            sizes.append((len(families), len(set(families))))
            for gain, found in better.items():
                base, tuned, _ = Answers(len(families), 0.2, gain).draw(random)
                found.append(paired_test(base.mean(1), tuned.mean(1), families).verdict == "better")
        rows = f"{np.mean([s[0] for s in sizes]):.0f} ({np.mean([s[1] for s in sizes]):.0f})"
        for gain, found in better.items():
            share = wilson(found)
            ends = f"{share.value:.1%} ({100 * share.low:.1f}–{100 * share.high:.1f})"
            print(f"| {number} {kind} | {100 * gain:+.0f} | {rows} | {ends} |", flush=True)


DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
NAMES = [
    "Chen",
    "Emil",
    "Ada",
    "Noor",
    "Ivan",
    "Lucia",
    "Omar",
    "Greta",
    "Kofi",
    "Mina",
    "Paul",
    "Rosa",
    "Sven",
    "Tara",
    "Umar",
    "Vera",
]
TOPICS = ["security", "hiring", "budget", "travel", "design", "support", "legal", "sales"]
FORMS = (
    "Meet {n} on {d} at {h} {m} to talk about {t}.", "{d} {h} {m}: {n} comes by, it is about {t}.",
    "Could you book {n} for {t} on {d}, {h} {m}?", "Please set up {t} with {n}, {d} at {h} {m}.",
)  # fmt: skip
PLAIN = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "lk", "mp")]


def made_rows(kind: str, number: int, random: np.random.Generator) -> list[dict[str, str]]:
    """Rows that share no words ("apart"), or appointments written in four forms ("alike")."""
    if kind == "apart":
        texts = [" ".join(random.choice(PLAIN, 12)) for _ in range(number)]
        return [{"prompt": text, "completion": str(random.choice(TOPICS))} for text in texts]
    rows = []
    for _ in range(number):
        name, day, topic = (str(random.choice(words)) for words in (NAMES, DAYS, TOPICS))
        hour, half = int(random.integers(1, 12)), str(random.choice(["am", "pm"]))
        prompt = str(random.choice(FORMS)).format(n=name, d=day, h=hour, m=half, t=topic)
        code = f"{day[:3].upper()}|{hour + 12 * (half == 'pm'):02d}:00|{name.upper()}|{topic.upper()}"
        rows.append({"prompt": prompt, "completion": code})
    return rows


def judged_families(rows: list[dict[str, str]], folder: Path) -> list[int]:
    """Return the families of the rows that judge, as `settle tune` splits rows and as its comparison counts them."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ledger = Ledger()
    sources = find_sources([str(path)], None, folder, ledger)
    collected = collect_rows(sources, RowSettings.model_validate({}), ledger, Events(), folder)
    held_out = np.flatnonzero(collected.sides == HELD_OUT).tolist()
    return row_families([collected.example(number) for number in held_out])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("dev", "judge", "answers", "few"), default="dev")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the answers")
    asked = parser.parse_args()
    if asked.half == "answers":
        print("| cell | better | worse | no different | too few | interval holds | anything better |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for cell in ANSWERS:
            said_of_answers(cell, asked.rounds, asked.seed)
        return
    if asked.half == "few":
        in_all(asked.rounds, asked.seed)
        return
    print("| cell | false, one side | false, split | power, split | power, oracle |\n|---|--:|--:|--:|--:|")
    false, power = [], []
    for cell in DEV if asked.half == "dev" else JUDGE:
        null, gain = rates(cell, 0.0, asked.rounds), rates(cell, 3.0, asked.rounds // 4)
        shares = [wilson(null["one side"]), wilson(null["split"]), wilson(gain["split"]), wilson(gain["oracle"])]
        false.append(shares[1].value)
        power.append(shares[2].value / max(1e-9, shares[3].value))
        ends = [f"{100 * s.value:.1f} % ({100 * s.low:.1f}–{100 * s.high:.1f})" for s in shares]
        print(f"| {cell} | {' | '.join(ends)} |", flush=True)
    print(
        f'false "better", split: {100 * max(false):.1f} % at most, {100 * sum(false) / len(false):.2f} % on average; '
    )
    print(f"power ÷ the oracle's: {min(power):.2f} at least, {sum(power) / len(power):.2f} on average")


if __name__ == "__main__":
    main()

"""The settled rule against three others, on families of curves with known futures, on the product's own schedule.

    python bench/settled.py development|judgement [--count 40] [--seed 1]

The half that is named comes from bench/families.py; the rule was developed on the first and is judged on the second.

* schedule: `next_evaluation` with a sample of 4,096 tokens and steps of 512. It knows no budget.
* compute: steps until the rule stops, or LONGEST. The final decay is left out on all sides.
* false: stopping although 10 % more tokens would truly bring more than the tolerance, or more than 1.2 × it.
* patience 3, OLS slope, two bins have one knob each, chosen in hindsight for the whole half: the value that costs least
  at the person's price. That price is the tolerance: 0.5 % of loss is worth 10 % more tokens.
* boundary: curves whose gain stays at a margin above the tolerance for ever; every stop is false.
* plateau: of slow starters that rest below what letter frequencies give; the rule knows the losses of counting pairs
  and triples of tokens, as before a run.
* coverage of the gain's 95 % interval: where it is asked and the true gain is 0.5 to 2 × the tolerance, up to the stop.
* coverage of 80 % intervals of a further stretch: × 0.5, 1 and 3 the tokens seen, at a third and at two thirds of the
  way (in the logarithm) to the ideal stop or the end.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import families
import numpy as np
from families import LONGEST, TOLERANCE, Family

from settle.base.statistics import FORECAST_LEVEL, Interval, wilson
from settle.train.settled import (
    ASK_EVERY,
    CHANCE,
    LONG_HISTORY,
    LONGEST_REST,
    MIN_HISTORY,
    MIN_POINTS,
    REACH,
    first_near,
    further,
    next_evaluation,
)
from settle.train.settled.trend import MORE, Window

SAMPLE_STEPS = 8  # 4,096 held-out tokens an evaluation, 512 tokens a step
NOISES = (0.001, 0.004, 0.01)  # of the loss, at the boundary
AHEAD = (1.5, 2.0, 4.0)
RESTING_STEP = 300.0  # where a slow starter has reached its plateau
PRICE = math.log1p(MORE) / TOLERANCE


@dataclass
class Curves:
    """C curves at the same K evaluations. seen, true: (C, K); gain: (C, K) of 10 % more, as a fraction of the loss."""

    steps: np.ndarray
    names: np.ndarray
    shapes: list[families.Shape]
    seen: np.ndarray
    true: np.ndarray
    gain: np.ndarray
    first: np.ndarray
    ideal: np.ndarray
    plateaus: np.ndarray  # (C, 2): bigram and trigram losses of the text; infinite where nothing is known of it


def schedule() -> np.ndarray:
    points, at = [], 0
    while (at := next_evaluation(at, SAMPLE_STEPS)) <= LONGEST:
        points.append(at)
    return np.array(points)


def observe(cells: list[tuple[str, Family, float | None]], seed: int) -> Curves:
    """One curve for each cell: its name, its family, and its noise, which is drawn when None."""
    random, steps = np.random.default_rng(seed), schedule()
    dense = np.unique(np.geomspace(1, LONGEST, 1500).astype(int)).astype(float)
    columns = []
    for _, family, noise in cells:
        shape = family.shape(random)
        now, later, true = shape(dense), shape(dense * (1 + MORE)), shape(steps.astype(float))
        worth = np.flatnonzero((now - later) / now > TOLERANCE)
        ideal = min(worth[-1] + 1, len(dense) - 1) if len(worth) else 0
        size = families.log_uniform(random, -3.3, -2) if noise is None else noise
        seen = true + size * now[ideal] * family.noise(random, steps.astype(float))
        gain = 1 - shape(steps * (1 + MORE)) / true
        known = families.plateaus(random) if family.rests else (math.inf, math.inf)
        columns.append((shape, seen, true, gain, float(shape(np.zeros(1))[0]), dense[ideal], known))
    shapes, *numbers = zip(*columns, strict=True)
    names = np.array([name for name, _, _ in cells])
    return Curves(steps, names, list(shapes), *(np.array(n) for n in numbers))


def askings(steps: np.ndarray) -> Iterator[int]:
    """Yield the evaluations at which the rule is asked."""
    asked = 0.0
    for k in range(MIN_HISTORY - 1, len(steps)):
        if steps[k] >= asked * (1 + ASK_EVERY):
            asked = steps[k]
            yield k


def is_due(curves: Curves, k: int, running: np.ndarray) -> np.ndarray:
    """Which curves have reached a third or two thirds of the way to their ideal stop at this asking."""
    start = curves.steps[MIN_HISTORY - 1]
    due = [start * (curves.ideal[running] / start) ** share for share in (1 / 3, 2 / 3)]
    before = curves.steps[k] / (1 + ASK_EVERY)
    return np.any([(before < at) & (at <= curves.steps[k]) for at in due], 0)


def windows(curves: Curves, k: int, running: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Curves with the same window at evaluation k, as `recent` in settle/train/settled has it, and the window."""
    inside = np.flatnonzero(curves.steps[: k + 1] >= REACH * curves.steps[k])
    starts = np.minimum(first_near(curves.seen[running][:, inside]), len(inside) - MIN_POINTS)
    for start in np.unique(starts):
        yield running[starts == start], inside[start:]


def settled(curves: Curves) -> tuple[np.ndarray, list[bool], dict[float, list[bool]]]:
    """(C,) index of the stop, -1 at the end; whether each interval of the gain covered, and of further stretches."""
    stops, covered, stretches = np.full(len(curves.seen), -1), [], {ratio: [] for ratio in AHEAD}
    for k in askings(curves.steps):
        for running, inside in windows(curves, k, np.flatnonzero(stops < 0)):
            posterior = Window(curves.steps[inside].tolist()).posterior(curves.seen[running][:, inside])
            gain = curves.gain[running, k]
            low, median, high = (posterior.quantile(p) / posterior.loss for p in (0.025, 0.5, 0.975))
            covered += ((low < gain) & (gain < high))[(gain > TOLERANCE / 2) & (gain < 2 * TOLERANCE)].tolist()
            near = np.stack([median, *(posterior.quantile(p) / posterior.loss for p in (0.1, 0.9))], 1)
            for j in np.flatnonzero(is_due(curves, k, running)):
                for ratio in AHEAD:
                    later = curves.shapes[running[j]](np.array([curves.steps[k] * ratio]))[0]
                    told = further(Interval(*near[j], FORECAST_LEVEL), ratio)
                    stretches[ratio].append(told.contains(1 - later / curves.true[running[j], k]))
            stop = (posterior.above(TOLERANCE * posterior.loss) < CHANCE) & (posterior.loss < curves.first[running])
            level = posterior.loss + 4 * posterior.noise / math.sqrt(len(inside))
            bigram, trigram = curves.plateaus[running].T
            stop &= (level <= bigram) | (curves.steps[k] >= LONGEST_REST)
            stop &= (level <= trigram) | (k + 1 >= LONG_HISTORY) | (level > bigram)
            stops[running[stop]] = k
    return stops, covered, stretches


# --- rivals: each gives (C,) the index of its stop for one value of its knob ---


def first_true(flags: np.ndarray, offset: int = 0) -> np.ndarray:
    return np.where(flags.any(1), flags.argmax(1) + offset, -1)


def patience(curves: Curves, every: float) -> np.ndarray:
    """Three evaluations in a row without a new lowest loss, on every `every`-th evaluation."""
    at = np.arange(int(every) - 1, len(curves.steps), int(every))
    some = curves.seen[:, at]
    lowest = np.minimum.accumulate(some, 1)
    stale = lowest[:, 3:] >= lowest[:, :-3]
    found = first_true(stale, 3)
    return np.where(found >= 0, at[np.minimum(found, len(at) - 1)], -1)


def ols_slope(curves: Curves, deviates: float) -> np.ndarray:
    """Return where the slope over the last half of the tokens, plus some standard errors, is below the tolerance."""
    stops = np.full(len(curves.seen), -1)
    for k in range(MIN_HISTORY, len(curves.steps)):
        inside = np.flatnonzero(curves.steps[: k + 1] >= curves.steps[k] / 2)
        x = np.log(curves.steps[inside])
        x = x - x.mean()
        y = curves.seen[:, inside]
        slope = y @ x / (x @ x)
        rest = y - y.mean(1, keepdims=True) - slope[:, None] * x
        error = np.sqrt((rest**2).sum(1) / max(1, len(x) - 2) / (x @ x))
        is_flat = (-slope + deviates * error) * math.log1p(MORE) < TOLERANCE * y.mean(1)
        stops[(stops < 0) & is_flat] = k
    return stops


def two_bins(curves: Curves, width: float) -> np.ndarray:
    """Means of the last two bins of a factor 1 + `width` each fell by less than the tolerance, scaled, three times."""
    flags = np.zeros(curves.seen.shape, bool)
    for k in range(MIN_HISTORY, len(curves.steps)):
        age = np.log(curves.steps[k] / curves.steps[: k + 1]) / math.log1p(width)
        means = [curves.seen[:, np.flatnonzero((age >= b) & (age < b + 1))] for b in range(3)]
        if all(m.shape[1] for m in means):
            falls = [1 - means[b].mean(1) / means[b + 1].mean(1) for b in range(2)]
            flags[:, k] = np.maximum(*falls) < TOLERANCE * math.log1p(width) / math.log1p(MORE)
    return first_true(flags[:, 2:] & flags[:, 1:-1] & flags[:, :-2], 2)


RIVALS = {
    "patience 3, every n evaluations": (patience, (1, 2, 4, 8, 16, 32)),
    "OLS slope, z standard errors": (ols_slope, (0.0, 1.0, 2.0, 3.0, 5.0)),
    "two bins of width w": (two_bins, (0.1, 0.2, 0.4)),
}


def costs(curves: Curves, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) logarithms of the compute and of the true loss at the stop."""
    at = np.where(stops >= 0, curves.steps[stops], LONGEST)
    loss = [shape(np.array([float(a)]))[0] for shape, a in zip(curves.shapes, at, strict=True)]
    return np.log(at), np.log(loss)


def falsely(curves: Curves, stops: np.ndarray, margin: float = 1.0) -> np.ndarray:
    return (stops >= 0) & (curves.gain[np.arange(len(stops)), stops] > margin * TOLERANCE)


def on_plateau(curves: Curves, stops: np.ndarray, half: tuple[Family, ...]) -> np.ndarray:
    """Which of the curves that rest were stopped with more than half of the fall from there to come."""
    mine = np.flatnonzero(np.isin(curves.names, [f.name for f in half if f.rests]))
    end, rest = (np.array([float(curves.shapes[i](np.array([t]))[0]) for i in mine]) for t in (1e9, RESTING_STEP))
    return (stops[mine] >= 0) & (curves.true[mine, stops[mine]] - end > (rest - end) / 2)


def percent(flags: "np.ndarray | list[bool]") -> str:
    share = wilson([bool(f) for f in flags])
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, n {len(flags)})"


def tables(half: tuple[Family, ...], boundary: dict[str, families.MakeNoise], count: int, seed: int) -> str:
    curves = observe([(f.name, f, None) for f in half for _ in range(count)], seed)
    stops, covered, stretches = settled(curves)
    compute, loss = costs(curves, stops)
    plain = ~np.isin(curves.names, [f.name for f in half if f.falls_again])
    lines = ["| family | settled | false | gain > 1.2 × tolerance | stop ÷ ideal, median |", "|---|--:|--:|--:|--:|"]
    for family in half:
        mine = curves.names == family.name
        mark = ", falls again" if family.falls_again else ""
        ratio = np.median(np.exp(compute[mine]) / curves.ideal[mine])
        false = [np.mean(falsely(curves, stops, margin)[mine]) for margin in (1.0, 1.2)]
        lines.append(
            f"| {family.name}{mark} | {(stops[mine] >= 0).mean():.0%} | {false[0]:.1%} | {false[1]:.1%} | {ratio:.2f} |"
        )
    lines += ["", f"Stopped on the plateau, with most of the fall to come: {percent(on_plateau(curves, stops, half))}."]
    lines += [
        "",
        f"False without a second fall: {percent(falsely(curves, stops)[plain])}; by more than 1.2 ×: "
        f"{percent(falsely(curves, stops, 1.2)[plain])}.",
    ]
    lines += ["", "| rule | compute ÷ settled's | loss | at the person's price | false |", "|---|--:|--:|--:|--:|"]
    for name, (rule, knobs) in RIVALS.items():
        tried = []
        for knob in knobs:
            other = rule(curves, knob)
            c, v = (part[plain] for part in costs(curves, other))
            longer, worse = np.mean(c - compute[plain]), np.mean(v - loss[plain])
            tried.append((longer + PRICE * worse, longer, worse, knob, falsely(curves, other)[plain].mean()))
        price, longer, worse, knob, false = min(tried)
        lines.append(
            f"| {name} = {knob:g} | {math.exp(longer):.2f} | {math.expm1(worse):+.1%} | {math.exp(price):.2f} | "
            f"{false:.1%} |"
        )
    lines += ["", f"95 % interval of the gain near the boundary covers {percent(covered)}."]
    lines += [
        f"80 % interval of × {ratio - 1:g} more tokens covers {percent(flags)}." for ratio, flags in stretches.items()
    ]
    lines += ["", "| boundary | margin | stopped |", "|---|--:|--:|"]
    for margin in (1.0, *families.MARGINS):
        cells = [
            (name, Family(name, families.straight(margin), noise), size)
            for name, noise in boundary.items() for size in NOISES for _ in range(max(1, count // 2))
        ]  # fmt: skip
        edge = observe(cells, seed + 1)
        ended, inside, _ = settled(edge)
        for name in boundary:
            lines.append(f"| {name} | {margin} | {percent(ended[edge.names == name] >= 0)} |")
        lines.append(f"| all, coverage of the 95 % interval | {margin} | {percent(inside)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("development", "judgement"))
    parser.add_argument("--count", type=int, default=40, help="curves of each family")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.half == "development":
        print(tables(families.DEVELOPMENT, families.BOUNDARY_DEVELOPMENT, asked.count, asked.seed))
    else:
        print(tables(families.JUDGEMENT, families.BOUNDARY_JUDGEMENT, asked.count, asked.seed))


if __name__ == "__main__":
    main()

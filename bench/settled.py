"""The settled rule against patience = 3, on synthetic curves with known futures and on run folders.

    python bench/settled.py [--curves 480] [--seed 11]
    python bench/settled.py RUN_FOLDER …      runs that were trained on past their verdict at a constant rate

Definitions, for synthetic curves:

* compute: steps until the rule stops, or LONGEST. The final decay is left out on both sides.
* loss: the true loss, without noise, where the rule stopped.
* a false stop: stopping although 10 % more tokens would truly have brought more than the tolerance.
* patience = 3 has a knob, how often to evaluate (every N steps), and one N is used for all curves. The larger N,
  the more compute and the lower the loss. **At equal final loss** means: at the N (interpolated between those
  tried) where the mean logarithm of its final losses equals ours. Compute is then compared by geometric mean,
  so that every curve counts the same. That N is known only in hindsight, which favours patience.
* at the person's price: patience stops elsewhere on each curve, so its losses differ from ours in both
  directions. The tolerance is a price: 0.5 % of loss is worth 10 % more tokens. Each difference in loss is
  turned into compute at that price, and the N that does best is compared.

For real runs the same, with the mean of five evaluations around a point as the loss there; patience looks at every
1st, 2nd, 4th … point of an even grid of evaluations.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import curves as synthetic
import numpy as np

from settle.base.event_log import read_records
from settle.train.settled import MIN_HISTORY, Settled, next_evaluation

TOLERANCE = 0.005
SAMPLE = 2  # cost of one evaluation in steps' worth of tokens, times 3
EVERY = (10, 20, 40, 80, 160, 320, 640, 1280, 2560)


@dataclass(frozen=True)
class Look:
    step: int
    tokens: int
    loss: float
    blocks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    curve: synthetic.Curve
    stop: int
    state: str
    loss: float
    patience: list[tuple[int, float]]  # (stop, loss) for each of EVERY


def grid(longest: int, sample: int) -> np.ndarray:
    points, at = [], 0
    while (at := next_evaluation(at, sample)) <= longest:
        points.append(at)
    return np.array(points)


def try_curve(curve: synthetic.Curve, rng: np.random.Generator) -> Result:
    steps = grid(synthetic.LONGEST, SAMPLE)
    seen = curve.observe(steps, rng, TOLERANCE)
    history = [Look(int(s), int(s), float(v)) for s, v in zip(steps, seen, strict=True)]
    rule = Settled(tolerance=TOLERANCE, floor=curve.floor)
    stop, state = synthetic.LONGEST, "out of budget"
    for n in range(MIN_HISTORY, len(history) + 1):
        verdict = rule.judge(history[:n]).state
        if verdict != "improving":
            stop, state = history[n - 1].step, verdict
            break
    others = []
    for every in EVERY:
        at = np.arange(every, synthetic.LONGEST + 1, every)
        end = int(at[synthetic.patience(at, curve.observe(at, rng, TOLERANCE))])
        others.append((end, float(curve.true(np.array([end]))[0])))
    return Result(curve, stop, state, float(curve.true(np.array([stop]))[0]), others)


def false_stop(curve: synthetic.Curve, stop: int) -> bool:
    return stop < synthetic.LONGEST and curve.gain(stop) > TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """Geometric means. `equal`, `priced`: how much less compute, at equal loss and at the person's price."""

    compute: float
    others: list[float]
    losses: list[float]  # of the others, against ours
    prices: list[float]  # compute of the others at the person's price, against ours
    equal: float
    priced: float


def compare(ours: list[tuple[float, float]], others: list[list[tuple[float, float]]]) -> Comparison:
    """(compute, loss) of each curve for us, and for each N of patience."""
    compute, loss = np.log(ours).T
    other_compute, other_loss = np.log(others).transpose(2, 0, 1).mean(2)  # by N
    price = math.log(1.1) / TOLERANCE
    worth = other_compute + price * other_loss - compute.mean() - price * loss.mean()
    order = np.argsort(other_loss)
    equal = np.interp(loss.mean(), other_loss[order], other_compute[order])
    return Comparison(
        math.exp(compute.mean()),
        np.exp(other_compute).tolist(),
        np.expm1(other_loss - loss.mean()).tolist(),
        np.exp(worth).tolist(),
        1 - math.exp(compute.mean() - equal),
        1 - math.exp(-worth.min()),
    )


def table(results: list[Result]) -> str:
    by_every = [[r.patience[i] for r in results] for i in range(len(EVERY))]
    told = compare([(r.stop, r.loss) for r in results], by_every)
    ours_false = np.mean([false_stop(r.curve, r.stop) for r in results])
    lines = [
        "| rule | steps, geometric mean | mean final loss against settled | false stops | ran to the end | "
        "compute at the person's price |",
        "|---|--:|--:|--:|--:|--:|",
        f"| settled | {told.compute:,.0f} | – | {ours_false:.1%} | "
        f"{np.mean([r.state == 'out of budget' for r in results]):.0%} | 1.00 |",
    ]
    for i, every in enumerate(EVERY):
        false = np.mean([false_stop(r.curve, r.patience[i][0]) for r in results])
        lines.append(
            f"| patience 3, every {every} | {told.others[i]:,.0f} | {told.losses[i]:+.1%} | {false:.1%} | "
            f"{np.mean([r.patience[i][0] >= synthetic.LONGEST - every for r in results]):.0%} | {told.prices[i]:.2f} |"
        )
    lines += [
        "",
        f"{len(results)} curves. At equal final loss settled takes **{told.equal:.0%} less compute** than patience; at "
        f"the person's price, against the best N, {told.priced:.0%} less. False stops: **{ours_false:.1%}**.",
        "",
        "| kind of curve | verdicts | stop ÷ ideal stop, median | 90 % of curves below | false stops |",
        "|---|---|--:|--:|--:|",
    ]
    for kind in dict.fromkeys(synthetic.KINDS):
        mine = [r for r in results if r.curve.kind == kind]
        ratio = [r.stop / r.curve.ideal(TOLERANCE) for r in mine]
        states = [r.state for r in mine]
        verdicts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        lines.append(
            f"| {kind} | {verdicts} | {np.median(ratio):.2f} | {np.quantile(ratio, 0.9):.2f} | "
            f"{np.mean([false_stop(r.curve, r.stop) for r in mine]):.1%} |"
        )
    return "\n".join(lines)


def read_looks(folder: Path) -> list[Look]:
    """The evaluations of a run before its learning rate fell."""
    events = list(read_records(folder / "events.jsonl"))
    decay = next((e["step"] for e in events if e["kind"] == "decay"), math.inf)
    return [
        Look(e["step"], e["tokens"], e["loss"], tuple(e.get("blocks", ())))
        for e in events
        if e["kind"] == "eval" and e["step"] <= decay and not e.get("whole")
    ]


def smooth(looks: list[Look], tokens: float) -> float:
    """The loss around `tokens`: mean of the five nearest evaluations."""
    nearest = sorted(looks, key=lambda e: abs(e.tokens - tokens))[:5]
    return float(np.mean([e.loss for e in nearest]))


def real_table(folders: list[Path]) -> str:
    """Rows for runs, and the comparison over all of them. The rule begins after 2 % of a run, its warm-up."""
    thin = (1, 2, 4, 8)
    lines = ["| run | verdict | at tokens | 10 % more then brought | " + "".join(f"patience ×{n} | " for n in thin)]
    lines.append("|---|---|--:|--:|" + "--:|" * len(thin))
    ours: list[tuple[float, float]] = []
    others: list[list[tuple[float, float]]] = [[] for _ in thin]
    for folder in folders:
        looks = read_looks(folder)
        rule = Settled(TOLERANCE, since_tokens=looks[-1].tokens // 50)
        stop, state = looks[-1], "out of budget"
        for n, look in enumerate(looks, 1):
            if (judged := rule.judge(looks[:n]).state) != "improving":
                stop, state = look, judged
                break
        loss = smooth(looks, stop.tokens)
        ours.append((stop.tokens, loss))
        gained = 1 - smooth(looks, 1.1 * stop.tokens) / loss
        cells = []
        for i, n in enumerate(thin):
            some = looks[n::n]
            end = some[synthetic.patience([e.step for e in some], [e.loss for e in some])]
            others[i].append((end.tokens, smooth(looks, end.tokens)))
            cells.append(f"{end.tokens / stop.tokens:.2f}×, loss {others[i][-1][1] / loss - 1:+.1%}")
        brought = f"{gained:.2%}" if 1.1 * stop.tokens <= looks[-1].tokens else "–"
        lines.append(f"| {folder.name} | {state} | {stop.tokens:,} | {brought} | {' | '.join(cells)} |")
    told = compare(ours, others)
    means = zip(thin, told.others, told.losses, strict=True)
    lines += [
        "",
        "compute and loss of patience against settled: "
        + "; ".join(f"×{n}: {compute / told.compute:.2f}, {loss:+.1%}" for n, compute, loss in means),
        f"At equal final loss {told.equal:.0%} less compute; at the person's price {told.priced:.0%} less.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--curves", type=int, default=480)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    if arguments.runs:
        print(real_table(arguments.runs))
        return
    rng = np.random.default_rng(arguments.seed)
    made = synthetic.make(arguments.curves, arguments.seed)
    print(table([try_curve(curve, rng) for curve in made]))


if __name__ == "__main__":
    main()

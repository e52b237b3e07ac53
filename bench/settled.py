"""The settled rule against patience = 3, on synthetic curves with known futures and on run folders.

    python bench/settled.py [--curves 480] [--seed 11] [RUN_FOLDER …]

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
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import curves as synthetic
import numpy as np

from settle.base.events import read_events
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


def table(results: list[Result]) -> str:
    compute = np.log([r.stop for r in results])
    loss = np.log([r.loss for r in results])
    other_compute = np.log([[s for s, _ in r.patience] for r in results])
    other_loss = np.log([[v for _, v in r.patience] for r in results])
    price = math.log(1.1) / TOLERANCE
    worth = compute.mean() + price * loss.mean()
    others_worth = other_compute.mean(0) + price * other_loss.mean(0)
    # the loss falls as N grows; interpolate the compute at our mean loss
    order = np.argsort(other_loss.mean(0))
    equal = np.interp(loss.mean(), other_loss.mean(0)[order], other_compute.mean(0)[order])
    ours_false = np.mean([false_stop(r.curve, r.stop) for r in results])
    lines = [
        "| rule | steps, geometric mean | mean final loss against settled | false stops | ran to the end | "
        "compute at the person's price |",
        "|---|--:|--:|--:|--:|--:|",
        f"| settled | {math.exp(compute.mean()):,.0f} | – | {ours_false:.1%} | "
        f"{np.mean([r.state == 'out of budget' for r in results]):.0%} | 1.00 |",
    ]
    for i, every in enumerate(EVERY):
        false = np.mean([false_stop(r.curve, r.patience[i][0]) for r in results])
        lines.append(
            f"| patience 3, every {every} | {math.exp(other_compute[:, i].mean()):,.0f} | "
            f"{math.expm1(other_loss[:, i].mean() - loss.mean()):+.1%} | {false:.1%} | "
            f"{np.mean([r.patience[i][0] >= synthetic.LONGEST - every for r in results]):.0%} | "
            f"{math.exp(others_worth[i] - worth):.2f} |"
        )
    lines += [
        "",
        f"{len(results)} curves. At equal final loss settled takes **{1 - math.exp(compute.mean() - equal):.0%} less "
        f"compute** than patience; at the person's price, against the best N, "
        f"{1 - math.exp(worth - others_worth.min()):.0%} less. False stops: **{ours_false:.1%}**.",
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


def replay(folder: Path) -> str:
    """One row for a run that was trained on well past its verdict at a constant rate (`until_settled` off)."""
    events = list(read_events(folder / "events.jsonl"))
    decay = next((e["step"] for e in events if e["kind"] == "decay"), math.inf)
    looks = [
        Look(e["step"], e["tokens"], e["loss"], tuple(e.get("blocks", ())))
        for e in events
        if e["kind"] == "eval" and e["step"] <= decay
    ]
    verdict = None
    for n, look in enumerate(looks, 1):
        judgement = Settled(TOLERANCE).judge(looks[:n])
        if judgement.state != "improving":
            verdict = look, judgement
            break
    if verdict is None:
        return f"| {folder.name} | – | no verdict in {looks[-1].tokens:,} tokens | | |"
    look, judgement = verdict
    cells = []
    for every in (1, 2, 5):
        some = looks[1::every]
        end = some[synthetic.patience([e.step for e in some], [e.loss for e in some])]
        cells.append(f"{end.tokens / look.tokens:.2f}× tokens, loss {end.loss / look.loss - 1:+.1%}")
    return f"| {folder.name} | {judgement.state} at {look.tokens:,} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--curves", type=int, default=480)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    if arguments.runs:
        print("| run | settled | patience 3, every evaluation | every second | every fifth |\n|---|---|---|---|---|")
        for folder in arguments.runs:
            print(replay(folder))
        return
    rng = np.random.default_rng(arguments.seed)
    made = synthetic.make(arguments.curves, arguments.seed)
    print(table([try_curve(curve, rng) for curve in made]))


if __name__ == "__main__":
    main()

"""Fits the law of settle/plan/loss_law.py on one set of runs and reports how it does on others.

    python bench/forecast.py FIT.jsonl [UNSEEN.jsonl]        (lines made by bench/forecast_runs.py)

Each run has two short runs before it, so it gives two falls to fit (short → long for both) and one between the two.
The report is for the shorter one, which is what the product trains.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

from settle.base.statistics import FORECAST_LEVEL, two_sided_z
from settle.plan.loss_law import LAW, LossLaw, worth

Fall = tuple[float, float, float, float]  # tokens of the short run, of the long one, bytes per token, ln(L' / L)


def falls(row: dict) -> list[Fall]:
    """short → end, longer → end, short → longer."""
    end = {"tokens": row["loop"]["max_steps"] * row["loop"]["tokens_per_step"], "loss": row["final"]["loss"]}
    packed = row["bytes"] / row["unique"]
    return [
        (worth(a["tokens"], row["unique"]), worth(b["tokens"], row["unique"]), packed, math.log(a["loss"] / b["loss"]))
        for a, b in ((row["probe"], end), (row["longer"], end), (row["probe"], row["longer"]))
    ]


def fit(runs: list[list[Fall]]) -> LossLaw:
    """Least squares for each `slowing` on a grid, with a light pull of `length` and `packing` to 0."""
    best = (math.inf, LAW)
    for slowing in np.arange(0.04, 0.41, 0.02):
        law = LossLaw(0, 0, 0, float(slowing), 0, 0)
        rows, falls_seen = [], []
        for short, end, packed, fall in (f for run in runs for f in run):
            reach = law.reach(end / short)
            rows.append([reach, reach * math.log(short / 1e5), reach * math.log(packed / 3)])
            falls_seen.append(fall)
        rows += [[0, 0.05, 0], [0, 0, 0.05]]
        falls_seen += [0.0, 0.0]
        solved, *_ = np.linalg.lstsq(np.array(rows), np.array(falls_seen), rcond=None)
        # long runs of the literature slow down at about 0.15; few and short runs say little about it
        error = float(np.sum((np.array(rows) @ solved - falls_seen) ** 2)) + (0.01 * math.log(slowing / 0.15)) ** 2
        if error < best[0]:
            best = error, LossLaw(*map(float, solved), float(slowing), LAW.apart, LAW.spread)
    return best[1]


def report(name: str, rows: list[dict], law: LossLaw) -> None:
    print(f"\n{name}\n\n| run | forecast | came | error | in the 80 % interval | memory | time of a step |")
    print("|---|--:|--:|--:|---|--:|--:|")
    errors, inside, held, timed = [], [], [], []
    for row in rows:
        short, end, packed, _ = falls(row)[0]
        probe, final = row["probe"], row["final"]
        told = law.loss(
            probe["loss"], math.hypot(probe["stderr"], final["stderr"]), short, end, packed, row["parameters"]
        )
        error = final["loss"] / told.value - 1
        step = float(np.mean(row["step_seconds"])) / probe["step_seconds"] - 1
        growth = (row["longer"]["memory"] - probe["memory"]) / 2  # two doublings: 40 steps, then 120 more
        seen = probe["steps"] + row["longer"]["steps"]
        memory = row["longer"]["memory"] + growth * math.log2((seen + row["loop"]["max_steps"]) / seen)
        errors.append(abs(error))
        inside.append(told.low <= final["loss"] <= told.high)
        held.append(abs(row["memory"] / memory - 1))
        timed.append(abs(step))
        what = f"{Path(row['inputs'][0]).name} {row['parameters'] / 1e6:.2f} M, {row['tokens']} tokens"
        print(
            f"| {what} | {told.value:.3f} ({told.low:.3f} – {told.high:.3f}) | {final['loss']:.3f} | {error:+.1%} | "
            f"{'yes' if inside[-1] else 'no'} | {row['memory'] / memory - 1:+.1%} | {step:+.0%} |"
        )
    print(
        f"\nmedian error of the loss {np.median(errors):.1%}, largest {max(errors):.1%}; {np.mean(inside):.0%} inside "
        f"the interval (±{two_sided_z(FORECAST_LEVEL):.2f} standard deviations); memory: median {np.median(held):.1%}, "
        f"largest {max(held):.1%}; time of a step: median {np.median(timed):.0%}"
    )


def main() -> None:
    sets = [[json.loads(line) for line in Path(path).read_text().splitlines()] for path in sys.argv[1:]]
    law = fit([falls(row) for row in sets[0]])
    print(law)
    report("fitted on", sets[0], law)
    if len(sets) > 1:
        report("not seen by the fit", sets[1], law)


if __name__ == "__main__":
    main()

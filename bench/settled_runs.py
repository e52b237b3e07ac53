"""Whole runs that stop when settled against patience = 3 on the same run at a constant rate; and their forecasts.

    python bench/settled_runs.py TEXT SIZE RATE [TEXT SIZE RATE …] [--tokens 5M] [--jobs 2]

For each TEXT, SIZE and learning RATE two runs, one thread each, alike but for --tolerance:

* settled: the default tolerance. Its compute is every token it saw, the final decay included.
* constant: a tolerance that nothing meets, so the rate stays constant for three quarters of the tokens. Patience is
  played on its evaluations in that part, looking at every 1st, 2nd, 4th and 8th: stop after three looks in a row
  without a new lowest loss. Its loss is the mean of the five evaluations around its best look, which it keeps.

Losses are those of the loop's held-out sample, the same for both. **At equal final loss**: tokens at which the constant
run first has a loss (mean of five evaluations) as low as settled's final one; a lower bound when it never does.
Forecasts are those that the constant run made before it began, against what came.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from settle.base.event_log import read_records

THIN = (1, 2, 4, 8)


def train(home: str, name: str, text: str, size: str, rate: str, tokens: str, tolerance: str) -> Path:
    """One run; its folder."""
    command = [sys.executable, "-m", "settle", "train", text, "--name", name, "--size", size, "--rates.lr", rate]
    command += ["--tokens", tokens, "--tolerance", tolerance, "--threads", "1", "--batch-tokens", "512"]
    command += ["--context", "128", "--json"]
    subprocess.run(command, env={**os.environ, "SETTLE_HOME": home}, capture_output=True, check=True)
    return next(Path(home, "runs").glob(f"*-train-{name}-*"))


def looks(run: Path) -> tuple[list[dict], int | None]:
    """The loop's evaluations, and the step at which the decay began."""
    events = list(read_records(run / "events.jsonl"))
    decay = next((e["step"] for e in events if e["kind"] == "decay"), None)
    return [e for e in events if e["kind"] == "eval" and not e.get("whole") and e["step"] > 0], decay


def patience(losses: list[float], most: int = 3) -> tuple[int, int]:
    """(where it stops, where its best look was)."""
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= most:
            return i, best
    return len(losses) - 1, best


def compare(pair: tuple[Path, Path]) -> dict:
    """The figures of one pair."""
    ours, _ = looks(pair[0])
    constant, decay = looks(pair[1])
    constant = [e for e in constant if decay is None or e["step"] <= decay]
    result, other = (json.loads((run / "result.json").read_text()) for run in pair)
    loss = min(e["loss"] for e in ours)
    tokens = ours[-1]["tokens"]
    smooth = np.convolve([e["loss"] for e in constant], np.ones(5) / 5, mode="same")
    smooth[:2], smooth[-2:] = np.inf, np.inf
    reached = np.flatnonzero(smooth <= loss)
    equal = constant[reached[0]]["tokens"] if len(reached) else constant[-1]["tokens"]
    told = {"verdict": result["verdict"], "tokens": tokens, "loss": loss, "equal": equal, "never": not len(reached)}
    told["patience"] = []
    for n in THIN:
        some = constant[n - 1 :: n]
        stop, best = patience([e["loss"] for e in some])
        at = n - 1 + best * n
        near = [e["loss"] for e in constant[max(0, at - 2) : at + 3]]
        told["patience"].append((some[stop]["tokens"], float(np.mean(near))))
    told["forecast"] = {k: (other["forecast"][k], other["actual"][k]) for k in ("time", "peak_memory", "loss")}
    return told


def stopping_table(configs: list[tuple[str, ...]], rows: list[dict]) -> list[str]:
    """Settled beside patience, in Markdown."""
    heads = " | ".join(f"patience ×{n}" for n in THIN)
    lines = [f"| run | verdict | tokens | loss | constant rate reaches it at | {heads} |"]
    lines.append("|---|---|--:|--:|--:|" + "--:|" * len(THIN))
    for config, row in zip(configs, rows, strict=True):
        name = f"{Path(config[0]).name} {config[1]}, rate {config[2]}"
        tried = [f"{t / row['tokens']:.2f}×, {100 * (v / row['loss'] - 1):+.1f} %" for t, v in row["patience"]]
        equal = ("never within " if row["never"] else "") + f"{row['equal'] / 1e6:.2f} M"
        cells = [name, row["verdict"], f"{row['tokens'] / 1e6:.2f} M", f"{row['loss']:.4f}", equal, *tried]
        lines.append("| " + " | ".join(cells) + " |")
    saved = 1 - np.exp(np.mean([np.log(row["tokens"] / row["equal"]) for row in rows]))
    told = (
        f"At equal final loss settled takes at least **{saved:.0%} less compute** (geometric mean, {len(rows)} runs)."
    )
    return [*lines, "", told]


def forecast_table(configs: list[tuple[str, ...]], rows: list[dict]) -> list[str]:
    """What was forecast beside what came, in Markdown."""
    lines = ["", "| run | time, s | peak memory, MB | final loss |", "|---|--:|--:|--:|"]
    errors: dict[str, list[tuple[float, bool]]] = {}
    for config, row in zip(configs, rows, strict=True):
        cells = [f"{Path(config[0]).name} {config[1]}"]
        for key, (told, came) in row["forecast"].items():
            unit = 1e6 if key == "peak_memory" else 1.0
            off, inside = came / told["value"] - 1, told["low"] <= came <= told["high"]
            errors.setdefault(key, []).append((abs(off), inside))
            mark = "" if inside else ", outside"
            cells.append(f"{told['value'] / unit:,.4g} → {came / unit:,.4g} ({100 * off:+.1f} %{mark})")
        lines.append("| " + " | ".join(cells) + " |")
    for key, found in errors.items():
        offs, inside = [off for off, _ in found], sum(ok for _, ok in found)
        lines.append(
            f"\n{key}: median error {np.median(offs):.1%}, largest {max(offs):.1%}; {inside} of {len(found)} in"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--tokens", default="5M")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    configs = list(zip(*[iter(asked.runs)] * 3, strict=True))
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(asked.jobs) as pool:
        futures = [
            [
                pool.submit(train, home, f"r{i}-{kind}", *config, asked.tokens, tolerance)
                for kind, tolerance in (("settled", "0.005"), ("constant", "1e-9"))
            ]
            for i, config in enumerate(configs)
        ]
        pairs = [(a.result(), b.result()) for a, b in futures]
        rows = [compare(pair) for pair in pairs]
    print("\n".join([*stopping_table(configs, rows), *forecast_table(configs, rows)]))


if __name__ == "__main__":
    main()

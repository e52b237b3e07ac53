"""What `settle tune` says of time, memory, loss and tokens before it begins, against what came: runs of every kind.

    python bench/tune_forecasts.py NAME=FILE … [--only NUMBER …] [--threads N] [--steps N]

NAME: of a base or of rows, as `RUNS` has them; runs whose files are not given are left out. smollm2 and gemma are those
of `settle pull`; small is the base of bench/record_tuning.py, trained with `--context 512`; that bench writes the rows
of the runs on it (`--rows`).
Prints a table in Markdown. Each run is a process of its own; one without a number of steps ends when it has settled.
The data is read whole, so rows are as long as they come.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from settle.base.run import Run
from settle.plan.forecast_figures import entries

# base, rows, what is asked for
RUNS = [
    ("smollm2", "gsm8k", "--steps 40"),
    ("smollm2", "alpaca", "--steps 60 --batch-rows 4 --adapter.rank 8"),
    ("smollm2", "docstrings", "--steps 16 --quantize as-is"),
    ("smollm2", "docstrings", "--steps 16 --quantize nf4 --batch-rows 4"),
    ("smollm2", "dpo", "--steps 16 --batch-rows 4"),
    ("smollm2", "alpaca", "--steps 25 --adapter full"),
    ("smollm2", "tools", "--steps 20 --adapter dora --adapter.targets q_proj,v_proj --batch-rows 4"),
    ("smollm2", "gsm8k", "--steps 12 --dtype float32 --recompute"),
    ("gemma", "alpaca", "--steps 20"),
    ("gemma", "gsm8k", "--steps 12 --quantize as-is"),
    ("gemma", "dpo", "--steps 8 --batch-rows 4"),
    ("smollm2", "gsm8k", "--steps 30 --threads 1 --batch-rows 16 --adapter.targets gate_proj,up_proj"),
    ("small", "maths", ""),
    ("small", "sayings_it", ""),
    ("small", "hungarian", "--adapter full"),
    ("small", "instructions", "--adapter dora"),
    ("small", "cedict", "--adapter.rank 4"),
    ("small", "docstrings", "--adapter full --batch-rows 4"),
    ("small", "sayings_de", "--recompute"),
    ("smollm2", "hungarian", "--steps 20 --dtype float32"),
    ("smollm2", "cedict", "--steps 20 --dtype float32 --batch-rows 4 --adapter full"),
    ("gemma", "hungarian", "--steps 12 --dtype float32 --batch-rows 4"),
]
SAID = ("time", "peak_memory", "loss", "tokens")


def limited(settings: str, option: str, most: int | None) -> str:
    """Return the settings with a number that is at most `most`."""
    if most is None:
        return settings
    words = settings.split()
    if option not in words:
        return f"{settings} {option} {most}".strip()
    place = words.index(option) + 1
    words[place] = str(min(most, int(words[place])))
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="NAME=FILE")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of runs, from 0")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, help="at most, in place of those of the runs: where memory is asked for")
    asked = parser.parse_args()
    files = {name: str(Path(path).absolute()) for name, _, path in (pair.partition("=") for pair in asked.files)}
    print("| run | time, s | peak memory, MB | loss | k tokens |\n|---|--:|--:|--:|--:|")
    errors: dict[str, list[tuple[float, bool]]] = {name: [] for name in SAID}
    with tempfile.TemporaryDirectory() as home:
        os.environ["SETTLE_HOME"] = home
        for number in asked.only or range(len(RUNS)):
            base, rows, settings = RUNS[number]
            if base not in files or rows not in files:
                continue
            command = [sys.executable, "-m", "settle", "tune", files[base], files[rows], "--name", f"r{number}"]
            settings = limited(settings, "--steps", asked.steps)
            settings = limited(settings, "--threads", asked.threads)
            done = subprocess.run([*command, "--no-compare", *settings.split()], capture_output=True, text=True)
            if done.returncode not in (0, 3):
                print(json.dumps({"run": number, "said": done.stderr[-2000:]}), file=sys.stderr)
                continue
            told = {entry.figure: entry for entry in entries([Run.find(f"r{number}")])}
            cells = []
            for name in SAID:
                if name == "tokens" and "--steps" in settings:
                    cells.append("as asked")
                    continue
                entry = told[name]
                errors[name].append((abs(entry.error), entry.inside))
                scale = {"peak_memory": 1e6, "tokens": 1e3}.get(name, 1)
                inside = "" if entry.inside else ", outside"
                cells.append(
                    f"{entry.forecast.value / scale:.4g} → {entry.actual / scale:.4g} ({entry.error:+.1%}{inside})"
                )
            print(f"| {base}, {rows}: {settings} | {' | '.join(cells)} |", flush=True)
    print()
    for name, found in errors.items():
        if not found:
            continue
        off = [error for error, _ in found]
        inside = sum(held for _, held in found)
        print(f"{name}: median {statistics.median(off):.1%}, largest {max(off):.1%}, {inside} of {len(found)} inside")


if __name__ == "__main__":
    main()
